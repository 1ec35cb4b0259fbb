"""The store's SQLite file: written on one thread, read on another, so that the event loop waits for neither.

What was written is durable when `write` returns (WAL, `synchronous=FULL`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from notebook_runner_server.errors import DamagedRunError, StorageFullError, damaged
from notebook_runner_server.runs import tables
from notebook_runner_server.runs.folder import private

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


class Write:
    """Something that is to be written.

    Args:
        function: Writes it; may be called again after what it wrote to the database was undone.

    Attributes:
        done: Has what the function returned when that is durable.
    """

    def __init__(self, function: Callable[[sqlite3.Connection], Any]) -> None:
        self.function = function
        self.done: Future[Any] = Future()


def commit(db: sqlite3.Connection, writes: Sequence[Write]) -> None:
    """Carry out some writes, in their order, and tell each what came of it.

    When they cannot be done together, each is done alone: only those fail that would have failed alone.
    """
    if wanted := [write for write in writes if write.done.set_running_or_notify_cancel()]:
        _commit(db, wanted)


def _commit(db: sqlite3.Connection, writes: Sequence[Write]) -> None:
    try:
        with _transaction(db):
            results = [write.function(db) for write in writes]
    except BaseException as error:  # noqa: BLE001 - whoever waits has to be told, whatever it is
        if len(writes) == 1:
            writes[0].done.set_exception(error)
            return
        for write in writes:
            _commit(db, [write])
        return
    for write, result in zip(writes, results, strict=True):
        write.done.set_result(result)


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


_P = ParamSpec("_P")
_T = TypeVar("_T")


class DamagedHistoryError(Exception):
    """The history's file is damaged."""


class Database:
    """One SQLite file.

    Args:
        path: Where it is, or is to be.

    Attributes:
        problem: Why the last write failed; empty: it did not.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._soundness = IntegrityCheck(path)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-write")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="store-read")
        self._write_db: sqlite3.Connection | None = None
        self._read_db: sqlite3.Connection | None = None
        self._checking: threading.Thread | None = None
        self._waiting: deque[Write] = deque()
        self.problem = ""

    async def open(self, *, is_first: bool) -> None:
        """Open the file.

        Args:
            is_first: Whether there may be none, or an empty one.

        Raises:
            DamagedHistoryError: It is damaged.
            sqlite3.Error: It cannot be had now.
        """
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._writer, self._open_to_write, is_first)
        except sqlite3.Error as error:
            if self._soundness.is_damage(error):
                raise DamagedHistoryError(str(error)) from error
            raise
        self._read_db = await loop.run_in_executor(self._reader, self._connect)

    def _open_to_write(self, is_first: bool) -> None:
        with contextlib.ExitStack() as stack:
            # What SQLite makes beside it has the same mode.
            os.close(private(self._path, os.O_RDWR | os.O_CREAT))
            self._path.chmod(0o600)
            db = self._connect()
            stack.callback(db.close)
            is_sound = self._soundness.check(db)
            tables.create(db, is_first=is_first)
            stack.pop_all()
        self._write_db = db
        if not is_sound:
            self._checking = threading.Thread(target=self._soundness.check_rest, name="store-check")
            self._checking.start()

    def _connect(self) -> sqlite3.Connection:
        db = connect(self._path)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
        except sqlite3.DatabaseError:
            db.close()
            raise
        return db

    async def close(self) -> None:
        """Close the file."""
        self._soundness.close()
        if self._checking is not None:
            await asyncio.to_thread(self._checking.join)
        loop = asyncio.get_running_loop()
        for executor, db in ((self._reader, self._read_db), (self._writer, self._write_db)):
            if db is not None:
                await loop.run_in_executor(executor, db.close)
            executor.shutdown()

    async def write(
        self, function: Callable[Concatenate[sqlite3.Connection, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Do something as a whole or not at all, and return when it is durable.

        What is asked for while a transaction goes on shares the next one.

        Raises:
            StorageFullError: It could not be written; nothing of it is there.
        """
        write = Write(lambda db: function(db, *args, **kwargs))
        self._waiting.append(write)
        self._writer.submit(self._commit)
        try:
            result: _T = await asyncio.wrap_future(write.done)
        except sqlite3.IntegrityError:
            raise  # a fault in this program
        except (OSError, sqlite3.Error) as error:
            self._soundness.note(error)
            self.problem = f"The state folder cannot be written: {error}."
            raise StorageFullError(self.problem) from error
        self.problem = ""
        return result

    def _commit(self) -> None:
        """Write all that waits; on the writer's thread."""
        assert self._write_db is not None  # noqa: S101 - open() was called
        # Nobody else takes any, and what comes meanwhile is for the next time.
        if waiting := [self._waiting.popleft() for _ in range(len(self._waiting))]:
            commit(self._write_db, waiting)

    async def read(
        self, function: Callable[Concatenate[sqlite3.Connection, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Look something up."""

        def look() -> _T:
            assert self._read_db is not None  # noqa: S101 - open() was called
            return function(self._read_db, *args, **kwargs)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._reader, look)
        except sqlite3.DatabaseError as error:
            if self._soundness.note(error):
                raise damaged("", error) from error
            raise

    async def run_in_order(self, function: Callable[[], _T]) -> _T:
        """Do something after what was to be written so far."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, function)


_OF_A_RUN = ("runs", "events", "parts", "resume")
_MOST_GAPS = 100_000
"""How many positions in a row may be empty or unreadable before no more are looked for."""
_logger = logging.getLogger(__name__)


def rebuild(old: Path, new: Path) -> None:
    """Make a new history of the runs that are whole in a damaged one; blocks.

    Args:
        old: The damaged database file, which is not open; it stays as it is.
        new: The file to make, in a folder that has room for a copy of the damaged one.

    Raises:
        OSError: There is no room, or something else that is no damage; nobody knows what is whole.
        sqlite3.Error: The same.
    """
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
                _copy_all(source, target)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy_all(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    try:
        tables.create(source, is_first=False)
        for position in _positions(source):
            _copy(source, target, position)
        _copy_forgotten(source, target)
    except (sqlite3.DatabaseError, ValueError) as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise
        _logger.warning("nothing more can be read of a damaged history", extra={"why": str(error)})


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


def _copy(source: sqlite3.Connection, target: sqlite3.Connection, position: int) -> None:
    """Copy one run, unless something of it is damaged; that stays in the file that is set aside."""
    try:
        run = tables.check_run(source, position).run
        rows = {table: _rows(source, table, position) for table in _OF_A_RUN}
    except (sqlite3.DatabaseError, DamagedRunError):
        return
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


def _rows(
    source: sqlite3.Connection, table: str, position: int
) -> tuple[list[str], list[tuple[object, ...]]]:
    cursor = source.execute(f"SELECT * FROM {table} WHERE position = ?", (position,))  # noqa: S608 - the names above
    return [one[0] for one in cursor.description], cursor.fetchall()


def _copy_forgotten(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    rows = source.execute("SELECT run_id FROM forgotten").fetchall()
    target.executemany("INSERT OR IGNORE INTO forgotten (run_id) VALUES (?)", rows)
