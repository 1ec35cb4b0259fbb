"""The history in PostgreSQL: one connection writes, with group commit, and a pool of others reads.

Each transaction counts the commits of this server, in a row that goes when another server takes over. So the
writes of a server that was replaced are refused, and a server that lost its connection during a COMMIT learns
whether that one was carried out: it is neither lost nor repeated.

A write waits until the database is back, or the lease is lost (`lease`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool

from notebook_runner_server.errors import NotReadyError, ShuttingDownError, StorageFullError
from notebook_runner_server.runs import tables
from notebook_runner_server.runs.database import PendingWrite
from notebook_runner_server.runs.patience import SOON, patience
from notebook_runner_server.runs.postgres import lease, migrate
from notebook_runner_server.runs.postgres.connection import (
    DatabaseLostError,
    PostgresConnection,
    arguments,
    configure,
    connect,
    end_others,
    foreign_name,
    is_passing,
    is_pooled,
    shown,
    why,
)
from notebook_runner_server.runs.postgres.servers import ServerWatch
from notebook_runner_server.runs.replicas import DuplicateError

READERS = 4
"""How many connections read rows."""

CONTENT_READERS = 4
"""How many more connections read the contents of runs."""

OLDEST_POSTGRESQL = 13
"""The oldest version of PostgreSQL whose functions the schema uses."""

_CONNECT_SECONDS = 5.0

_REQUESTS = "runs_request_id_key"
"""The constraint that keeps request ids unique."""

_PAUSE = 0.1
"""Seconds between two attempts to reach the database."""

_REPEATABLE = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
"""A transaction was in the way of one of another server."""

_DURABLE = (
    "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
)
"""Lets this transaction be durable, also if the default of the role is another one. Only this one: a pooler
gives others the same connection."""

_logger = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")


class UnusableDatabaseError(RuntimeError):
    """The server cannot use the database."""


@dataclass(frozen=True, slots=True)
class PostgresOptions:
    """How a server uses a database.

    Attributes:
        store: The URL of the database, which may have a password.
        folder: The state folder of the server, which it has locked.
        lease_seconds: Seconds after which other servers may take over the runs of this one.
        workers: How many runs it executes at a time.
        files_bytes: Maximum size of the files of an ended run that are stored in the database.
        on_lost: Called with the reason when this server may no longer use the history, on any thread.
        listen: The URL of the same database without a pooler; empty: none is known.
        stopping: Set when the server is to stop, perhaps while it opens the database.
    """

    store: str
    folder: Path
    lease_seconds: float
    workers: int
    files_bytes: int
    on_lost: Callable[[str], object]
    listen: str = ""
    stopping: threading.Event = field(default_factory=threading.Event)


class PostgresDatabase:
    """A database on a PostgreSQL server.

    Args:
        options: How to use it.

    Attributes:
        server_id: The id of this server, another one in each process.
        is_pooled: Whether a pooler was on the way to it when it was opened.
    """

    def __init__(self, options: PostgresOptions) -> None:
        self._options = options
        self._store = options.store
        self.server_id = secrets.token_hex(8)
        self._pending: deque[_Write] = deque()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-write")
        self._reader = ThreadPoolExecutor(READERS, thread_name_prefix="store-read")
        self._pool: ConnectionPool[psycopg.Connection[tuple[Any, ...]]] | None = None
        self._raw: psycopg.Connection[tuple[Any, ...]] | None = None
        self._lease: lease.StoreLease | None = None
        self._number = 0
        self._committing = threading.Lock()
        self._closed = threading.Event()
        self._problem = ""
        self.is_pooled = False

    async def open(self, *, is_first: bool) -> None:
        """Open the database, bring its schema to the newest version, and take a lease.

        Raises:
            UnusableDatabaseError: It cannot be reached, or refuses this server.
            NewerHistoryError: A newer server has written the history; nothing was changed.
            OlderServersError: Older servers work, which the upgrade of the schema would stop.
            UpgradeBlockedError: Other transactions kept the upgrade from its locks for too long.
            OpeningStoppedError: The server is to stop.
        """
        del is_first
        await asyncio.get_running_loop().run_in_executor(self._writer, self._open)

    def _open(self) -> None:
        try:
            raw = connect(self._store, _CONNECT_SECONDS, self.server_id, "writes")
            with contextlib.ExitStack() as stack:
                stack.callback(raw.close)
                self._check(raw)
                self._set_up(raw)
                stack.pop_all()
        except psycopg.Error as error:
            raise UnusableDatabaseError(
                f"The store {shown(self._store)} cannot be used: {why(error)}"
            ) from error
        self._raw = raw
        # It reports each attempt; the log has one line for all.
        logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
        self._pool = ConnectionPool(
            self._store,
            kwargs={
                "autocommit": True,
                "cursor_factory": psycopg.RawCursor,
                **arguments(_CONNECT_SECONDS, self.server_id, "reads"),
            },
            configure=configure,
            min_size=1,
            max_size=READERS + CONTENT_READERS,
            name="store-read",
            # Its own attempts become rare; here each read makes one.
            reconnect_timeout=0.0,
            open=True,
        )

    def _check(self, raw: psycopg.Connection[tuple[Any, ...]]) -> None:
        found = raw.info.server_version // 10000
        if found < OLDEST_POSTGRESQL:
            raise UnusableDatabaseError(
                f"The store {shown(self._store)} needs PostgreSQL {OLDEST_POSTGRESQL} or newer (got {found})."
            )
        encoding = raw.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise UnusableDatabaseError(
                f"The store {shown(self._store)} needs a database with the encoding UTF8 (got {encoding})."
                " Create one with: createdb --encoding UTF8 --template template0"
            )
        name = foreign_name(raw, self.server_id)
        if name is not None:
            raise UnusableDatabaseError(
                f"The store {shown(self._store)} leads to a pooler that replaces the application_name of"
                f" connections (by {name!r}). Without it, the connections of a lost server cannot be found,"
                " and their locks would keep all servers from writing. Let the pooler pass it on, or"
                " connect past the pooler."
            )

    def _set_up(self, raw: psycopg.Connection[tuple[Any, ...]]) -> None:
        self.is_pooled = is_pooled(raw)
        if self.is_pooled:
            _logger.info("store_pooled", extra={"hints": bool(self._options.listen)})
        options = self._options
        place = lease.place_of(options.folder)
        if migrate.version(raw, self._store) < migrate.VERSION:
            watch = ServerWatch(self.server_id, place, options.lease_seconds * lease.OTHERS_SHARE)
            migrate.migrate(raw, self._store, watch, options.stopping)
        tables.check_schema(PostgresConnection(raw))
        holder = lease.take(raw, self._store, self.server_id, place, options.workers)
        self._lease = lease.StoreLease(self._store, holder, options.lease_seconds, options.on_lost)
        try:
            self._lease.start(raw)
        except BaseException:
            lease.release(raw, holder)
            raise

    @property
    def is_open(self) -> bool:
        """Whether `open` has returned."""
        return self._lease is not None

    @property
    def lease(self) -> lease.StoreLease:
        """The lease of this server, once the database is open."""
        assert self._lease is not None  # noqa: S101 - open() was called
        return self._lease

    async def close(self) -> None:
        """Close the database, and give up the lease."""
        self._closed.set()
        loop = asyncio.get_running_loop()
        if self._lease is not None:
            await asyncio.to_thread(self._lease.close)
        await loop.run_in_executor(self._writer, self._close_writer)
        if self._pool is not None:
            await asyncio.to_thread(self._pool.close)
        self._writer.shutdown()
        self._reader.shutdown(wait=False)

    def _close_writer(self) -> None:
        if self._raw is not None and self._lease is not None and not self._lease.lost:
            # Otherwise the lease runs out by itself.
            with contextlib.suppress(psycopg.Error):
                lease.release(self._raw, self._lease.holder)
        self._drop()

    @property
    def problem(self) -> str:
        """Why writes do not work now, in a sentence; empty: they do."""
        if self._problem or self._lease is None or not self._lease.problem:
            return self._problem
        return _unreachable(self._lease.problem)

    async def write(
        self, function: Callable[Concatenate[PostgresConnection, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Call a function in a transaction, and return its result when that is durable.

        Raises:
            StorageFullError: The database has no space; nothing is stored.
            ShuttingDownError: Another server may use the history now.
        """
        result: _T = await self._submit(_Write(lambda db: function(db, *args, **kwargs)), None)
        return result

    async def write_soon(
        self, function: Callable[Concatenate[PostgresConnection, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """As `write`, but give up soon.

        Raises:
            NotReadyError: The database cannot be reached now; nothing is stored.
        """
        if self.problem:
            raise _not_ready(self.problem)
        result: _T = await self._submit(_Write(lambda db: function(db, *args, **kwargs)), SOON)
        return result

    async def _submit(self, write: _Write, seconds: float | None) -> Any:
        self._pending.append(write)
        self._writer.submit(self._commit)
        done = asyncio.wrap_future(write.done)
        try:
            finished, _ = await asyncio.wait({done}, timeout=seconds)
            if not finished and self._withdraw(write):
                done.cancel()
                raise _not_ready(self.problem or _unreachable(f"no answer for {SOON:g} s"))
            result = await done
        except asyncio.CancelledError:
            done.cancel()
            raise
        except psycopg.errors.UniqueViolation as error:
            if error.diag.constraint_name != _REQUESTS:
                raise
            raise DuplicateError(why(error)) from error
        except psycopg.OperationalError as error:
            self._problem = f"The database cannot be written: {why(error)}."
            raise StorageFullError(self._problem) from error
        return result

    def _withdraw(self, write: _Write) -> bool:
        """Take a write back, unless it may already be durable."""
        with self._committing:
            write.is_withdrawn = not write.is_committing
        return write.is_withdrawn

    def _commit(self) -> None:
        """Commit all pending writes; runs on the writer's thread."""
        # Only this thread takes writes; those that arrive meanwhile are for the next time.
        pending = [self._pending.popleft() for _ in range(len(self._pending))]
        self._commit_all([write for write in pending if write.done.set_running_or_notify_cancel()])

    def _commit_all(self, writes: Sequence[_Write]) -> None:
        """Commit some writes in one transaction, in their order; if that fails, each in one of its own."""
        while writes := [write for write in writes if not write.is_withdrawn]:
            try:
                results = self._transact(writes)
            except _WithdrawnError:
                continue
            except DatabaseLostError as error:
                self._lose(str(error))
            except _REPEATABLE as error:
                # It was in the way of another server's transaction, and is repeated.
                _logger.warning("transaction_repeated", extra={"why": why(error)})
            except BaseException as error:  # noqa: BLE001 - the waiting call gets it, whatever it is
                if len(writes) == 1:
                    writes[0].done.set_exception(error)
                    return
                for write in writes:
                    self._commit_all([write])
                return
            else:
                self._problem = ""
                for write, result in zip(writes, results, strict=True):
                    write.done.set_result(result)
                return

    def _lose(self, reason: str) -> None:
        """Wait a moment after the connection was lost."""
        if not self._problem:
            _logger.error("database_lost", extra={"why": reason})
        self._problem = _unreachable(reason)
        self._drop()
        self._closed.wait(_PAUSE)

    def _transact(self, writes: Sequence[_Write]) -> list[Any]:
        """Carry out some writes in one transaction, and return their results when they are durable.

        Raises:
            _WithdrawnError: One of them was withdrawn; nothing of them is stored.
            DatabaseLostError: The database cannot be reached; nothing of them is stored.
            ShuttingDownError: Another server may use the history now.
        """
        raw = self._connected()
        number = self._number + 1
        try:
            results = self._execute(PostgresConnection(raw), writes, number)
        except BaseException as error:
            self._roll_back(error)
            raise
        with self._committing:
            is_whole = not any(write.is_withdrawn for write in writes)
            for write in writes:
                write.is_committing = is_whole
        try:
            raw.execute("COMMIT" if is_whole else "ROLLBACK")
        except psycopg.Error as error:
            if not is_passing(error, raw):
                self._withdrawable(writes)
                self._roll_back(error)
                raise
            if is_whole and self._is_committed(number, why(error)):
                self._number = number
                return results
            self._withdrawable(writes)
            raise DatabaseLostError(why(error)) from error
        if not is_whole:
            raise _WithdrawnError
        self._number = number
        return results

    def _withdrawable(self, writes: Sequence[_Write]) -> None:
        with self._committing:
            for write in writes:
                write.is_committing = False

    def _execute(self, db: PostgresConnection, writes: Sequence[_Write], number: int) -> list[Any]:
        # Statements whose results are not read do not wait for those before them.
        with db.raw.pipeline():
            db.raw.execute("BEGIN")
            db.raw.execute(_DURABLE)
            fence = db.raw.execute(
                "UPDATE server_commits SET number = $1 WHERE server_id = $2 AND number = $3",
                [number, self.lease.holder.server_id, number - 1],
            )
            results = [write.function(db) for write in writes]
        if not fence.rowcount:
            raise self._replaced(db.raw)
        return results

    def _roll_back(self, error: BaseException) -> None:
        """Roll back a transaction that failed.

        Raises:
            DatabaseLostError: It failed because the database cannot be reached.
        """
        raw = self._raw
        if isinstance(error, psycopg.Error) and is_passing(error, raw):
            raise DatabaseLostError(why(error)) from error
        if (
            raw is not None
            and not isinstance(error, psycopg.Error)
            and raw.info.transaction_status is TransactionStatus.INTRANS
        ):
            # A write has refused to continue, as most do that meet a write of another server.
            with contextlib.suppress(psycopg.Error):
                raw.execute("ROLLBACK")
                return
        # Not with ROLLBACK: psycopg takes the statements of a pipeline that failed for prepared ones, which
        # the database does not know.
        self._drop()

    def _is_committed(self, number: int, reason: str) -> bool:
        """Return whether a COMMIT whose answer was lost has been carried out, once that is known."""
        while True:
            self._lose(reason)
            try:
                raw = self._connected()
                # Locked, because the COMMIT may still be in progress.
                row = raw.execute(
                    "SELECT number FROM server_commits WHERE server_id = $1 FOR UPDATE",
                    [self.lease.holder.server_id],
                ).fetchone()
            except (DatabaseLostError, psycopg.OperationalError) as error:
                reason = why(error)
                continue
            if row is None:
                raise self._replaced(raw)
            is_committed: bool = row[0] == number
            _logger.info("commit_resolved", extra={"is_committed": is_committed})
            return is_committed

    def _connected(self) -> psycopg.Connection[tuple[Any, ...]]:
        """Return the connection for writes.

        Raises:
            DatabaseLostError: The database cannot be reached.
            ShuttingDownError: Another server may use the history now.
        """
        if self._closed.is_set() or self._lease is None or self._lease.lost:
            raise _replaced()
        if self._raw is None or self._raw.closed:
            try:
                raw = connect(self._store, _CONNECT_SECONDS, self.server_id, "writes")
                # The database may not know yet that it was lost.
                end_others(raw, self.server_id, "writes")
            except psycopg.Error as error:
                raise DatabaseLostError(why(error)) from error
            self._raw = raw
        return self._raw

    def _drop(self) -> None:
        if self._raw is not None:
            self._raw.close()
        self._raw = None

    def _replaced(self, raw: psycopg.Connection[tuple[Any, ...]]) -> ShuttingDownError:
        self.lease.lose(migrate.why_replaced(raw, self._store))
        return _replaced()

    async def read(
        self, function: Callable[Concatenate[PostgresConnection, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Call a function that reads, and return its result.

        Raises:
            NotReadyError: The database cannot be reached for as long as this task is patient.
        """
        seconds = patience.get()
        reading = asyncio.get_running_loop().run_in_executor(
            self._reader, lambda: self.read_now(lambda db: function(db, *args, **kwargs), seconds)
        )
        if seconds == float("inf"):
            return await reading
        # If the caller leaves before the answer, no other code retrieves the exception.
        reading.add_done_callback(lambda late: late.cancelled() or late.exception())
        # A database that does not answer must not keep the caller waiting.
        finished, _ = await asyncio.wait({reading}, timeout=seconds + _PAUSE)
        if not finished:
            raise _not_ready(self.problem or _unreachable(f"no answer for {seconds:g} s"))
        return await reading

    def read_now(self, function: Callable[[PostgresConnection], _T], seconds: float | None = None) -> _T:
        """Call a function that reads, and return its result; blocks.

        Args:
            function: Reads; may be called again.
            seconds: How long to wait for the database; None: as long as this task is patient.

        Raises:
            NotReadyError: The database cannot be reached in that time.
        """
        assert self._pool is not None  # noqa: S101 - open() was called
        deadline = time.monotonic() + (patience.get() if seconds is None else seconds)
        while True:
            raw: psycopg.Connection[tuple[Any, ...]] | None = None
            try:
                with self._pool.connection(timeout=1.0) as raw:
                    return function(PostgresConnection(raw))
            except psycopg.Error as error:
                if not is_passing(error, raw) and not isinstance(error, _REPEATABLE):
                    raise
                if self._closed.is_set() or (self._lease is not None and self._lease.lost):
                    raise _replaced() from error
                if time.monotonic() > deadline:
                    raise _not_ready(self.problem or _unreachable(why(error))) from error
            time.sleep(_PAUSE)

    async def run_in_order(self, function: Callable[[], _T]) -> _T:
        """Call a function after all writes that are pending now."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, function)

    async def touch(self) -> None:
        """Write without a change, to find out whether writes work.

        Raises:
            NotReadyError: They do not.
        """
        await self._submit(_Write(lambda _: None), SOON)

    async def truncate_log(self) -> None:
        """Leave it to the database when the space of what was deleted is used again."""


class _WithdrawnError(Exception):
    """A write was withdrawn before the COMMIT of its transaction was sent."""


class _Write(PendingWrite):
    """A write that can be withdrawn until its COMMIT is sent."""

    is_withdrawn = False
    is_committing = False


def _unreachable(reason: str) -> str:
    return f"The database cannot be reached: {reason.rstrip('.?')}."


def _not_ready(problem: str) -> NotReadyError:
    return NotReadyError(f"{problem} Try again later.")


def _replaced() -> ShuttingDownError:
    return ShuttingDownError("The server may no longer use its history, and stops. Try again later.")
