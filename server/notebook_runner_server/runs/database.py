"""The store's SQLite file: written on one thread, read on another, so that the event loop waits for neither.

What was written is durable when `write` returns (WAL, `synchronous=FULL`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from notebook_runner_server.runs import rebuilding, tables, transaction
from notebook_runner_server.runs.errors import StorageFullError, damaged
from notebook_runner_server.runs.folder import private
from notebook_runner_server.runs.integrity import IntegrityCheck
from notebook_runner_server.runs.transaction import Write

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
        db = rebuilding.connect(self._path)
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
            transaction.commit(self._write_db, waiting)

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
