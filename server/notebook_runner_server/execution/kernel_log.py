"""What a kernel's process itself writes: a fatal error, a failed import."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

_TAIL_BYTES = 8192
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class KernelLog:
    """A file without a name, for standard output and standard error of a kernel.

    Attributes:
        file: What the process is given.

    Args:
        folder: Where there is room for it.
    """

    def __init__(self, folder: Path) -> None:
        # Read by this descriptor alone: under a name the kernel may put something else.
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - close() closes it

    def tail(self) -> str:
        """Return the end of it."""
        size = os.fstat(self.file.fileno()).st_size
        tail = os.pread(self.file.fileno(), _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        return plain(tail.decode(errors="replace"))

    def close(self) -> None:
        """Let go of it."""
        self.file.close()


def plain(text: str) -> str:
    """Return text without terminal colours and without what no protocol can carry."""
    return _ANSI.sub("", text).encode(errors="replace").decode()
