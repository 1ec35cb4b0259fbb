"""Brings the schema of a database to the version of this server, with Alembic, while older servers work.

Each script in `migrations/versions` says with `oldest_version` which servers can use the schema after it:
those whose own version is at least that one. The database keeps it, so an older server learns whether it may
open a schema that it does not know.

Older servers cannot write from the moment in which an upgrade asks for its first lock of the tables. So it
waits for each lock only for a moment, and ends soon after it has that one, or is rolled back and tried again
later. An upgrade that older servers would not survive is refused as long as they work.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from notebook_runner_server.runs.database import NewerHistoryError, OpeningStoppedError
from notebook_runner_server.runs.postgres.connection import arguments, end_gone, shown, why
from notebook_runner_server.runs.postgres.servers import RECORDS, ServerRecord, ServerWatch

VERSION = "0001"
"""The newest script in `migrations/versions`."""

SCRIPTS = Path(__file__).with_name("migrations")
"""Alembic's folder, with the scripts in `versions`."""

LOCK_KEY = 0x6E62
"""The key of the advisory lock of an upgrade: `nb`. Who takes a lease shares it."""

LOCK_TIMEOUT = 0.5
"""How long an upgrade waits for a lock, and the statements of other servers behind it: less than PostgreSQL
waits before it looks for a deadlock, which would end one of theirs."""

TRANSACTION_TIMEOUT = 2.0
"""How long an upgrade may take while other servers work, from its first lock of the tables on: with the wait
for that lock, less than the time after which they refuse calls (`patience.SOON`)."""

IDLE_TIMEOUT = 2.0
"""When the database rolls back the transaction of a server that has stopped in the middle of it."""

_VACUUM_TIMEOUT = 2.5
"""How long an upgrade waits for an autovacuum of a table, which keeps no server from writing: PostgreSQL
cancels one that is in the way for a second (`deadlock_timeout`)."""

_SLOW_ATTEMPTS = 3
"""After so many attempts, an upgrade that takes longer is not just slow at the moment."""

_PATIENCE = 60.0
"""Seconds after which an upgrade that gets no lock fails."""

_PAUSE = 2.0
"""Seconds between two attempts, in which other servers write."""

_LOOK_SECONDS = 0.2
_CONNECT_SECONDS = 5.0

_logger = logging.getLogger(__name__)


class OlderServersError(RuntimeError):
    """The schema cannot be upgraded while older servers work; nothing was changed.

    Args:
        store: The database, as shown to the operator.
        found: The version of its schema.
        names: Those of the servers.
        oldest: The version of the oldest servers that can use the schema afterwards; empty: the older ones
            could use it, and cannot wait for it.
    """

    def __init__(self, store: str, found: str, names: Sequence[str], oldest: str) -> None:
        reason = (
            f"only servers of version {oldest} or newer can use them afterwards"
            if oldest
            else f"it takes longer than {TRANSACTION_TIMEOUT:g} s, in which they cannot write"
        )
        super().__init__(
            f"Cannot upgrade the tables in {store} from schema version {found} to {VERSION} while older"
            f" servers run ({', '.join(names)}): {reason}. Stop them, then start this server again."
            " Nothing was changed."
        )


class UpgradeBlockedError(RuntimeError):
    """Other transactions kept an upgrade of the schema from its locks for too long; nothing was changed.

    Args:
        store: The database, as shown to the operator.
        found: The version of its schema; empty: it does not exist.
        seconds: For how long.
        reason: What the last attempt met.
    """

    def __init__(self, store: str, found: str, seconds: float, reason: str) -> None:
        super().__init__(
            f"Cannot upgrade the tables in {store} from schema version {found or 'none'} to {VERSION}: other"
            f" transactions were in the way for {seconds:.0f} s ({reason}). Find them in pg_stat_activity,"
            " end them or wait for their end, then start this server again. Nothing was changed."
        )


def version(raw: psycopg.Connection[tuple[Any, ...]], store: str) -> str:
    """Return the version of the schema; empty: it does not exist.

    Raises:
        NewerHistoryError: A newer server wrote it, and this one cannot use it.
    """
    if raw.execute("SELECT to_regclass('alembic_version')").fetchall() == [(None,)]:
        return ""
    text = "SELECT version_num, oldest_version FROM alembic_version CROSS JOIN history"
    rows: list[tuple[str, str]] = raw.execute(text).fetchall()
    found, oldest = rows[0] if rows else ("", "")
    if oldest > VERSION:
        raise NewerHistoryError(shown(store), found, VERSION, "--store")
    return found


def why_replaced(raw: psycopg.Connection[tuple[Any, ...]], store: str) -> str:
    """Return why this server no longer has its lease, in a sentence."""
    try:
        version(raw, store)
    except NewerHistoryError as error:
        return str(error)
    except psycopg.Error:
        pass
    return f"Another server has taken over the runs of this one in {shown(store)}."


def migrate(
    raw: psycopg.Connection[tuple[Any, ...]], store: str, watch: ServerWatch, stopping: threading.Event
) -> None:
    """Bring the schema to the newest version, all of it or nothing; blocks.

    Args:
        raw: A connection to the database.
        store: The URL of the database.
        watch: Finds out which servers are gone.
        stopping: Set when this server is to stop.

    Raises:
        OlderServersError: Older servers work, which the upgrade would stop.
        UpgradeBlockedError: Other transactions were in the way for too long.
        OpeningStoppedError: This server is to stop, and has not upgraded the schema.
        NewerHistoryError: A newer server has upgraded the schema meanwhile, and this one cannot use it.
        psycopg.Error: The role may not create tables, or something else is in the way.
    """
    upgrade, oldest = _load(watch.server_id)
    begun, slow, is_blocked = time.monotonic(), 0, False
    while not stopping.is_set():
        found = version(raw, store)
        # Servers of versions before this one have to be gone.
        barred = oldest if slow < _SLOW_ATTEMPTS else VERSION
        gone = _find_gone(raw, watch, barred, stopping, with_all=is_blocked) if found else []
        working = sorted(one.name for one in watch.others if one.schema_version < barred)
        if working:
            raise OlderServersError(shown(store), found, working, oldest if barred == oldest else "")
        try:
            is_done = upgrade(store, barred, gone)
        except (psycopg.Error, _TooSlowError, _ServerActiveError) as error:
            if isinstance(error, psycopg.errors.QueryCanceled | _TooSlowError) and barred < VERSION:
                slow += 1
            elif not _is_in_the_way(error):
                raise
            elif (seconds := time.monotonic() - begun) > _PATIENCE:
                raise UpgradeBlockedError(shown(store), found, seconds, why(error)) from error
            else:
                # Perhaps by a transaction of a server that is gone.
                is_blocked = True
            _logger.warning("schema_upgrade_waits", extra={"why": why(error)})
        else:
            if is_done:
                _logger.info("schema_upgraded", extra={"version": VERSION})
            return
        stopping.wait(_PAUSE)
    raise OpeningStoppedError


def _load(server_id: str) -> tuple[Callable[[str, str, Sequence[ServerRecord]], bool], str]:
    """Return what upgrades a database, and the oldest version of servers that can use it afterwards.

    The former returns whether there was something to do.
    """
    # It logs each of its own parts.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # Slow to import, and not needed for a schema that is up to date.
    from alembic.config import Config  # noqa: PLC0415 - see the comment
    from alembic.runtime.environment import EnvironmentContext  # noqa: PLC0415 - as above
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - as above
    from sqlalchemy import create_engine, event  # noqa: PLC0415 - as above
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415 - as above
    from sqlalchemy.pool import NullPool  # noqa: PLC0415 - as above

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    scripts = ScriptDirectory.from_config(config)
    oldest: str = scripts.get_revision(VERSION).module.oldest_version

    def revisions(found: Any, _: Any) -> Any:
        return scripts._upgrade_revs(VERSION, found)  # noqa: SLF001 - as alembic.command.upgrade does

    def upgrade(store: str, barred: str, gone: Sequence[ServerRecord]) -> bool:
        # SQLAlchemy gets no URL, so its messages have no password.
        engine = create_engine(
            "postgresql+psycopg://",
            creator=lambda: psycopg.connect(store, **arguments(_CONNECT_SECONDS, server_id, "upgrade")),
            poolclass=NullPool,
        )
        try:
            with (
                engine.begin() as connection,
                EnvironmentContext(config, scripts, fn=revisions) as environment,
            ):
                driver: Any = connection.connection.driver_connection
                found = _prepare(driver, store)
                if found >= VERSION:
                    return False
                deadline = time.monotonic() + TRANSACTION_TIMEOUT

                def limit(*_: object) -> None:
                    if found and barred < VERSION:
                        _limit_statement(driver, deadline)

                if found:
                    _lock_out(driver, barred, gone)
                event.listen(connection, "before_cursor_execute", limit)
                environment.configure(connection=connection)
                environment.run_migrations()
                limit()
                psycopg.RawCursor(driver).execute("UPDATE history SET oldest_version = $1", [oldest])
        except DBAPIError as error:
            raise error.orig or error from error
        finally:
            engine.dispose()
        return True

    return upgrade, oldest


class _ServerActiveError(Exception):
    """A server that has to be gone works again, or has just started."""

    def __init__(self) -> None:
        super().__init__("an older server has just started or works again")


class _TooSlowError(Exception):
    """An upgrade takes longer than other servers can wait."""

    def __init__(self) -> None:
        super().__init__(f"it took longer than {TRANSACTION_TIMEOUT:g} s while older servers work")


def _is_in_the_way(error: Exception) -> bool:
    """Return whether another attempt may succeed: something was locked, or the connection is lost."""
    if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
        return True
    return isinstance(
        error,
        _ServerActiveError
        | psycopg.errors.LockNotAvailable
        | psycopg.errors.DeadlockDetected
        | psycopg.errors.IdleInTransactionSessionTimeout,
    )


def _set(cursor: psycopg.Cursor[Any], name: str, seconds: float) -> None:
    """Set a time limit for the rest of a transaction; zero: none, whatever the default of the role is."""
    cursor.execute("SELECT set_config($1, $2, true)", [name, f"{seconds * 1000:.0f}ms"])


def limit_waits(cursor: psycopg.Cursor[Any]) -> None:
    """Prepare a transaction for the advisory lock: it may wait long, and must not stop holding it."""
    _set(cursor, "idle_in_transaction_session_timeout", IDLE_TIMEOUT)
    # The upgrade of another server may take long.
    _set(cursor, "statement_timeout", 0.0)
    _set(cursor, "lock_timeout", 0.0)


def _prepare(driver: psycopg.Connection[Any], store: str) -> str:
    """Keep other servers from upgrading, and from taking leases; return the version of the schema."""
    cursor = psycopg.RawCursor(driver)
    limit_waits(cursor)
    cursor.execute("SELECT pg_advisory_xact_lock($1)", [LOCK_KEY])
    found = version(driver, store)
    if found and found < VERSION:
        _end_vacuums(cursor)
    return found


def _end_vacuums(cursor: psycopg.Cursor[Any]) -> None:
    """Let autovacuum leave all tables: one is cancelled only for a transaction that waits for a while."""
    _set(cursor, "lock_timeout", _VACUUM_TIMEOUT)
    cursor.execute(
        "SELECT one.relname FROM pg_class AS one JOIN pg_class AS known USING (relnamespace, relowner)"
        " WHERE known.oid = to_regclass('alembic_version') AND one.relkind = 'r' ORDER BY one.relname"
    )
    tables = sql.SQL(", ").join(sql.Identifier(name) for (name,) in cursor.fetchall())
    cursor.execute(sql.SQL("LOCK TABLE {} IN SHARE UPDATE EXCLUSIVE MODE").format(tables))


def _lock_out(driver: psycopg.Connection[Any], barred: str, gone: Sequence[ServerRecord]) -> None:
    """Let all other servers wait, and those that are gone forever.

    Raises:
        _ServerActiveError: A server that has to be gone is not.
    """
    cursor = psycopg.RawCursor(driver)
    _set(cursor, "lock_timeout", LOCK_TIMEOUT)
    # The first statement of each transaction that writes needs this lock. So none is in progress, which could
    # hold other locks and wait for one of the upgrade's.
    cursor.execute("LOCK TABLE server_commits IN EXCLUSIVE MODE")
    for one in gone:
        known = [one.server_id, one.renewals]
        cursor.execute("DELETE FROM servers WHERE server_id = $1 AND renewals = $2", known)
    if any(one.schema_version < barred for one in _read(cursor)):
        raise _ServerActiveError


def _limit_statement(driver: psycopg.Connection[Any], deadline: float) -> None:
    """Let the next statement take no longer than until a moment of the monotonic clock.

    Raises:
        _TooSlowError: It is later than that.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise _TooSlowError
    # Not zero, which would be no limit.
    _set(psycopg.RawCursor(driver), "statement_timeout", max(left, 0.001))


def _read(cursor: psycopg.Cursor[Any]) -> list[ServerRecord]:
    cursor.execute(RECORDS)
    return [ServerRecord(*row) for row in cursor.fetchall()]


def _find_gone(
    raw: psycopg.Connection[Any],
    watch: ServerWatch,
    barred: str,
    stopping: threading.Event,
    *,
    with_all: bool,
) -> list[ServerRecord]:
    """Find out which servers are gone, and end their connections; return those of versions before one.

    Args:
        raw: A connection to the database.
        watch: Knows the servers afterwards.
        barred: The version.
        stopping: Set when this server is to stop.
        with_all: Find it out of servers of other versions, too.

    Raises:
        OpeningStoppedError: This server is to stop.
    """
    watch.see(_read(raw.cursor()))
    while any(with_all or one.schema_version < barred for one in watch.unknown):
        if stopping.wait(_LOOK_SECONDS):
            raise OpeningStoppedError
        watch.see(_read(raw.cursor()))
    for one in watch.gone:
        # A transaction in which it has stopped would keep its locks.
        end_gone(raw, one.server_id, one.renewals)
    return [one for one in watch.gone if one.schema_version < barred]
