"""Several writes in one transaction: what is dear is to make it durable, and that is done for all at once."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any


class Write:
    """Something that is to be written.

    Args:
        function: Writes it.

    Attributes:
        done: Has what the function returned when that is durable.
    """

    def __init__(self, function: Callable[[sqlite3.Connection], Any]) -> None:
        self.function = function
        self.done: Future[Any] = Future()


def commit(db: sqlite3.Connection, writes: Sequence[Write]) -> None:
    """Carry out some writes, in their order, each as a whole or not at all, and tell each what came of it.

    One that fails is undone alone. When the transaction fails, all have failed.
    """
    writes = [write for write in writes if write.done.set_running_or_notify_cancel()]
    results: list[tuple[Write, Any]] = []
    try:
        with _transaction(db):
            for write in writes:
                try:
                    with _savepoint(db):
                        results.append((write, write.function(db)))
                except BaseException as error:
                    if not db.in_transaction:
                        raise  # SQLite has undone all of it
                    write.done.set_exception(error)
    except BaseException as error:  # noqa: BLE001 - whoever waits has to be told, whatever it is
        for write in writes:
            if not write.done.done():
                write.done.set_exception(error)
        return
    for write, result in results:
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


@contextlib.contextmanager
def _savepoint(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("SAVEPOINT one")
    try:
        yield
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK TO one")
        raise
    finally:
        if db.in_transaction:
            db.execute("RELEASE one")
