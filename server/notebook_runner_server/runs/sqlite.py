"""The history in an SQLite file: its transactions, the check of its integrity, and its rebuilding.

It is written on one thread and read on another, so that the event loop waits for neither. What was written is
durable when `SqliteDatabase.write` returns (WAL, `synchronous=FULL`).

To check a whole file takes as long as to read it, which would delay the start of a server with a long
history. So a start checks for a moment, and a thread checks the rest afterwards. Damage that is found then,
or by a read or write, is marked beside the file: the next start rebuilds the history from the intact runs.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from notebook_runner_server import folder_tree
from notebook_runner_server.errors import DamagedRunError, StorageFullError, damaged
from notebook_runner_server.runs import schema, tables, wal
from notebook_runner_server.runs.database import PendingWrite
from notebook_runner_server.runs.folder import private
from notebook_runner_server.runs.schema import SqliteConnection, connect

CHECK_SECONDS = 0.25
"""How long the check may delay a start, if the file is large."""

CHECK_BYTES = 32 * 1024 * 1024
"""A file up to this size is always checked as a whole (0.2 s)."""

_BUSY_MILLISECONDS = 5000
_TRUNCATE_MILLISECONDS = 500
"""How long writes wait for reads to end, so that the WAL can be emptied; a read takes some milliseconds."""

_PROGRESS_STEPS = 1000
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
# The file is not available now, or not to this user.
_NO_DAMAGE = (
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL),
    *(sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN),
    *(sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_NOLFS),
)
_MAGIC = b"SQLite format 3\0"
_FORMATS = slice(18, 20)
"""The bytes of a file that say which versions of SQLite can write and read it: each is 1 or 2."""

_RUN_TABLES = ("runs", "events", "segments", "checkpoints", "notifications")
_MAX_GAP = 100_000
"""After how many empty or unreadable positions in a row rebuilding looks no further."""

_logger = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")


class DamagedHistoryError(Exception):
    """The history's file is damaged."""


class SqliteDatabase:
    """One SQLite file.

    Args:
        path: The file; created when it does not exist.

    Attributes:
        problem: Why the last write failed; empty: it succeeded.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._integrity = IntegrityCheck(path)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-write")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="store-read")
        self._write_db: SqliteConnection | None = None
        self._read_db: SqliteConnection | None = None
        self._checker: threading.Thread | None = None
        self._pending: deque[PendingWrite] = deque()
        self.problem = ""

    async def open(self, *, is_first: bool) -> None:
        """Open the file.

        Args:
            is_first: Whether it may be missing or empty.

        Raises:
            DamagedHistoryError: It is damaged.
            sqlite3.Error: It is not available now.
        """
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._writer, self._open_to_write, is_first)
        # SQLite's message about a damaged schema may quote bytes that are not UTF-8, here and below.
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if self._integrity.is_damage(error):
                raise DamagedHistoryError(str(error)) from error
            raise
        self._read_db = await loop.run_in_executor(self._reader, self._connect)

    def _open_to_write(self, is_first: bool) -> None:
        with contextlib.ExitStack() as stack:
            # The files that SQLite creates beside it get the same mode.
            os.close(private(self._path, os.O_RDWR | os.O_CREAT))
            self._path.chmod(0o600)
            # Before SQLite opens it, and removes what it does not read.
            if wal.loses_commits(self._path):
                raise sqlite3.DatabaseError("the write-ahead log is damaged before its last transaction")
            db = self._connect()
            stack.callback(db.close)
            is_complete = self._integrity.check(db)
            schema.create(db, is_first=is_first)
            schema.create_indexes(db)
            stack.pop_all()
        self._write_db = db
        if not is_complete:
            self._checker = threading.Thread(target=self._integrity.check_rest, name="store-check")
            self._checker.start()

    def _connect(self) -> SqliteConnection:
        db = connect(self._path)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            # SQLite would leave the content of deleted rows in the file until it is overwritten.
            db.execute("PRAGMA secure_delete = ON")
        except (sqlite3.DatabaseError, UnicodeDecodeError):
            db.close()
            raise
        return db

    async def close(self) -> None:
        """Close the file."""
        self._integrity.close()
        if self._checker is not None:
            await asyncio.to_thread(self._checker.join)
        loop = asyncio.get_running_loop()
        for executor, db in ((self._reader, self._read_db), (self._writer, self._write_db)):
            if db is not None:
                await loop.run_in_executor(executor, db.close)
            executor.shutdown()

    async def write(
        self, function: Callable[Concatenate[SqliteConnection, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Call a function in a transaction, and return its result when that is durable.

        Group commit: writes that arrive during a transaction share the next one, and its fsync.

        Raises:
            StorageFullError: It could not be written; nothing of it is stored.
        """
        write = PendingWrite(lambda db: function(db, *args, **kwargs))
        self._pending.append(write)
        self._writer.submit(self._commit)
        try:
            result: _T = await asyncio.wrap_future(write.done)
        except sqlite3.IntegrityError:
            raise  # a bug of this program
        except (OSError, sqlite3.Error) as error:
            self._integrity.record(error)
            self.problem = f"The state folder cannot be written: {error}."
            raise StorageFullError(self.problem) from error
        self.problem = ""
        return result

    async def write_soon(
        self, function: Callable[Concatenate[SqliteConnection, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """As `write`: the file is always available."""
        return await self.write(function, *args, **kwargs)

    def _commit(self) -> None:
        """Commit all pending writes; runs on the writer's thread."""
        # Only this thread takes writes; those that arrive meanwhile are for the next time.
        pending = [self._pending.popleft() for _ in range(len(self._pending))]
        if writes := [write for write in pending if write.done.set_running_or_notify_cancel()]:
            commit(self._writing, writes)

    async def read(
        self, function: Callable[Concatenate[SqliteConnection, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Call a function that reads, and return its result."""

        def query() -> _T:
            assert self._read_db is not None  # noqa: S101 - open() was called
            try:
                return function(self._read_db, *args, **kwargs)
            except sqlite3.DatabaseError as error:
                if not self._integrity.says_damaged(error):
                    raise
            # SQLite reports a single failed read as damage. Real damage is the same in a second attempt.
            return function(self._read_db, *args, **kwargs)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._reader, query)
        except sqlite3.DatabaseError as error:
            if self._integrity.record(error):
                raise damaged("", error) from error
            raise

    async def touch(self) -> None:
        """Write without a change, to find out whether the disk takes writes.

        Raises:
            StorageFullError: It does not.
        """
        await self.write(lambda _: schema.touch(self._writing))

    @property
    def _writing(self) -> SqliteConnection:
        assert self._write_db is not None  # noqa: S101 - open() was called
        return self._write_db

    async def truncate_log(self) -> None:
        """Empty the WAL, which keeps what was deleted until it is overwritten.

        As long as something reads from the WAL, or the disk is full, it stays; the next call empties it.
        """
        with contextlib.suppress(sqlite3.Error):
            await self.run_in_order(self._truncate_log)

    def _truncate_log(self) -> None:
        db = self._writing
        db.execute(f"PRAGMA busy_timeout = {_TRUNCATE_MILLISECONDS}")
        try:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            db.execute(f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}")

    async def run_in_order(self, function: Callable[[], _T]) -> _T:
        """Call a function after all writes that are pending now."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, function)


def commit(db: SqliteConnection, writes: Sequence[PendingWrite]) -> None:
    """Commit some writes in one transaction, in their order; if that fails, each in one of its own.

    So only those writes fail that would have failed alone.
    """
    try:
        with _transaction(db):
            results = [write.function(db) for write in writes]
    except BaseException as error:  # noqa: BLE001 - the waiting call gets it, whatever it is
        if len(writes) == 1:
            writes[0].done.set_exception(error)
            return
        for write in writes:
            commit(db, [write])
        return
    for write, result in zip(writes, results, strict=True):
        write.done.set_result(result)


@contextlib.contextmanager
def _transaction(db: SqliteConnection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        _roll_back(db)
        raise
    try:
        db.execute("COMMIT")
    except BaseException:
        _roll_back(db)
        _overwrite_failed_commit(db)
        raise


def _roll_back(db: SqliteConnection) -> None:
    if db.in_transaction:
        db.execute("ROLLBACK")


def _overwrite_failed_commit(db: SqliteConnection) -> None:
    """Overwrite a commit that failed, so that no later start finds it.

    If only its sync failed, all of it is in the WAL, and SQLite would recover it if this process were killed
    now. The next transaction takes its place there, even if that one cannot be synced either.
    """
    with contextlib.suppress(sqlite3.Error):
        # Before the first transaction of an empty WAL, SQLite syncs the header, and stops if that fails.
        db.execute("PRAGMA synchronous = OFF")
        try:
            schema.touch(db)
        finally:
            db.execute("PRAGMA synchronous = FULL")


class IntegrityCheck:
    """Checks a database file, and marks it as damaged.

    Args:
        database: The file.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._mark = database.with_name(database.name + "-damaged")
        self._closed = False

    def check(self, db: sqlite3.Connection) -> bool:
        """Check the file as far as time allows; return whether all of it was checked.

        Raises:
            sqlite3.DatabaseError: It is damaged.
        """
        if self._mark.exists():
            raise sqlite3.DatabaseError(self._mark.read_text(encoding="utf-8", errors="replace"))
        is_small = self._database.stat().st_size <= CHECK_BYTES
        deadline = time.monotonic() + CHECK_SECONDS
        return self._check(db, lambda: not is_small and time.monotonic() > deadline)

    def check_rest(self) -> None:
        """Check the whole file, on a connection of its own, until `close`; blocks."""
        db = sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)
        try:
            self._check(db, lambda: self._closed)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            self.record(error, always=True)
        finally:
            db.close()

    def close(self) -> None:
        """Stop `check_rest`."""
        self._closed = True

    def is_damage(self, error: Exception) -> bool:
        """Return whether an error while the file was opened means that it is damaged."""
        # This program's own errors have no code.
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _NO_DAMAGE:
            return True
        # A damaged header looks like a file of a later SQLite.
        try:
            with self._database.open("rb") as file:
                head = file.read(_FORMATS.stop)
        except OSError:
            return False
        return bool(head) and not (head.startswith(_MAGIC) and set(head[_FORMATS]) <= {1, 2})

    @staticmethod
    def says_damaged(error: Exception) -> bool:
        """Return whether an error of a read or write says that the file is damaged."""
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE

    def record(self, error: Exception, *, always: bool = False) -> bool:
        """Mark the file if an error of a read or write means that it is damaged; return whether it does."""
        is_damage = always or self.says_damaged(error)
        if is_damage and not self._mark.exists():
            _logger.error(
                "history_damaged", extra={"why": str(error), "action": "restart the server to rebuild it"}
            )
            # The disk may be full.
            with contextlib.suppress(OSError):
                self._mark.write_text(str(error), encoding="utf-8")
        return is_damage

    def _check(self, db: sqlite3.Connection, stop: object) -> bool:
        db.set_progress_handler(stop, _PROGRESS_STEPS)  # type: ignore[arg-type] # typeshed wants an int for a bool
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


def rebuild(old: Path, new: Path) -> None:
    """Create a new history from the intact runs of a damaged one; blocks.

    Args:
        old: The damaged database file, which is not open; it stays as it is.
        new: The file to create, in a folder of its own with space for a copy of the damaged one.

    Raises:
        OSError: The disk is full, or another error that is no damage; which runs are intact is unknown.
        sqlite3.Error: The same.
    """
    # SQLite reports a single failed read as damage. Real damage is the same in a second attempt.
    if (lost := _rebuild(old, new)) and lost != _rebuild(old, new):
        raise OSError("Two reads of the damaged history gave different results.")


def _rebuild(old: Path, new: Path) -> list[str]:
    """Create the new history; return what could not be copied."""
    folder_tree.remove(new.parent)
    new.parent.mkdir(mode=0o700)
    # SQLite writes to a file that it opens.
    draft = new.with_name("draft")
    for suffix in ("", "-wal"):
        if (path := old.with_name(old.name + suffix)).exists():
            shutil.copyfile(path, draft.with_name(draft.name + suffix))
    wal.repair(wal.path_of(draft))
    descriptor = private(new, os.O_RDWR | os.O_CREAT)
    try:
        with contextlib.closing(connect(new)) as target:
            # A rebuilding that is interrupted starts over.
            target.execute("PRAGMA synchronous = OFF")
            schema.create(target)
            with contextlib.closing(connect(draft)) as source:
                lost = _copy_all(source, target)
            # After the runs, with which its changes begin.
            schema.create_indexes(target)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return lost


def _copy_all(source: SqliteConnection, target: SqliteConnection) -> list[str]:
    """Copy everything intact; return what is not."""
    lost: list[str] = []
    try:
        # SQLite would refuse a file with a wrong number of pages.
        source.execute("PRAGMA writable_schema = ON")
        schema.restore_version(source)
        schema.create(source, is_first=False)
        for position in _positions(source, lost):
            lost += _copy_run(source, target, position)
        deleted = source.execute("SELECT run_id FROM deleted_runs").fetchall()
        target.executemany("INSERT OR IGNORE INTO deleted_runs (run_id) VALUES (?)", deleted)
        schema.copy_deletions(source, target)
    except (sqlite3.DatabaseError, ValueError) as error:
        _raise_unless_damage(error)
        _logger.warning("history_rest_unreadable", extra={"why": str(error)})
        lost.append(f"rest: {error}")
    return lost


def _raise_unless_damage(error: Exception) -> None:
    """Raise an error that is about the disk and not the history: the disk is full, or fails."""
    code = getattr(error, "sqlite_errorcode", 0)
    is_torn = code == sqlite3.SQLITE_IOERR_SHORT_READ
    if code & 0xFF in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN} and not is_torn:
        raise error


def _positions(db: SqliteConnection, lost: list[str]) -> Iterator[int]:
    """Yield the positions of all runs that can be found; add what cannot be read to `lost`."""
    try:
        known = [position for (position,) in db.execute("SELECT position FROM runs NOT INDEXED")]
    except sqlite3.DatabaseError as error:
        _raise_unless_damage(error)
        lost.append(f"positions: {error}")
        known = []
    if known:
        yield from known
        return
    # One page is unreadable: the runs beyond it are found by asking for each position.
    missed = 0
    for position in range(1, _last_position(db) + 1):
        try:
            found = db.execute("SELECT 1 FROM runs WHERE position = ?", (position,)).fetchone()
        except sqlite3.DatabaseError as error:
            _raise_unless_damage(error)
            lost.append(f"position {position}: {error}")
            found = None
        missed = 0 if found else missed + 1
        if missed > _MAX_GAP:
            return
        if found:
            yield position


def _last_position(db: SqliteConnection) -> int:
    for text in ("SELECT seq FROM sqlite_sequence WHERE name = 'runs'", "SELECT MAX(position) FROM runs"):
        with contextlib.suppress(sqlite3.DatabaseError):
            row = db.execute(text).fetchone()
            if row is not None and isinstance(row[0], int):
                return row[0]
    return _MAX_GAP


def _copy_run(source: SqliteConnection, target: SqliteConnection, position: int) -> list[str]:
    """Copy one run, unless it is damaged: then it stays in the file in quarantine.

    Returns:
        Which run was not copied, and why; empty: it was copied.
    """
    try:
        run = tables.check_run(source, position).run
        rows = {table: _rows(source, table, position) for table in _RUN_TABLES}
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
        # Its id is another run's, or its text cannot be encoded: version 1 wrote no checksums that reveal it.
        target.execute("ROLLBACK")
        _logger.warning("run_damaged", extra={"run_id": run.run_id, "why": str(error)})
        return [f"position {position}: {error}"]
    return []


def _rows(source: SqliteConnection, table: str, position: int) -> tuple[list[str], list[tuple[object, ...]]]:
    cursor = source.execute(f"SELECT * FROM {table} WHERE position = ?", (position,))  # noqa: S608 - the names above
    return [one[0] for one in cursor.description], cursor.fetchall()
