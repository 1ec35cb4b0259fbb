"""The largest resident memory of this process, which the programs that it starts inherit.

A new program runs in the memory of the process that starts it until it is executed (vfork), and Linux then
counts that process's largest memory as the program's (`ru_maxrss`).
"""

from __future__ import annotations

import contextlib
import os


class OwnPeak:
    """The largest memory of this process, which can be set back."""

    def __init__(self) -> None:
        self._file: int | None = None

    def prepare(self) -> None:
        """Open what sets it back: a process that is not dumpable may not open it, unless root runs it."""
        if self._file is None:
            with contextlib.suppress(OSError):
                self._file = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)

    def forget(self) -> None:
        """Set it back to the current size, as far as this process may (proc(5))."""
        self.prepare()
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.write(self._file, b"5")


own_peak = OwnPeak()
"""That of this process."""
