"""Whether a history's file is sound: looked at for a moment when it is opened, and to the end afterwards.

Looking at all of a file takes as long as reading it, and a server with a long history shall not be kept from
serving. What is found later, or when something cannot be read, is remembered beside the file: the next start
sets the history aside.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from pathlib import Path

LOOK_SECONDS = 0.25
"""How long the look may take that a start waits for."""

_STEPS = 1000
_logger = logging.getLogger(__name__)
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Soundness:
    """Looks after one database file.

    Args:
        database: The file.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._mark = database.with_name(database.name + "-damaged")
        self._closed = False

    def check(self, db: sqlite3.Connection) -> bool:
        """Look whether the file is sound, as far as there is time for it; false: not all of it was seen.

        Raises:
            sqlite3.DatabaseError: It is not.
        """
        if self._mark.exists():
            raise sqlite3.DatabaseError(self._mark.read_text(encoding="utf-8"))
        deadline = time.monotonic() + LOOK_SECONDS
        return self._look(db, lambda: time.monotonic() > deadline)

    def check_rest(self) -> None:
        """Look at all of it, on a connection of its own, until `close`; blocks."""
        db = sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)
        try:
            self._look(db, lambda: self._closed)
        except sqlite3.DatabaseError as error:
            self.note(error, always=True)
        finally:
            db.close()

    def note(self, error: Exception, *, always: bool = False) -> None:
        """Remember that something could not be read or written, if damage is why."""
        if (always or getattr(error, "sqlite_errorcode", 0) in _DAMAGE) and not self._mark.exists():
            _logger.error(
                "the history is damaged, and the next start will set it aside", extra={"why": str(error)}
            )
            # The disk may be full.
            with contextlib.suppress(OSError):
                self._mark.write_text(str(error), encoding="utf-8")

    def close(self) -> None:
        """Look no further."""
        self._closed = True

    def _look(self, db: sqlite3.Connection, stop: object) -> bool:
        db.set_progress_handler(stop, _STEPS)  # type: ignore[arg-type] # typeshed wants an int for a bool
        try:
            verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                raise
            return False
        finally:
            db.set_progress_handler(None, 0)
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        return True
