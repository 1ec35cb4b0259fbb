"""The store's SQLite file: written on one thread, read on another, so that the event loop waits for neither.

What was written is durable when `write` returns (WAL, `synchronous=FULL`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from notebook_runner_server.runs import tables
from notebook_runner_server.runs.errors import StorageFullError
from notebook_runner_server.runs.folder import private
from notebook_runner_server.runs.soundness import Soundness

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Database:
    """One SQLite file.

    Args:
        path: Where it is, or is to be.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._soundness = Soundness(path)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-write")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="store-read")
        self._write_db: sqlite3.Connection | None = None
        self._read_db: sqlite3.Connection | None = None
        self._checking: threading.Thread | None = None

    async def open(self, *, is_first: bool) -> None:
        """Open the file.

        Args:
            is_first: Whether there may be none, or an empty one.

        Raises:
            sqlite3.OperationalError: It cannot be read now.
            sqlite3.DatabaseError: It is damaged.
        """
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._writer, self._open_to_write, is_first)
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
        db = sqlite3.connect(self._path, isolation_level=None)
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
        """Do something in one transaction, and return when it is durable.

        Raises:
            StorageFullError: It could not be written; nothing of it is there.
        """

        def transaction() -> _T:
            db = self._write_db
            assert db is not None  # noqa: S101 - open() was called
            db.execute("BEGIN IMMEDIATE")
            try:
                result = function(db, *args, **kwargs)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            return result

        try:
            return await asyncio.get_running_loop().run_in_executor(self._writer, transaction)
        except sqlite3.IntegrityError:
            raise  # a fault in this program
        except (OSError, sqlite3.Error) as error:
            self._soundness.note(error)
            raise StorageFullError(f"The state folder cannot be written: {error}.") from error

    async def read(
        self, function: Callable[Concatenate[sqlite3.Connection, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Look something up."""

        def look() -> _T:
            assert self._read_db is not None  # noqa: S101 - open() was called
            return function(self._read_db, *args, **kwargs)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._reader, look)
        except sqlite3.Error as error:
            self._soundness.note(error)
            raise

    async def run_in_order(self, function: Callable[[], _T]) -> _T:
        """Do something after what was to be written so far, and before what comes."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, function)
