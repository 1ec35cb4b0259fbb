"""Where runs are gone on with after a restart of the server; SQLite's side of it, without asyncio."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

# Not in every history of version 1.
SCHEMA = """
CREATE TABLE IF NOT EXISTS resume ( -- where a run is gone on with after a restart of the server
  position INTEGER PRIMARY KEY, mark INTEGER NOT NULL, part_start INTEGER NOT NULL, size INTEGER NOT NULL
);
"""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a run is gone on with: the backend's mark, and the run's file of parts as it was at that.

    Attributes:
        mark: The number of the last batch that is in the history.
        part_start: Where the part begins that is not whole yet, in bytes.
        size: Where the next piece goes, in bytes.
    """

    mark: int
    part_start: int
    size: int


def note(db: sqlite3.Connection, position: int, resume: Checkpoint) -> None:
    """Note where a run is gone on with."""
    values = (position, resume.mark, resume.part_start, resume.size)
    db.execute("INSERT OR REPLACE INTO resume (position, mark, part_start, size) VALUES (?, ?, ?, ?)", values)


def read(db: sqlite3.Connection, position: int) -> Checkpoint | None:
    """Return where a run is gone on with; None: nothing was noted."""
    row = db.execute("SELECT mark, part_start, size FROM resume WHERE position = ?", (position,)).fetchone()
    return None if row is None else Checkpoint(*row)
