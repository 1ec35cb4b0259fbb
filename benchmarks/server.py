"""A server of the benchmark's own."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

PROGRAM = Path(sys.executable).with_name("notebook-runner-server")


@contextmanager
def served() -> Iterator[str]:
    """Starts a server with its defaults on a free port, yields its address, and stops it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        process, address = start(Path(folder, "state"))
        try:
            yield address
        finally:
            process.terminate()
            process.communicate()


def start(state: Path, environment: Mapping[str, str] | None = None) -> tuple[subprocess.Popen[str], str]:
    """Starts a server on a free port; gives it with its address when it serves."""
    command = [str(PROGRAM), "--listen", "127.0.0.1:0", "--state-dir", str(state), "--log-format", "json"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
    )
    if process.stderr is None:
        raise RuntimeError("the server's log was not opened")
    line = ""
    for line in process.stderr:
        entry = json.loads(line) if line.startswith("{") else {}
        if entry.get("event") == "serving":
            return process, str(entry["address"])
    raise RuntimeError(f"the server ended with code {process.wait()} before it served: {line}")
