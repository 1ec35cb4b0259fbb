"""Room that is kept in the state folder, so that runs can end in the history when the disk is full."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from notebook_runner_server.runs.folder import private

RESERVE_BYTES = 8 * 1024 * 1024
"""An end is some KB, beside what its cell has printed."""


class DiskReserve:
    """A file that has its blocks, and nothing in them.

    Args:
        path: Where it is.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.is_there = False

    def make(self) -> bool:
        """Take the room, unless it is taken; tell whether it is; blocks."""
        if self.is_there:
            return True
        try:
            descriptor = private(self._path, os.O_WRONLY | os.O_CREAT)
            try:
                os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
            finally:
                os.close(descriptor)
        except OSError:
            # What there was of it is needed by others.
            self.release()
            return False
        self.is_there = True
        return True

    def release(self) -> None:
        """Give the room to what has to be written; blocks."""
        self.is_there = False
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
