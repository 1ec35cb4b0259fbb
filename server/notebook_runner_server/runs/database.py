"""The interface of the store's database: SQLite (`sqlite`) or PostgreSQL (`postgres`).

Functions that read or write get a connection. Their SQL is the same for both: parameters are marked with `?`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Cursor(Protocol):
    """The result of a statement."""

    @property
    def rowcount(self) -> int:
        """How many rows the statement has changed."""

    def fetchone(self) -> Any:
        """Return the next row; None: there is none."""

    def fetchall(self) -> list[Any]:
        """Return all rows that are left."""

    def __iter__(self) -> Iterator[Any]: ...

    def close(self) -> None:
        """Drop the rows that are left."""


class Connection(Protocol):
    """A connection to a database, as functions get it that read or write."""

    @property
    def last_change(self) -> str:
        """The number of the newest change, also if its row is gone, as SQL for a query of `history`."""

    @property
    def rows_at_once(self) -> int:
        """How many rows a query that may stop early asks for first."""

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Cursor:
        """Execute a statement."""

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> object:
        """Execute a statement once for each of some parameters."""

    def snapshot(self) -> AbstractContextManager[None]:
        """Let several statements see the same state of the database."""


class Database(Protocol):
    """A database that holds the history."""

    @property
    def problem(self) -> str:
        """Why writes do not work now, in a sentence; empty: they do."""

    async def open(self, *, is_first: bool) -> None:
        """Open the database.

        Args:
            is_first: Whether the history may be new.
        """

    async def close(self) -> None:
        """Close the database."""

    async def write(
        self, function: Callable[Concatenate[Connection, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Call a function in a transaction, and return its result when that is durable.

        Group commit: writes that arrive during a transaction share the next one.

        Args:
            function: Writes; may be called again after a rollback.
            *args: Its arguments.
            **kwargs: The same.

        Raises:
            StorageFullError: It could not be written; nothing of it is stored.
        """

    async def write_soon(
        self, function: Callable[Concatenate[Connection, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """As `write`, but give up soon if the database is not available, which `write` would wait for.

        Raises:
            StorageFullError: It could not be written; nothing of it is stored.
            NotReadyError: The same; the database is not available now.
        """

    async def read(
        self, function: Callable[Concatenate[Connection, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Call a function that reads, and return its result.

        Raises:
            NotReadyError: The database is not available now.
        """

    async def run_in_order(self, function: Callable[[], _T]) -> _T:
        """Call a function after all writes that are pending now."""

    async def touch(self) -> None:
        """Write without a change, to find out whether writes work.

        Raises:
            RunnerError: They do not.
        """

    async def truncate_log(self) -> None:
        """Remove what was deleted from the database's files, as far as that is the server's to do."""


class NewerHistoryError(RuntimeError):
    """A newer server wrote the history.

    Args:
        history: The history, as shown to the operator.
        version: Its version.
        newest: The newest version that this server supports.
        setting: The setting that chooses another history.
    """

    def __init__(self, history: object, version: object, newest: object, setting: str) -> None:
        super().__init__(
            f"The history {history} has version {version}, but this server supports versions up to {newest}. "
            f"Start the newer server that wrote it, or choose another {setting}."
        )


class OpeningStoppedError(RuntimeError):
    """The server was to stop while it opened its history."""

    def __init__(self) -> None:
        super().__init__("The server was stopped before its history was open. Nothing was changed.")


class PendingWrite:
    """A write that waits for its transaction.

    Args:
        function: Writes; may be called again after a rollback.

    Attributes:
        done: The function's result, once it is durable.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.done: Future[Any] = Future()
