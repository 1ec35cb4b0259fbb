"""What is in a state folder; what cannot be used of it is set aside, and never removed.

::

    STATE_DIR/
    ├── lock                  held by the one server that uses the folder
    ├── request-key           the key of the digests of requests
    ├── reserve               room for the ends of runs, see `reserve`
    ├── notebook-runner.db*   the history: SQLite's files, and a note when damage was found
    ├── runs/RUN_ID/          see `folder`
    ├── artefacts/RUN_ID/     see `artefacts`
    ├── places/, scratch      the executor's
    ├── exports               a link to the folder for temporary files of exports
    ├── rebuilding/           a new history, while a start makes it of a damaged one
    └── damaged-TIME/         what a start could not use, by the same names; for the operator
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import stat
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

from notebook_runner_server import folder_tree
from notebook_runner_server.runs.folder import private
from notebook_runner_server.runs.tables import SCHEMA_VERSION, NewerHistoryError

DATABASE = "notebook-runner.db"
LOCK = "lock"
RUNS = "runs"
ARTEFACTS = "artefacts"
RESERVE = "reserve"
REBUILDING = "rebuilding"
_ASIDE = "damaged-"
# Of a file of SQLite.
_MAGIC = b"SQLite format 3\0"
_HEAD_BYTES = 100
_VERSION = slice(60, 64)

_FILE = stat.S_ISREG, "regular file"
_FOLDER = stat.S_ISDIR, "directory"
_LINK = stat.S_ISLNK, "symbolic link"
_KINDS: dict[str, tuple[Callable[[int], bool], str]] = {
    LOCK: _FILE,
    "request-key": _FILE,
    RESERVE: _FILE,
    "request-key.new": _FILE,
    DATABASE: _FILE,
    f"{DATABASE}-wal": _FILE,
    f"{DATABASE}-shm": _FILE,
    f"{DATABASE}-damaged": _FILE,
    RUNS: _FOLDER,
    ARTEFACTS: _FOLDER,
    REBUILDING: _FOLDER,
    "places": _FOLDER,
    "scratch": _LINK,
    "exports": _LINK,
}
_logger = logging.getLogger(__name__)


class Quarantine:
    """Moves what cannot be used into a folder of its own, which is made when it is needed.

    Args:
        folder: The state folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._aside = folder / f"{_ASIDE}{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"

    def take(self, paths: Iterable[Path], why: object) -> None:
        """Move files and folders of the state folder there, under the same names, and say so in the log."""
        for path in list(paths):
            target = self._aside / path.relative_to(self._folder)
            self._aside.mkdir(mode=0o700, exist_ok=True)
            target.parent.mkdir(mode=0o700, exist_ok=True)
            while target.exists():
                target = target.with_name(f"{target.name}~")
            path.rename(target)
            _logger.error(
                "damaged, and set aside", extra={"what": path.name, "aside": str(target), "why": str(why)}
            )

    def take_of_wrong_kind(self, *names: str) -> None:
        """Move what is no file where a file has to be, and so on; of these names, or of all."""
        for name in names or _KINDS:
            path = self._folder / name
            try:
                kind = path.lstat().st_mode
            except FileNotFoundError:
                continue
            is_expected, expected = _KINDS[name]
            if not is_expected(kind):
                self.take([path], f"Expected a {expected}.")

    @property
    def folder(self) -> Path:
        """The folder of what was moved; it is there only if something was."""
        return self._aside


def check_version(folder: Path) -> int:
    """Refuse a history that a newer server has written, before anything is done to it.

    Returns:
        The version of the history that is there; 0: there is none, or nobody knows.

    Raises:
        NewerHistoryError: It is a newer one's.
    """
    path = folder / DATABASE
    version = _version(path) if path.is_file() else 0
    if version > SCHEMA_VERSION:
        raise NewerHistoryError(path, version)
    return version


def remove_early_artefacts(folder: Path) -> None:
    """Remove the artefacts of version 1, which were among what belongs to the runs; blocks."""
    for run in (folder / RUNS).iterdir():
        folder_tree.remove_if_possible(run / ARTEFACTS)


def _version(path: Path) -> int:
    """Return the version of a history; 0: nobody knows, for it is new or damaged."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    version = int.from_bytes(head[_VERSION]) if head.startswith(_MAGIC) else 0
    wal = path.with_name(f"{path.name}-wal")
    if version <= SCHEMA_VERSION and wal.is_file() and wal.stat().st_size:
        # What is newest may be there; without a right to write, SQLite leaves it as it is.
        with contextlib.suppress(sqlite3.Error):
            db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
            with contextlib.closing(db):
                version = db.execute("PRAGMA user_version").fetchone()[0]
    return version


def asides(folder: Path) -> list[Path]:
    """Return the folders of what starts have set aside."""
    return sorted(folder.glob(f"{_ASIDE}*"))


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
