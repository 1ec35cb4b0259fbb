"""A terminal emulator with a person at it: types keys, and reads what is on the screen."""

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Timer
from typing import Self
from uuid import uuid4

from tests.support.tools import needs

SECONDS = 60.0
needs_tmux = needs("tmux")


def dense(lines: list[str]) -> str:
    """What lines say, without spaces: where a line is wrapped at a space, that one is not on the screen."""
    return "".join("".join(lines).split())


class Screen:
    """Runs one program in a tmux of its own, between `with` and its end.

    Args:
        folder: Where it may put its files.
        command: The program and its arguments.
        columns: How wide the terminal is.
        environment: What the program finds besides the test's environment.
    """

    def __init__(
        self,
        folder: Path,
        *command: str | Path,
        columns: int = 80,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._socket = folder / f"tmux-{uuid4().hex[:8]}"
        self._told = self._socket.with_suffix(".fifo")
        self._ended = self._socket.with_suffix(".exit")
        self._command = [str(word) for word in command]
        self._columns = columns
        # The terminal says how large it is.
        inherited = {
            k: v for k, v in os.environ.items() if not k.startswith(("NOTEBOOK_RUNNER_", "COLUMNS", "LINES"))
        }
        self._environment = {**inherited, **(environment or {})}

    def __enter__(self) -> Self:
        os.mkfifo(self._told)
        # Open for both ways, so that neither side waits for the other to arrive.
        self._output = os.open(self._told, os.O_RDWR)
        # The shell keeps the exit code, and the screen as it was.
        script = 'trap : INT; "$@"; echo $? > "$0"; echo; exec cat'
        size = ["-x", str(self._columns), "-y", "24"]
        program = ["sh", "-c", script, str(self._ended), *self._command]
        self._tmux("new-session", "-d", *size, *program)
        self._tmux("pipe-pane", f"cat > {self._told}")
        return self

    def __exit__(self, *_: object) -> None:
        self._tmux("kill-server")
        os.close(self._output)

    def press(self, *keys: str) -> None:
        """Presses keys, by tmux's names: `C-c`, `k`, `Enter`."""
        self._tmux("send-keys", *keys)

    def resize(self, columns: int) -> None:
        """Makes the terminal narrower or wider."""
        self._tmux("resize-window", "-x", str(columns))

    def lines(self) -> list[str]:
        """What is on the screen now, without empty lines."""
        return [line.rstrip() for line in self._tmux("capture-pane", "-p").splitlines() if line.strip()]

    def all_lines(self) -> list[str]:
        """What is on the screen, and what has left it at the top."""
        return [line.rstrip() for line in self._tmux("capture-pane", "-p", "-S", "-").splitlines()]

    def until(self, seen: str | Callable[[list[str]], bool]) -> list[str]:
        """Waits until a text is on the screen, or until what is there is as it should be."""
        shows = seen if callable(seen) else lambda lines: any(seen in line for line in lines)
        over = Timer(SECONDS, os.write, [self._output, b"."])
        over.start()
        try:
            while not shows(lines := self.lines()):
                assert not over.finished.is_set(), "it did not come:\n" + "\n".join(lines)
                # Each change of the screen is told here, so nothing is asked in between.
                os.read(self._output, 65536)
        finally:
            over.cancel()
        return lines

    def exit_code(self) -> int:
        """Waits until the program has ended, and gives its exit code."""
        self.until(lambda _: self._ended.exists() and self._ended.read_text().endswith("\n"))
        return int(self._ended.read_text())

    def _tmux(self, *arguments: str) -> str:
        # Not the settings of whoever runs the tests.
        command = ["tmux", "-S", str(self._socket), "-f", "/dev/null", "-u", *arguments]
        settings = {**self._environment, "LC_ALL": "C.UTF-8"}
        done = subprocess.run(command, env=settings, capture_output=True, text=True, check=True)
        return done.stdout
