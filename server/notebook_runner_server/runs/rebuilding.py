"""A new history from what is sound of a damaged one: each run that is whole, with all that belongs to it."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from notebook_runner_server import folder_tree
from notebook_runner_server.runs import tables
from notebook_runner_server.runs.errors import DamagedRunError
from notebook_runner_server.runs.folder import private

_OF_A_RUN = ("runs", "events", "parts", "resume")
_MOST_GAPS = 100_000
"""How many positions in a row may be empty or unreadable before no more are looked for."""
_logger = logging.getLogger(__name__)


def rebuild(old: Path, new: Path) -> None:
    """Make a new history of the runs that are whole in a damaged one; blocks.

    Args:
        old: The damaged database file, which is not open; it stays as it is.
        new: The file to make, in a folder of its own that has room for a copy of the damaged one.

    Raises:
        OSError: There is no room, or something else that is no damage; nobody knows what is whole.
        sqlite3.Error: The same.
    """
    # SQLite reports a read that fails once as damage; what is damaged is so again.
    if (lost := _rebuild(old, new)) and lost != _rebuild(old, new):
        raise OSError("The disk does not read the damaged history twice in the same way.")


def _rebuild(old: Path, new: Path) -> list[str]:
    """Make the new history; return what could not be copied."""
    folder_tree.remove(new.parent)
    new.parent.mkdir(mode=0o700)
    # SQLite writes to what it opens.
    draft = new.with_name("draft")
    for suffix in ("", "-wal"):
        if (path := old.with_name(old.name + suffix)).exists():
            shutil.copyfile(path, draft.with_name(draft.name + suffix))
    descriptor = private(new, os.O_RDWR | os.O_CREAT)
    try:
        with contextlib.closing(connect(new)) as target:
            # A history that was not made to its end is made again.
            target.execute("PRAGMA synchronous = OFF")
            tables.create(target)
            with contextlib.closing(connect(draft)) as source:
                lost = _copy_all(source, target)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return lost


def _copy_all(source: sqlite3.Connection, target: sqlite3.Connection) -> list[str]:
    """Copy all that is whole; return what is not."""
    lost: list[str] = []
    try:
        tables.create(source, is_first=False)
        for position in _positions(source, lost):
            lost += _copy(source, target, position)
        _copy_forgotten(source, target)
    except (sqlite3.DatabaseError, ValueError) as error:
        _raise_unless_damage(error)
        _logger.warning("nothing more can be read of a damaged history", extra={"why": str(error)})
        lost.append(f"the rest: {error}")
    return lost


def _raise_unless_damage(error: Exception) -> None:
    """Raise an error that says nothing of the history: the disk is full, or fails."""
    code = getattr(error, "sqlite_errorcode", 0)
    is_torn = code == sqlite3.SQLITE_IOERR_SHORT_READ
    if code & 0xFF in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN} and not is_torn:
        raise error


def connect(path: Path) -> sqlite3.Connection:
    """Open a database file; text that is damaged is read all the same, and its checksum tells."""
    db = sqlite3.connect(path, isolation_level=None)
    db.text_factory = lambda data: data.decode(errors="surrogateescape")
    return db


def _positions(db: sqlite3.Connection, lost: list[str]) -> Iterator[int]:
    """Yield the positions of all runs as far as they can be found; note where they cannot."""
    try:
        known = [position for (position,) in db.execute("SELECT position FROM runs NOT INDEXED")]
    except sqlite3.DatabaseError as error:
        _raise_unless_damage(error)
        lost.append(f"positions: {error}")
        known = []
    if known:
        yield from known
        return
    # A page in between cannot be read: what is beyond it is found by asking for each.
    last = _last_position(db)
    missed = 0
    for position in range(1, last + 1):
        try:
            found = db.execute("SELECT 1 FROM runs WHERE position = ?", (position,)).fetchone()
        except sqlite3.DatabaseError as error:
            _raise_unless_damage(error)
            lost.append(f"position {position}: {error}")
            found = None
        missed = 0 if found else missed + 1
        if missed > _MOST_GAPS:
            return
        if found:
            yield position


def _last_position(db: sqlite3.Connection) -> int:
    for text in ("SELECT seq FROM sqlite_sequence WHERE name = 'runs'", "SELECT MAX(position) FROM runs"):
        with contextlib.suppress(sqlite3.DatabaseError):
            row = db.execute(text).fetchone()
            if row is not None and isinstance(row[0], int):
                return row[0]
    return _MOST_GAPS


def _copy(source: sqlite3.Connection, target: sqlite3.Connection, position: int) -> list[str]:
    """Copy one run, unless something of it is damaged: that stays in the file that is set aside.

    Returns:
        Which run was not copied, and why, if so.
    """
    try:
        run = tables.check_run(source, position).run
        rows = {table: _rows(source, table, position) for table in _OF_A_RUN}
    except (sqlite3.DatabaseError, DamagedRunError) as error:
        _raise_unless_damage(error)
        return [f"position {position}: {error}"]
    target.execute("BEGIN")
    try:
        for table, (columns, values) in rows.items():
            marks = ", ".join("?" * len(columns))
            text = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})"  # noqa: S608 - names of columns
            target.executemany(text, values)
        labels = ((name, value, position) for name, value in run.labels.items())
        target.executemany("INSERT INTO labels (name, value, position) VALUES (?, ?, ?)", labels)
        target.execute("COMMIT")
    except (sqlite3.IntegrityError, ValueError) as error:
        # Its id is another's, or its text cannot be written: version 1 wrote no checksum that tells.
        target.execute("ROLLBACK")
        _logger.warning("a run is damaged", extra={"run_id": run.run_id, "why": str(error)})
        return [f"position {position}: {error}"]
    return []


def _rows(
    source: sqlite3.Connection, table: str, position: int
) -> tuple[list[str], list[tuple[object, ...]]]:
    cursor = source.execute(f"SELECT * FROM {table} WHERE position = ?", (position,))  # noqa: S608 - the names above
    return [one[0] for one in cursor.description], cursor.fetchall()


def _copy_forgotten(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    rows = source.execute("SELECT run_id FROM forgotten").fetchall()
    target.executemany("INSERT OR IGNORE INTO forgotten (run_id) VALUES (?)", rows)
