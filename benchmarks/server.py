"""Start servers for the benchmark."""

import compileall
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import notebook_runner
import notebook_runner_server

PROGRAM = Path(sys.executable).with_name("notebook-runner-server")
SECONDS = 60.0


class Server:
    """A running server, with its log."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid
        self._entries: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._ended = False
        threading.Thread(target=self._read, daemon=True).start()
        self.address = str(self.wait_for("server_started")["address"])

    def wait_for(self, event: str) -> dict[str, Any]:
        """Wait for a log line, and return it."""

        def found() -> dict[str, Any] | None:
            return next((entry for entry in self._entries if entry["event"] == event), None)

        with self._changed:
            self._changed.wait_for(lambda: found() or self._ended, SECONDS)
            if entry := found():
                return entry
        raise RuntimeError(f"the server did not log {event!r}: {self._entries[-5:]}")

    def _read(self) -> None:
        with self.process.stderr or io.StringIO() as log:
            for line in log:
                if line.startswith("{"):
                    with self._changed:
                        self._entries.append(json.loads(line))
                        self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Stop the server in order."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(SECONDS)


def compiled() -> None:
    """Compile the packages to bytecode, as an installer does; a start from sources may do so each time."""
    for package in (notebook_runner, notebook_runner_server):
        compileall.compile_dir(package.__path__[0], quiet=1)


@contextmanager
def served(*options: str, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Start a server with default settings on a free port, yield it, and stop it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        server = start(Path(folder, "state"), *options, environment=environment)
        try:
            yield server
        finally:
            server.stop()


def start(state: Path, *options: str, environment: Mapping[str, str] | None = None) -> Server:
    """Start a server on a free port, and return it when it serves."""
    command = [str(PROGRAM), "--listen", "127.0.0.1:0", "--state-dir", str(state), *options]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
    )
    return Server(process)
