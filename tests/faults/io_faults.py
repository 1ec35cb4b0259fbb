"""Makes file operations of a server fail: EIO, ENOSPC, short and torn writes, at calls that a test chooses.

A library that the server loads (`io_faults.c`, LD_PRELOAD) reads its order from memory that both share.
"""

import errno
import mmap
import struct
import subprocess
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path

from tests.support.tools import needs

SOURCE = Path(__file__).with_suffix(".c")
COMPILER = Path("/usr/bin/cc")
needs_compiler = needs(str(COMPILER))
# As `struct order` in the library: kinds, way, error, after, times, struck, folder.
_ORDER = struct.Struct("@IIqqqq4096s")
FOR_EVER = 2**62


class Kind(IntEnum):
    """A kind of call."""

    OPEN = 0
    WRITE = 1
    SYNC = 2
    TRUNCATE = 3
    RENAME = 4
    MAKE = 5
    REMOVE = 6
    READ = 7


class Way(IntEnum):
    """What happens to a call."""

    FAIL = 1
    SHORTEN = 2
    """A write writes half, and says so."""
    TEAR = 3
    """A write writes half, and fails."""


class IoFaults:
    """An order for the server that is started next with `environment`.

    Args:
        folder: Where the library and the order are kept.
        below: The folder whose files are concerned.
    """

    def __init__(self, folder: Path, below: Path) -> None:
        library, order = folder / "io_faults.so", folder / "io_faults"
        flags = ["-O1", "-Wall", "-Werror", "-shared", "-fPIC"]
        subprocess.run([str(COMPILER), *flags, "-o", str(library), str(SOURCE), "-ldl"], check=True)
        self._below = str(below).encode()
        order.write_bytes(bytes(_ORDER.size))
        with order.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _ORDER.size)
        self.environment = {"LD_PRELOAD": str(library), "NBR_TEST_IO_FAULTS": str(order)}

    def inject(self, kinds: Sequence[Kind], way: Way, error: int, *, after: int, times: int) -> None:
        """Lets some calls of these kinds pass, and then lets some not."""
        self.lift()
        bits = sum(1 << kind for kind in set(kinds))
        # What is looked at first is written last.
        self._map[4:] = _ORDER.pack(0, way, error, after, times, self.struck, self._below)[4:]
        self._map[:4] = struct.pack("@I", bits)

    def lift(self) -> None:
        """Lets all calls pass again."""
        self._map[:4] = bytes(4)

    @property
    def struck(self) -> int:
        """How many calls did not pass so far."""
        return int(_ORDER.unpack(self._map[:])[5])

    def close(self) -> None:
        """Gives the memory back."""
        self._map.close()


WRITES = [Kind.OPEN, Kind.WRITE, Kind.SYNC, Kind.TRUNCATE, Kind.RENAME, Kind.MAKE]
# What a file system answers, and to which calls.
ANSWERS = [
    (list(Kind), Way.FAIL, errno.EIO),
    (WRITES, Way.FAIL, errno.EIO),
    (WRITES, Way.FAIL, errno.ENOSPC),
    ([Kind.WRITE], Way.SHORTEN, errno.ENOSPC),
    ([Kind.WRITE], Way.TEAR, errno.EIO),
    ([Kind.WRITE], Way.TEAR, errno.ENOSPC),
    *(([kind], Way.FAIL, errno.EIO) for kind in Kind),
]
