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
import logging
import sqlite3
import stat
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

from notebook_runner_server import folder_tree
from notebook_runner_server.runs.tables import SCHEMA_VERSION, NewerHistoryError

DATABASE = "notebook-runner.db"
LOCK = "lock"
RUNS = "runs"
ARTEFACTS = "artefacts"
RESERVE = "reserve"
REBUILDING = "rebuilding"
REBUILT = "whole"
"""In that folder: a history that is whole, and takes the place of the damaged one."""
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
