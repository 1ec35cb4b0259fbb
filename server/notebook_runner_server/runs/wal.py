"""Damage to the write-ahead log (WAL) of SQLite, behind which SQLite reads nothing.

SQLite reads a WAL up to the first frame whose checksum is wrong, because a power failure may tear the last
transaction. So damage to one frame silently removes all transactions behind it. But a transaction begins only
when the one before it is synced: a commit that is followed by another frame was durable. If SQLite does not
read it, an earlier frame is damaged. (The exception is a commit that replaces a failed one and is not synced,
`sqlite.py`, if then the power fails.)

Each checksum continues that of the frame before it. A frame fits the one before it if it continues the
checksum stored there, whether that is right or not. So frames that fit each other were written one after the
other, also behind damage.

Source of the formats: https://sqlite.org/walformat.html and https://sqlite.org/fileformat2.html#walformat.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from notebook_runner_server.runs.folder import private

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_MAGIC = 0x377F0682
"""The last bit of the magic number says that checksums are of big-endian words."""

_VERSION = 3007000
# Of the wal-index: the number of frames that SQLite reads, in the byte order of the machine, and the salt.
_INDEX = struct.Struct("=16xI12x8s")


@dataclass(frozen=True, slots=True)
class _Frame:
    """The header of a frame.

    Attributes:
        page: The number of the page.
        commit: The pages of the database after a commit; 0: the frame is not the last one of a transaction.
        salt: The same in all frames since the WAL was last restarted.
        checksum: Of this frame, and all before it.
    """

    page: int
    commit: int
    salt: tuple[int, int]
    checksum: tuple[int, int]


def path_of(database: Path) -> Path:
    """Return the path of a database's WAL."""
    return database.with_name(database.name + "-wal")


def _has_frames(path: Path) -> bool:
    return path.exists() and path.stat().st_size > _HEADER.size


def loses_commits(database: Path) -> bool:
    """Return whether SQLite would lose transactions that were durable.

    Takes some milliseconds: SQLite checks the frames that it reads, and this function only others.

    Args:
        database: The database file, which is not open.

    Raises:
        OSError: A file cannot be read.
    """
    path = path_of(database)
    if not _has_frames(path):
        return False
    if not database.stat().st_size:
        # SQLite would remove the WAL: it has created the database before.
        return True
    index = _wal_index(database)
    with _Wal(path) as wal:
        known = wal.count_in_index(index)
        if known is not None and wal.last_lost_commit(known) is None:
            return False
        # Where SQLite may not write the index, it is out of date.
        return wal.last_lost_commit(wal.count_valid_frames()) is not None


def _wal_index(database: Path) -> bytes:
    """Have SQLite read the WAL, and return the begin of its wal-index; empty: there is none."""
    with contextlib.suppress(sqlite3.Error, UnicodeDecodeError, OSError):
        # A connection that cannot write leaves the WAL as it is, also when it is closed.
        uri = f"{database.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=0)) as db:
            db.execute("PRAGMA schema_version").fetchone()
            with database.with_name(database.name + "-shm").open("rb") as file:
                return file.read(_INDEX.size)
    return b""


def repair(path: Path) -> None:
    """Rewrite a WAL so that SQLite reads all transactions that were durable, with damaged pages as they are.

    Args:
        path: The WAL, whose database is not open.

    Raises:
        OSError: It cannot be read or written.
    """
    if not _has_frames(path):
        return
    with _Wal(path) as wal:
        last = wal.last_lost_commit(wal.count_valid_frames())
        if last is None:
            return
        repaired = path.with_name(path.name + "-repaired")
        with os.fdopen(private(repaired, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
            file.writelines(wal.rewritten(last))
    repaired.rename(path)


class _Wal:
    """A WAL file, open for reading.

    Attributes:
        is_header_valid: Whether the header's checksum is right; SQLite reads nothing otherwise.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        try:
            self._read_header(path.stat().st_size)
        except BaseException:
            self._file.close()
            raise

    def _read_header(self, size: int) -> None:
        head = self._file.read(_HEADER.size)
        magic, version, page_size, self._checkpoint_sequence, *salt, first, second = _HEADER.unpack(head)
        self._order = {_MAGIC: "<", _MAGIC + 1: ">"}.get(magic, "=")
        self._seed = _checksum(self._order, (0, 0), head[:-8])
        self.is_header_valid = magic in {_MAGIC, _MAGIC + 1} and (version, self._seed) == (
            _VERSION,
            (first, second),
        )
        if not self.is_header_valid:
            # SQLite writes words as the machine does.
            self._order = "="
        is_size = page_size in {2**power for power in range(9, 17)}
        self._page_size = page_size if is_size else 4096
        self._frame_bytes = _FRAME.size + self._page_size
        self._count = (size - _HEADER.size) // self._frame_bytes
        self._salt = (salt[0], salt[1])
        if not self.is_header_valid:
            self._salt = self._newest_salt()

    def _newest_salt(self) -> tuple[int, int]:
        """Return the salt of the first frames that fit each other: behind them are older ones."""
        frames = map(self._frame, range(self._count))
        for number, (before, frame) in enumerate(itertools.pairwise(frames), 1):
            self._salt = frame.salt
            if self._fits(number, frame, before):
                break
        return self._salt

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _frame(self, number: int) -> _Frame:
        self._file.seek(_HEADER.size + number * self._frame_bytes)
        page, commit, *rest = _FRAME.unpack(self._file.read(_FRAME.size))
        return _Frame(page, commit, (rest[0], rest[1]), (rest[2], rest[3]))

    def _content(self, number: int) -> bytes:
        self._file.seek(_HEADER.size + number * self._frame_bytes + _FRAME.size)
        return self._file.read(self._page_size)

    def _next_checksum(self, before: tuple[int, int], frame: _Frame, content: bytes) -> tuple[int, int]:
        """Return the checksum that a frame should have after another checksum."""
        about = struct.pack(">2I", frame.page, frame.commit)
        return _checksum(self._order, _checksum(self._order, before, about), content)

    def _fits(self, number: int, frame: _Frame, before: _Frame | None) -> bool:
        """Return whether a frame was written after another one."""
        if before is None or not frame.salt == before.salt == self._salt:
            return False
        return frame.checksum == self._next_checksum(before.checksum, frame, self._content(number))

    def count_in_index(self, index: bytes) -> int | None:
        """Return how many frames SQLite reads according to its wal-index; None: that is of another WAL."""
        if len(index) < _INDEX.size or not self.is_header_valid:
            return None
        count: int
        count, salt = _INDEX.unpack(index)
        return count if salt == struct.pack(">2I", *self._salt) else None

    def count_valid_frames(self) -> int:
        """Return how many frames SQLite reads: up to the last commit before the first wrong frame.

        Takes some 50 µs for each.
        """
        valid, checksum = 0, self._seed
        for number in range(self._count if self.is_header_valid else 0):
            frame = self._frame(number)
            checksum = self._next_checksum(checksum, frame, self._content(number))
            if not frame.page or (frame.salt, frame.checksum) != (self._salt, checksum):
                break
            if frame.commit:
                valid = number + 1
        return valid

    def last_lost_commit(self, valid: int) -> int | None:
        """Return the last commit behind damage; None: SQLite reads all commits that were durable.

        Args:
            valid: How many frames SQLite reads.
        """
        last: int | None = None
        # Before its first frame, a WAL gets its header, which is synced as well.
        is_durable = not self.is_header_valid
        # Whether the frame before is a commit: only if it fits, because a failed write may have changed its
        # page and commit alone.
        follows_commit = False
        before = self._frame(valid) if valid < self._count else None
        for number in range(valid + 1, self._count):
            frame = self._frame(number)
            fits = self._fits(number, frame, before)
            if fits and follows_commit:
                is_durable, last = True, number - 1
            is_durable = is_durable and fits
            follows_commit = fits and frame.commit > 0
            if is_durable and follows_commit:
                last = number
            before = frame
        return last

    def rewritten(self, last: int) -> Iterator[bytes]:
        """Yield the content of a WAL with all frames up to this one, and with checksums that fit them."""
        salt = struct.pack(">2I", *self._salt)
        magic = _MAGIC + (self._order == ">" or (self._order == "=" and sys.byteorder == "big"))
        head = struct.pack(">4I", magic, _VERSION, self._page_size, self._checkpoint_sequence) + salt
        checksum = _checksum(self._order, (0, 0), head)
        yield head + struct.pack(">2I", *checksum)
        before: _Frame | None = None
        for number in range(last + 1):
            frame, content = self._frame(number), self._content(number)
            # Without a readable page 1 nothing is readable, and its older versions differ in counters only.
            is_damaged = number > 0 and frame.page == 1 and not self._fits(number, frame, before)
            before = frame
            # SQLite stops at page 0.
            if frame.page and not is_damaged:
                checksum = self._next_checksum(checksum, frame, content)
                yield struct.pack(">2I", frame.page, frame.commit) + salt + struct.pack(">2I", *checksum)
                yield content


def _checksum(order: str, before: tuple[int, int], data: bytes) -> tuple[int, int]:
    first, second = before
    words = iter(struct.unpack(f"{order}{len(data) // 4}I", data))
    for one, other in zip(words, words, strict=True):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + other + first) & 0xFFFFFFFF
    return first, second
