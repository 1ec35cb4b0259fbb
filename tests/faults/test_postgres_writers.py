"""The connections with which servers write to one database: what others do must not cost them these."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from notebook_runner_server.runs.postgres.connection import PostgresConnection
from notebook_runner_server.runs.postgres.database import PostgresDatabase, PostgresOptions
from notebook_runner_server.runs.postgres.hints import Hints
from notebook_runner_server.runs.postgres.migrate import VERSION
from notebook_runner_server.runs.postgres.replicas import PostgresReplicas
from notebook_runner_server.runs.postgres.servers import ServerRecord
from notebook_runner_server.runs.replicas import ClaimedError
from tests.support.postgres import Postgres

pytestmark = [pytest.mark.postgres]

BIG = 2**20


@asynccontextmanager
async def _opened(url: str, folder: Path) -> AsyncIterator[PostgresDatabase]:
    folder.mkdir()
    database = PostgresDatabase(PostgresOptions(url, folder, 600.0, 1, BIG, pytest.fail))
    await database.open(is_first=True)
    try:
        yield database
    finally:
        await database.close()


def _state(db: PostgresConnection) -> list[Any]:
    text = "SELECT pg_backend_pid(), expired_change FROM history"
    return db.execute(text).fetchall()


def _refuse(db: PostgresConnection) -> None:
    db.execute("UPDATE history SET expired_change = 7")
    raise ClaimedError


async def test_a_write_that_refuses_leaves_nothing_and_keeps_the_connection(
    postgres: Postgres, tmp_path: Path
) -> None:
    """Servers lose claims to each other all the time, and must not connect anew after each."""
    async with _opened(postgres.url(postgres.create_database()), tmp_path / "state") as database:
        before = await database.write(_state)
        for _ in range(3):
            with pytest.raises(ClaimedError):
                await database.write(_refuse)
            assert await database.write(_state) == before


async def test_a_server_that_is_alive_after_all_keeps_its_connection(
    postgres: Postgres, tmp_path: Path
) -> None:
    """Another one that was suspended takes it for gone until it looks again."""
    url = postgres.url(postgres.create_database())
    async with _opened(url, tmp_path / "alive") as alive, _opened(url, tmp_path / "late") as late:
        before = await alive.write(_state)
        holder = alive.lease.holder
        seen = ServerRecord(holder.server_id, holder.epoch, "", holder.place, 1, 1, False, VERSION)
        replicas = PostgresReplicas(late, Hints(url, late.server_id))
        for renewals in (-1, -2):
            assert await late.write(replicas._take_over, [replace(seen, renewals=renewals)]) == []
        assert await alive.write(_state) == before
        assert await late.write(lambda db: db.execute("SELECT COUNT(*) FROM servers").fetchone()) == (2,)
