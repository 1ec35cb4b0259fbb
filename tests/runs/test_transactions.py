"""What is asked for while a transaction goes on shares the next one; only what would fail alone fails."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from notebook_runner_server.errors import StorageFullError
from notebook_runner_server.runs.sqlite import SqliteDatabase

pytestmark = pytest.mark.state_folder("it is about SQLite's transactions")

COUNT = 20
SECONDS = 300.0


class Writer:
    """A database whose thread is held up, until it is let go with all that was asked for meanwhile."""

    def __init__(self, db: SqliteDatabase) -> None:
        self._db = db
        self._held, self._go = threading.Event(), threading.Event()
        self._tasks: list[asyncio.Task[Any]] = []

    async def hold(self) -> None:
        """Holds the thread up, in a transaction of its own."""
        self._tasks.append(asyncio.ensure_future(self._db.write(self._wait)))
        await asyncio.to_thread(self._held.wait)

    def _wait(self, _: sqlite3.Connection) -> None:
        self._held.set()
        self._go.wait(SECONDS)

    async def ask(self, function: Callable[..., Any]) -> asyncio.Task[Any]:
        """Asks for a write, which has to wait."""
        task = asyncio.ensure_future(self._db.write(function))
        self._tasks.append(task)
        await asyncio.sleep(0)
        return task

    async def go(self) -> list[Any]:
        """Lets go, and returns what came of each."""
        self._go.set()
        _, *outcomes = await asyncio.gather(*self._tasks, return_exceptions=True)
        return outcomes

    async def numbers(self) -> list[int]:
        """What is durable."""
        return await self._db.read(lambda db: [n for (n,) in db.execute("SELECT n FROM t ORDER BY rowid")])


def insert(number: int, db: sqlite3.Connection) -> int:
    """A write."""
    db.execute("INSERT INTO t VALUES (?)", (number,))
    return number


def refused(number: int, db: sqlite3.Connection) -> None:
    """A write that finds, when it has written, that there is no room for the rest."""
    insert(number, db)
    raise OSError(28, "No space left on device")


@asynccontextmanager
async def held(folder: Path) -> AsyncIterator[tuple[Writer, list[str]]]:
    """A database that is held up, and the statements of its transactions."""
    db = SqliteDatabase(folder / "db")
    await db.open(is_first=True)
    try:
        await db.write(lambda connection: connection.execute("CREATE TABLE t (n INTEGER NOT NULL)"))
        statements: list[str] = []

        def trace(connection: sqlite3.Connection) -> None:
            connection.set_trace_callback(statements.append)

        await db.write(trace)
        writer = Writer(db)
        await writer.hold()
        yield writer, statements
    finally:
        await db.close()


async def test_what_is_asked_for_meanwhile_is_one_transaction(tmp_path: Path) -> None:
    """In its order; each is answered for itself."""
    async with held(tmp_path) as (writer, statements):
        for number in range(COUNT):
            await writer.ask(partial(insert, number))
        statements.clear()
        assert await writer.go() == list(range(COUNT))
        assert await writer.numbers() == list(range(COUNT))
        # The one that held up the others, and theirs.
        assert statements.count("COMMIT") == 2


async def test_one_that_fails_is_undone_alone(tmp_path: Path) -> None:
    """What was before it and what comes after it is durable."""
    async with held(tmp_path) as (writer, _):
        await writer.ask(partial(insert, 1))
        await writer.ask(partial(refused, 2))
        await writer.ask(partial(insert, 3))
        first, second, third = await writer.go()
        assert (first, third) == (1, 3)
        assert isinstance(second, StorageFullError)
        assert await writer.numbers() == [1, 3]


async def test_a_disk_that_is_full_for_one_is_not_full_for_all(tmp_path: Path) -> None:
    """SQLite undoes the whole transaction; who needs little has it, and nobody has it twice."""

    def large(db: sqlite3.Connection) -> None:
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {pages + 1}")
        db.execute("INSERT INTO t VALUES (?)", ("x" * 1_000_000,))

    async with held(tmp_path) as (writer, _):
        await writer.ask(partial(insert, 1))
        await writer.ask(large)
        await writer.ask(partial(insert, 3))
        first, second, third = await writer.go()
        assert (first, third) == (1, 3)
        assert isinstance(second, StorageFullError)
        assert await writer.numbers() == [1, 3]


@pytest.mark.parametrize("count", [1, 3])
async def test_when_the_disk_takes_nothing_nobody_is_told_otherwise(tmp_path: Path, count: int) -> None:
    """And the next one works."""

    def undone(number: int, db: sqlite3.Connection) -> None:
        insert(number, db)
        # As SQLite does on some errors of the disk.
        db.execute("ROLLBACK")
        raise sqlite3.OperationalError("disk I/O error")

    async with held(tmp_path) as (writer, _):
        for number in range(count):
            await writer.ask(partial(undone, number))
        assert [type(one) for one in await writer.go()] == [StorageFullError] * count
        assert await writer.numbers() == []
        assert await asyncio.wait_for(await writer.ask(partial(insert, 4)), SECONDS) == 4
        assert await writer.numbers() == [4]


async def test_what_is_given_up_before_its_turn_is_not_written(tmp_path: Path) -> None:
    """Nobody would learn that it was."""
    async with held(tmp_path) as (writer, _):
        await writer.ask(partial(insert, 1))
        (await writer.ask(partial(insert, 2))).cancel()
        await asyncio.sleep(0)
        first, second = await writer.go()
        assert first == 1
        assert isinstance(second, asyncio.CancelledError)
        assert await writer.numbers() == [1]


async def test_a_fault_of_this_program_is_told_as_it_is(tmp_path: Path) -> None:
    """It is no full disk, and nothing to the others."""
    async with held(tmp_path) as (writer, _):
        await writer.ask(lambda db: db.execute("INSERT INTO t VALUES (NULL)"))
        await writer.ask(partial(insert, 1))
        first, second = await writer.go()
        assert isinstance(first, sqlite3.IntegrityError)
        assert second == 1
