"""A new history from what is sound of a damaged one: each run that is whole, with all that belongs to it."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from notebook_runner_server.runs import tables
from notebook_runner_server.runs.errors import DamagedRunError

_OF_A_RUN = ("runs", "events", "parts", "resume")
_MOST_GAPS = 100_000
"""How many positions in a row may be empty or unreadable before no more are looked for."""
_logger = logging.getLogger(__name__)


def rebuild(old: Path, new: sqlite3.Connection) -> set[str]:
    """Copy the runs that are whole; return their ids.

    Args:
        old: The damaged database file; it stays as it is.
        new: A database with empty tables.
    """
    copied: set[str] = set()
    try:
        with tempfile.TemporaryDirectory(dir=old.parent) as folder:
            # SQLite writes to what it opens.
            draft = Path(folder) / old.name
            for suffix in ("", "-wal"):
                if (path := old.with_name(old.name + suffix)).exists():
                    shutil.copyfile(path, draft.with_name(path.name))
            with contextlib.closing(connect(draft)) as db:
                tables.create(db, is_first=False)
                for position in _positions(db):
                    # What is damaged of it stays where it was set aside.
                    with contextlib.suppress(sqlite3.DatabaseError, DamagedRunError):
                        copied.add(_copy(db, new, position))
                _copy_forgotten(db, new)
    except (OSError, sqlite3.DatabaseError) as error:
        _logger.warning("nothing more can be read of a damaged history", extra={"why": str(error)})
    return copied


def connect(path: Path) -> sqlite3.Connection:
    """Open a database file; text that is damaged is read all the same, and its checksum tells."""
    db = sqlite3.connect(path, isolation_level=None)
    db.text_factory = lambda data: data.decode(errors="surrogateescape")
    return db


def _positions(db: sqlite3.Connection) -> Iterator[int]:
    """Yield the positions of all runs as far as they can be found."""
    try:
        known = [position for (position,) in db.execute("SELECT position FROM runs NOT INDEXED")]
    except sqlite3.DatabaseError:
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
        except sqlite3.DatabaseError:
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


def _copy(db: sqlite3.Connection, new: sqlite3.Connection, position: int) -> str:
    """Copy one run; return its id.

    Raises:
        sqlite3.DatabaseError: Not all of it can be read.
        DamagedRunError: Not all of it is as it was written.
    """
    run = tables.check_run(db, position).run
    rows = {table: _rows(db, table, position) for table in _OF_A_RUN}
    new.execute("BEGIN")
    try:
        for table, (columns, values) in rows.items():
            marks = ", ".join("?" * len(columns))
            text = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})"  # noqa: S608 - names of columns
            new.executemany(text, values)
        labels = ((name, value, position) for name, value in run.labels.items())
        new.executemany("INSERT INTO labels (name, value, position) VALUES (?, ?, ?)", labels)
        new.execute("COMMIT")
    except BaseException:
        new.execute("ROLLBACK")
        raise
    return run.run_id


def _rows(db: sqlite3.Connection, table: str, position: int) -> tuple[list[str], list[tuple[object, ...]]]:
    cursor = db.execute(f"SELECT * FROM {table} WHERE position = ?", (position,))  # noqa: S608 - the names above
    return [one[0] for one in cursor.description], cursor.fetchall()


def _copy_forgotten(db: sqlite3.Connection, new: sqlite3.Connection) -> None:
    rows = db.execute("SELECT run_id FROM forgotten").fetchall()
    new.executemany("INSERT OR IGNORE INTO forgotten (run_id) VALUES (?)", rows)
