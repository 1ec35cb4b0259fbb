"""The layout of a state folder, its quarantine for unusable files, and its reserve of disk space.

::

    STATE_DIR/
    ├── lock                  held by the one server that uses the folder
    ├── request-key           the key of the digests of requests
    ├── reserve               space for the ends of runs, see `DiskReserve`
    ├── notebook-runner.db*   the history: SQLite's files, and a mark when damage was found
    ├── runs/RUN_ID/          see `folder`
    ├── artefacts/RUN_ID/     see `artefacts`
    ├── places/, scratch      the executor's
    ├── exports               a link to the folder for temporary files of exports
    ├── rebuilding/           a new history, while a start rebuilds a damaged one
    └── damaged-TIME/         files that a start could not use, under the same names; for the operator
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

from notebook_runner_server import folder_tree
from notebook_runner_server.runs.database import NewerHistoryError
from notebook_runner_server.runs.folder import private
from notebook_runner_server.runs.schema import SCHEMA_VERSION, is_version_confirmed

DATABASE = "notebook-runner.db"
LOCK = "lock"
RUNS = "runs"
ARTEFACTS = "artefacts"
RESERVE = "reserve"
REBUILDING = "rebuilding"
REBUILT = "whole"
"""In that folder: a complete new history, which replaces the damaged one."""
_QUARANTINE = "damaged-"
_MOST_NAMED = 10
# The header of an SQLite file.
_MAGIC = b"SQLite format 3\0"
_HEAD_BYTES = 100
_VERSION, _APPLICATION_ID = slice(60, 64), slice(68, 72)

_FILE = stat.S_ISREG, "regular file"
_FOLDER = stat.S_ISDIR, "directory"
_LINK = stat.S_ISLNK, "symbolic link"
_TYPES: dict[str, tuple[Callable[[int], bool], str]] = {
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
    """Moves unusable files into a folder of their own, which is created when it is needed.

    Args:
        folder: The state folder.
    """

    def __init__(self, folder: Path) -> None:
        self._state_folder = folder
        self._folder = folder / f"{_QUARANTINE}{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"

    def move(self, paths: Iterable[Path], why: object) -> None:
        """Move files and folders of the state folder into quarantine, under the same names, and log that."""
        for path in list(paths):
            target = self._folder / path.relative_to(self._state_folder)
            self._folder.mkdir(mode=0o700, exist_ok=True)
            target.parent.mkdir(mode=0o700, exist_ok=True)
            while target.exists():
                target = target.with_name(f"{target.name}~")
            path.rename(target)
            about = {"path": str(path), "moved_to": str(target), "why": str(why)}
            _logger.error("damaged_file_moved", extra=about)

    def move_wrong_types(self, *names: str) -> None:
        """Move what has the wrong type, such as a directory instead of a file; of these names, or of all."""
        for name in names or _TYPES:
            path = self._state_folder / name
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:
                continue
            is_expected, expected = _TYPES[name]
            if not is_expected(mode):
                self.move([path], f"Expected a {expected}.")


def grant_owner(folder: Path) -> None:
    """Give this user access to the state folder and what is directly in it; blocks.

    A notebook has the same user, and may have changed the modes. The folders of runs, which may be many, get
    theirs back when they are used (`RunFolder`).
    """
    changed = [folder] if folder_tree.grant_owner(folder) else []
    changed += [path for path in folder.iterdir() if folder_tree.grant_owner(path)]
    if changed:
        paths = [str(path) for path in changed[:_MOST_NAMED]]
        _logger.warning("modes_restored", extra={"paths": paths, "count": len(changed)})


def quarantines(folder: Path) -> list[Path]:
    """Return the folders into which starts have moved files."""
    return sorted(folder.glob(f"{_QUARANTINE}*"))


def check_version(folder: Path) -> int:
    """Refuse a history of a newer server, before anything is changed.

    Returns:
        The version of the history; 0: there is none, or its version is unknown.

    Raises:
        NewerHistoryError: A newer server wrote it.
    """
    path = folder / DATABASE
    version = _version(path) if path.is_file() else 0
    if version > SCHEMA_VERSION:
        raise NewerHistoryError(path, version, SCHEMA_VERSION, "--state-dir")
    return version


def _version(path: Path) -> int:
    """Return the version of a history; 0: unknown, because the history is new or damaged."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head.startswith(_MAGIC):
        return 0
    version, application_id = (int.from_bytes(head[where]) for where in (_VERSION, _APPLICATION_ID))
    wal = path.with_name(f"{path.name}-wal")
    if version <= SCHEMA_VERSION and wal.is_file() and wal.stat().st_size:
        # The newest version may be in the WAL. A read-only connection leaves it as it is.
        with contextlib.suppress(sqlite3.Error):
            db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
            with contextlib.closing(db):
                version = db.execute("PRAGMA user_version").fetchone()[0]
                application_id = db.execute("PRAGMA application_id").fetchone()[0]
    return version if is_version_confirmed(version, application_id) else 0


def remove_early_artefacts(folder: Path) -> None:
    """Remove the artefacts of version 1, which were in the folders of the runs; blocks."""
    for run in (folder / RUNS).iterdir():
        folder_tree.remove_if_possible(run / ARTEFACTS)


RESERVE_BYTES = 8 * 1024 * 1024
"""Enough for the ends of many runs: an end takes a few KiB, in addition to what its cell has printed."""

_BLOCK_BYTES = 1024 * 1024
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL)
_NO_SPACE = (
    f"Less than {RESERVE_BYTES // 1024**2} MiB free in the state folder; new runs are refused."
    " Free some space."
)


def startup_error(folder: Path, error: sqlite3.Error | OSError) -> OSError:
    """Return an error of a start for the operator: with the state folder, which SQLite does not name."""
    # SQLite calls a full disk an I/O error where it maps files.
    with contextlib.suppress(OSError):
        if shutil.disk_usage(folder).free < RESERVE_BYTES:
            error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    is_full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
    reason = (error.strerror if isinstance(error, OSError) else "") or str(error).rstrip(".")
    action = "Free some space" if is_full else "Check the disk"
    return OSError(f"--state-dir {folder} cannot be used: {reason}. {action}, or choose another folder.")


class DiskReserve:
    """A file that occupies disk space, so that the ends of runs can be recorded when the disk is full.

    Args:
        path: The file.

    Attributes:
        is_allocated: Whether the file occupies its space.
        problem: Why it does not, in a sentence; empty: it does, or was never tried.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.is_allocated = False
        self.problem = ""

    def allocate(self) -> bool:
        """Allocate the space, unless it is allocated; false: that failed; blocks."""
        if self.is_allocated:
            return True
        try:
            descriptor = private(self._path, os.O_WRONLY | os.O_CREAT)
            try:
                _allocate(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            # Others need the blocks that were allocated.
            self.release()
            if error.errno != errno.ENOSPC:
                self.problem = f"The state folder cannot be written: {error}."
            return False
        self.is_allocated = True
        self.problem = ""
        return True

    def release(self) -> None:
        """Free the space for a write that needs it; blocks."""
        self.is_allocated = False
        self.problem = _NO_SPACE
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def _allocate(descriptor: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        # File systems without fallocate keep blocks that were written.
        for start in range(0, RESERVE_BYTES, _BLOCK_BYTES):
            if os.pwrite(descriptor, bytes(_BLOCK_BYTES), start) < _BLOCK_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        os.fsync(descriptor)
