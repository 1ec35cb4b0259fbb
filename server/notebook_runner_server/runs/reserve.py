"""Room that is kept in the state folder, so that runs can end in the history when the disk is full."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from notebook_runner_server.runs.folder import private

RESERVE_BYTES = 8 * 1024 * 1024
"""An end is some KB, beside what its cell has printed."""

_PIECE_BYTES = 1024 * 1024
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL)
_NO_ROOM = (
    f"Less than {RESERVE_BYTES // 1024**2} MiB free in the state folder; new runs are refused."
    " Free some space."
)
_UNWRITABLE = "The state folder cannot be written"


class DiskReserve:
    """A file that has its blocks, and nothing in them.

    Args:
        path: Where it is.

    Attributes:
        is_there: Whether the room is taken.
        problem: Why it is not, in a sentence; empty: it is, or nobody has tried.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.is_there = False
        self.problem = ""

    def make(self) -> bool:
        """Take the room, unless it is taken; tell whether it is; blocks."""
        if self.is_there:
            return True
        try:
            descriptor = private(self._path, os.O_WRONLY | os.O_CREAT)
            try:
                _allocate(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            # What there was of it is needed by others.
            self.release()
            self.problem = _NO_ROOM if error.errno == errno.ENOSPC else f"{_UNWRITABLE}: {error}."
            return False
        self.is_there = True
        self.problem = ""
        return True

    def release(self) -> None:
        """Give the room to what has to be written; blocks."""
        self.is_there = False
        self.problem = _NO_ROOM
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def _allocate(descriptor: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        # Some file systems cannot take room in advance: there, blocks that were written are as good.
        for start in range(0, RESERVE_BYTES, _PIECE_BYTES):
            if os.pwrite(descriptor, bytes(_PIECE_BYTES), start) < _PIECE_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        os.fsync(descriptor)
