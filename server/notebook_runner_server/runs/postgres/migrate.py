"""Brings the schema of a database to the version of this server, with Alembic, while older servers work.

Each script in `migrations/versions` says with `oldest_version` which servers can use the schema after it:
those whose own version is at least that one. The database keeps it, so an older server learns whether it may
open a schema that it does not know.

An upgrade waits for no lock for long, and locks the tables for no longer than that, because older servers
write meanwhile. One that they would not survive is refused as long as they work.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from notebook_runner_server.runs.database import NewerHistoryError
from notebook_runner_server.runs.postgres.connection import arguments, end_gone, shown, why

VERSION = "0001"
"""The newest script in `migrations/versions`."""

SCRIPTS = Path(__file__).with_name("migrations")
"""Alembic's folder, with the scripts in `versions`."""

LOCK = 0x6E62
"""The key of the advisory lock of an upgrade: `nb`. Who takes a lease shares it."""

LOCK_SECONDS = 0.5
"""How long an upgrade waits for a lock, and the statements of other servers behind it: less than PostgreSQL
waits before it looks for a deadlock, which would end one of theirs."""

STATEMENT_SECONDS = 1.0
"""How long a statement of an upgrade may take while other servers work: with the wait for its lock, less than
the time after which they refuse calls (`patience.SOON`)."""

_SLOW_ATTEMPTS = 3
"""After so many attempts, a statement that takes longer is not just slow at the moment."""

_IDLE_SECONDS = 10.0
"""When the database rolls back an upgrade whose server has stopped in the middle of it."""

_PATIENCE = 60.0
"""Seconds after which an upgrade that gets no lock fails."""

_PAUSE = 2.0
"""Seconds between two attempts, in which other servers write."""

_LOOK_SECONDS = 0.2
_CONNECT_SECONDS = 5.0

_logger = logging.getLogger(__name__)


class OlderServersError(RuntimeError):
    """The schema cannot be upgraded while older servers work; nothing was changed."""


class _Server(NamedTuple):
    server_id: str
    name: str
    place: str
    renewals: int


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
    raw: psycopg.Connection[tuple[Any, ...]], store: str, server_id: str, place: str, silence: float
) -> None:
    """Bring the schema to the newest version, all of it or nothing; blocks.

    Args:
        raw: A connection to the database.
        store: The URL of the database.
        server_id: This server.
        place: The state folder of this server: an earlier server of this folder is dead.
        silence: Seconds after which a server that has not renewed its lease is gone.

    Raises:
        OlderServersError: Older servers work, which the upgrade would stop.
        NewerHistoryError: A newer server has upgraded the schema meanwhile, and this one cannot use it.
        psycopg.Error: The role may not create tables, or something else is in the way.
    """
    upgrade, oldest = _load(server_id)
    # Servers of versions before this one have to be gone.
    barred, reason = oldest, f"only servers of version {oldest} or newer can use them afterwards"
    end, slow = time.monotonic() + _PATIENCE, 0
    while True:
        gone = _gone(raw, store, barred, reason, place, silence)
        try:
            is_done = upgrade(store, barred, gone)
        except _ReturnedError:
            continue
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
            if time.monotonic() > end:
                raise
            _logger.warning("schema_upgrade_waits", extra={"why": why(error)})
        except psycopg.errors.QueryCanceled as error:
            slow += 1
            _logger.warning("schema_upgrade_waits", extra={"why": why(error)})
            if slow == _SLOW_ATTEMPTS:
                barred = VERSION
                reason = f"a statement takes longer than {STATEMENT_SECONDS:g} s, in which they cannot write"
        else:
            if is_done:
                _logger.info("schema_upgraded", extra={"version": VERSION})
            return
        time.sleep(_PAUSE)


def _load(server_id: str) -> tuple[Callable[[str, str, Sequence[_Server]], bool], str]:
    """Return what upgrades a database, and the oldest version of servers that can use it afterwards.

    The former returns whether there was something to do.
    """
    # It logs each of its own parts.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # Slow to import, and not needed for a schema that is up to date.
    from alembic.config import Config  # noqa: PLC0415 - see the comment
    from alembic.runtime.environment import EnvironmentContext  # noqa: PLC0415 - as above
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - as above
    from sqlalchemy import create_engine  # noqa: PLC0415 - as above
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415 - as above
    from sqlalchemy.pool import NullPool  # noqa: PLC0415 - as above

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    scripts = ScriptDirectory.from_config(config)
    oldest: str = scripts.get_revision(VERSION).module.oldest_version

    def revisions(found: Any, _: Any) -> Any:
        return scripts._upgrade_revs(VERSION, found)  # noqa: SLF001 - as alembic.command.upgrade does

    def upgrade(store: str, barred: str, gone: Sequence[_Server]) -> bool:
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
                if not _prepare(driver, store, barred, gone):
                    return False
                environment.configure(connection=connection)
                environment.run_migrations()
                psycopg.RawCursor(driver).execute("UPDATE history SET oldest_version = $1", [oldest])
        except DBAPIError as error:
            raise error.orig or error from error
        finally:
            engine.dispose()
        return True

    return upgrade, oldest


class _ReturnedError(Exception):
    """A server that has to be gone works again, or has just started."""


def _prepare(connection: psycopg.Connection[Any], store: str, barred: str, gone: Sequence[_Server]) -> bool:
    """Let all other servers wait, as the first step of an upgrade; return whether there is one to do.

    Raises:
        _ReturnedError: A server that has to be gone is not.
    """
    limits = {
        "lock_timeout": LOCK_SECONDS,
        "idle_in_transaction_session_timeout": _IDLE_SECONDS,
        # 0: none, whatever the role's default is.
        "statement_timeout": STATEMENT_SECONDS if barred < VERSION else 0.0,
    }
    cursor = psycopg.RawCursor(connection)
    for name, seconds in limits.items():
        cursor.execute("SELECT set_config($1, $2, true)", [name, f"{seconds * 1000:.0f}ms"])
    # Another server may upgrade at the same time, or take a lease.
    cursor.execute("SELECT pg_advisory_xact_lock($1)", [LOCK])
    found = version(connection, store)
    if found >= VERSION:
        return False
    if found:
        # The first statement of each transaction that writes needs this lock. So none is in progress, which
        # could hold other locks and wait for one of the upgrade's.
        cursor.execute("LOCK TABLE server_commits IN EXCLUSIVE MODE")
        for one in gone:
            known = [one.server_id, one.renewals]
            cursor.execute("DELETE FROM servers WHERE server_id = $1 AND renewals = $2", known)
        if _older(cursor, barred):
            raise _ReturnedError
    return True


def _older(cursor: psycopg.Cursor[Any], barred: str) -> list[_Server]:
    """Return the servers of versions before one, those that are gone and not replaced yet too."""
    cursor.execute(
        "SELECT server_id, name, place, renewals FROM servers WHERE schema_version < $1 ORDER BY epoch",
        [barred],
    )
    return [_Server(*row) for row in cursor.fetchall()]


def _gone(
    raw: psycopg.Connection[Any], store: str, barred: str, reason: str, place: str, silence: float
) -> list[_Server]:
    """Return the servers of versions before one, which are gone, once that is known.

    Raises:
        OlderServersError: Some of them work.
    """
    found = version(raw, store)
    if not found:
        return []
    gone = {one.server_id: one for one in _older(raw.cursor(), barred)}
    working: list[str] = []
    end = time.monotonic() + silence
    unknown = {server_id for server_id, one in gone.items() if one.place != place}
    while unknown and time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)
        rows = {one.server_id: one for one in _older(raw.cursor(), barred)}
        for server_id in sorted(unknown):
            if server_id not in rows:
                # It has ended.
                unknown.remove(server_id)
            elif rows[server_id].renewals != gone[server_id].renewals:
                unknown.remove(server_id)
                working.append(gone[server_id].name)
    if working:
        raise OlderServersError(
            f"The tables in {shown(store)} cannot be upgraded from version {found} to {VERSION} while older"
            f" servers work, because {reason}: {', '.join(sorted(working))}. Stop these servers, then start"
            " this one again. It has changed nothing."
        )
    for one in gone.values():
        # A transaction in which one has stopped would keep its locks.
        end_gone(raw, one.server_id, one.renewals)
    return list(gone.values())
