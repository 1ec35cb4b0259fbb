"""A process that was forked by somebody else, with what jupyter_client uses of a Popen."""

from __future__ import annotations

import os
import signal


class ForkedProcess:
    """A child of this process that somebody else forked, with what jupyter_client uses of a Popen.

    Attributes:
        pid: Its process id.
        returncode: Its exit code (negative: the signal that ended it), None while it runs.
        is_lost: Its exit code is not known.
    """

    stdin = stdout = stderr = None

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.is_lost = False
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code (negative: the signal that ended it), None while it runs."""
        return self._wait(os.WNOHANG)

    def wait(self) -> int:
        """Wait for the end, and return the exit code."""
        return self._wait(0) or 0

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            try:
                found, status = os.waitpid(self.pid, options)
            except ChildProcessError:
                # Somebody else has reaped it, and knows how it ended. A Popen says 0 then, too.
                self.returncode, self.is_lost = 0, True
            else:
                self.returncode = os.waitstatus_to_exitcode(status) if found else None
        return self.returncode
