"""Whether a history's file is sound: looked at for a moment when it is opened, and to the end afterwards.

Looking at all of a file takes as long as reading it, and a server with a long history shall not be kept from
serving. What is found later, or when something cannot be read, is remembered beside the file: the next start
sets the file aside and makes a new one of what is whole.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from pathlib import Path

LOOK_SECONDS = 0.25
"""How long the look may take that a start waits for, where the file is large."""

LOOK_BYTES = 32 * 1024 * 1024
"""A file of at most so many bytes is always looked at to its end (0.2 s)."""

_STEPS = 1000
_logger = logging.getLogger(__name__)
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
# The file cannot be had now, or not by this user.
_NO_DAMAGE = (
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL),
    *(sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN),
    *(sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_NOLFS),
)
_MAGIC = b"SQLite format 3\0"
_FORMATS = slice(18, 20)
"""Where a file says which versions of SQLite can write and read it: 1 or 2, and 0 to nobody."""


class IntegrityCheck:
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
            raise sqlite3.DatabaseError(self._mark.read_text(encoding="utf-8", errors="replace"))
        is_small = self._database.stat().st_size <= LOOK_BYTES
        deadline = time.monotonic() + LOOK_SECONDS
        return self._look(db, lambda: not is_small and time.monotonic() > deadline)

    def is_damage(self, error: sqlite3.Error) -> bool:
        """Tell whether an error while the file was opened says that it is damaged."""
        # Errors of this program's own have no code.
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _NO_DAMAGE:
            return True
        # A damaged header looks like a file of a later SQLite.
        try:
            with self._database.open("rb") as file:
                head = file.read(_FORMATS.stop)
        except OSError:
            return False
        return bool(head) and not (head.startswith(_MAGIC) and set(head[_FORMATS]) <= {1, 2})

    def check_rest(self) -> None:
        """Look at all of it, on a connection of its own, until `close`; blocks."""
        db = sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)
        try:
            self._look(db, lambda: self._closed)
        except sqlite3.DatabaseError as error:
            self.note(error, always=True)
        finally:
            db.close()

    def note(self, error: Exception, *, always: bool = False) -> bool:
        """Remember that something could not be read or written, if damage is why; tell whether it is."""
        is_damage = always or getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE
        if is_damage and not self._mark.exists():
            _logger.error(
                "the history is damaged, and the next start will rebuild it", extra={"why": str(error)}
            )
            # The disk may be full.
            with contextlib.suppress(OSError):
                self._mark.write_text(str(error), encoding="utf-8")
        return is_damage

    def close(self) -> None:
        """Look no further."""
        self._closed = True

    def _look(self, db: sqlite3.Connection, stop: object) -> bool:
        db.set_progress_handler(stop, _STEPS)  # type: ignore[arg-type] # typeshed wants an int for a bool
        try:
            verdict = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                raise
            return False
        finally:
            db.set_progress_handler(None, 0)
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        return True
