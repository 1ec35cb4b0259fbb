"""A server of the benchmark's own."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PROGRAM = Path(sys.executable).with_name("notebook-runner-server")


@contextmanager
def served() -> Iterator[str]:
    """Starts a server with its defaults on a free port, yields its address, and stops it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        log = Path(folder) / "server.log"
        command = [str(PROGRAM), "--listen", "127.0.0.1:0", "--state-dir", f"{folder}/state"]
        with (
            subprocess.Popen(
                [*command, "--log-format", "json"], stderr=subprocess.PIPE, text=True
            ) as process,
            log.open("w") as kept,
        ):
            if process.stderr is None:
                raise RuntimeError("the server's log was not opened")
            try:
                yield _address(process.stderr, kept)
            finally:
                process.terminate()
                kept.write(process.stderr.read())


def _address(lines: IO[str], kept: IO[str]) -> str:
    """Reads the log up to the line that tells where the server listens."""
    for line in lines:
        kept.write(line)
        entry = json.loads(line) if line.startswith("{") else {}
        if entry.get("event") == "serving":
            return str(entry["address"])
    raise RuntimeError("the server ended before it served")
