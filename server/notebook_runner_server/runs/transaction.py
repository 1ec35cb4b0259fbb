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
