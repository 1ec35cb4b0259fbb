"""Brings the schema of a database to the version of this server, with Alembic."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import psycopg

from notebook_runner_server.runs.database import NewerHistoryError
from notebook_runner_server.runs.postgres.connection import shown

VERSION = "0001"
"""The newest script in `migrations/versions`."""

_logger = logging.getLogger(__name__)
_LOCK = 0x6E62
"""The key of the advisory lock: `nb`."""


def version(raw: psycopg.Connection[tuple[Any, ...]], store: str) -> str:
    """Return the version of the schema; empty: there is none.

    Raises:
        NewerHistoryError: A newer server wrote it.
    """
    if raw.execute("SELECT to_regclass('alembic_version')").fetchall() == [(None,)]:
        return ""
    found = "".join(str(number) for (number,) in raw.execute("SELECT version_num FROM alembic_version"))
    if found > VERSION:
        raise NewerHistoryError(shown(store), found, VERSION, "--store")
    return found


def migrate(store: str) -> None:
    """Bring the schema to the newest version, all of it or nothing; blocks.

    Raises:
        psycopg.Error: The role may not create tables, or something else is in the way.
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
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    scripts = ScriptDirectory.from_config(config)
    # SQLAlchemy gets no URL, so its messages have no password.
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(store), poolclass=NullPool
    )

    def upgrade(found: Any, _: Any) -> Any:
        return scripts._upgrade_revs("head", found)  # noqa: SLF001 - as alembic.command.upgrade does

    try:
        with engine.begin() as connection, EnvironmentContext(config, scripts, fn=upgrade) as environment:
            # Another server may migrate at the same time.
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
            environment.configure(connection=connection)
            environment.run_migrations()
    except DBAPIError as error:
        raise error.orig or error from error
    finally:
        engine.dispose()
    _logger.info("schema_upgraded", extra={"version": VERSION})
