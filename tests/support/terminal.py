"""A terminal for programs that show themselves in another way there."""

import contextlib
import os
import pty
import subprocess
import termios
from pathlib import Path

SECONDS = 60.0


def on_a_terminal(*command: str | Path, columns: int = 80, kind: str = "xterm-256color") -> tuple[int, str]:
    """The exit code of a program on a terminal of so many columns, and all that it wrote there."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    # These variables would override the size of the terminal.
    inherited = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "LINES"}}
    settings = {**inherited, "TERM": kind}
    with subprocess.Popen(command, env=settings, stdin=theirs, stdout=theirs, stderr=theirs) as running:
        os.close(theirs)
        text = _read(ours)
        return running.wait(SECONDS), text.decode()


def _read(descriptor: int) -> bytes:
    text = b""
    # Linux ends a terminal that nobody writes to any more with EIO.
    with os.fdopen(descriptor, "rb", buffering=0) as screen, contextlib.suppress(OSError):
        while piece := screen.read(65536):
            text += piece
    return text
