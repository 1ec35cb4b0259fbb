"""Servers behind a pooler that gives each transaction another connection of a few.

What callers see there, `tests/e2e/test_replicas.py` checks.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.runs.database import Connection
from notebook_runner_server.runs.postgres.connection import PostgresConnection
from notebook_runner_server.runs.postgres.database import (
    PostgresDatabase,
    PostgresOptions,
    UnusableDatabaseError,
)
from notebook_runner_server.runs.postgres.hints import CHANNEL, Hints
from notebook_runner_server.runs.replicas import Topic
from tests.faults.history import Told
from tests.support.calls import finish, inline, perform, start, texts
from tests.support.cutting_proxy import CuttingProxy
from tests.support.database_server import (
    LONG_LEASE,
    SECONDS,
    CountingRun,
    DatabaseServer,
    until,
    until_more,
)
from tests.support.killable import RUN_MARK, gone, new_mark, remains
from tests.support.pgbouncer import PgBouncer
from tests.support.postgres import ROLE, Postgres
from tests.support.postgres_proxy import PLAIN, PostgresProxy
from tests.support.processes import stopped
from tests.support.server import STORE_LISTEN

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.process_pool("a history in PostgreSQL excludes a cluster"),
]

# Short enough to wait for, and long enough for a server on a busy machine.
LEASE = 4.0


def _listening(postgres: Postgres, database: str) -> int:
    """How many connections of servers listen for hints."""
    with postgres.admin(database) as db:
        text = "SELECT FROM pg_stat_activity WHERE datname = %s AND query = %s"
        return len(db.execute(text, [database, f"LISTEN {CHANNEL}"]).fetchall())


def _workers(server: DatabaseServer) -> int:
    """How many workers a server knows of, at all servers."""
    return server.stub.Info(pb.InfoRequest(), timeout=SECONDS).workers


@pytest.mark.parametrize("is_told", [True, False])
def test_a_server_listens_where_it_is_told(
    postgres: Postgres, pgbouncer: PgBouncer, tmp_path: Path, is_told: bool
) -> None:
    """Past the pooler if it knows the way; otherwise not at all. In either case it tells the others."""
    database = postgres.create_database()
    environment = {STORE_LISTEN: postgres.url(database)} if is_told else {}
    url = pgbouncer.url(database)
    with (
        DatabaseServer(tmp_path / "one", url, environment=environment) as one,
        DatabaseServer(tmp_path / "two", url, environment=environment) as two,
        psycopg.connect(postgres.url(database), autocommit=True) as listener,
    ):
        for server in (one, two):
            assert server.logged("store_pooled")[0]["hints"] is is_told
            until(lambda server=server: _workers(server) == 2, server.tail)  # type: ignore[misc]
        listener.execute(f"LISTEN {CHANNEL}".encode())
        run = start(one.stub, inline("print('hello')"))
        assert next(listener.notifies(timeout=SECONDS), None) is not None
        assert texts(finish(two.stub, run.run_id).events) == "hello\n"
        assert _listening(postgres, database) == 2 * is_told + 1


def test_a_server_without_a_pooler_is_told_from_one_with(postgres: Postgres, tmp_path: Path) -> None:
    """It prepares its statements, and listens where it writes."""
    database = postgres.create_database()
    with DatabaseServer(tmp_path / "state", postgres.url(database)) as server:
        perform(server.stub, inline("1"))
        assert not server.said("store_pooled")
        assert _listening(postgres, database) == 1


def test_a_server_that_stood_still_past_its_lease_is_fenced(pgbouncer: PgBouncer, tmp_path: Path) -> None:
    """Its run is interrupted by another one, and nothing that it does later is written."""
    url, run, mark = pgbouncer.url(pgbouncer.create_database()), CountingRun(tmp_path), new_mark()
    run.request.environment[RUN_MARK] = mark
    with (
        DatabaseServer(tmp_path / "first", url, lease=LEASE) as first,
        DatabaseServer(tmp_path / "second", url, lease=LEASE) as second,
        ThreadPoolExecutor(1) as pool,
    ):
        told = Told(start(first.stub, run.request).run_id)
        reader = pool.submit(told.read, first)
        until_more(told, first)
        with stopped(first.process.pid):
            ended = finish(second.stub, told.run_id)
            assert remains(mark) == {}
        assert ended.run.state == pb.RUN_STATE_INTERRUPTED
        assert first.process.wait(SECONDS) == 1
        assert first.said("lease_lost"), first.tail()
        gone(mark)
        first.buried()
        reader.result()
        assert ended.events[: len(told.events)] == told.events


def test_a_pooler_that_is_started_again_costs_nothing(postgres: Postgres, tmp_path: Path) -> None:
    """All connections break in the middle of a run, whose reader misses nothing and gets nothing twice."""
    run = CountingRun(tmp_path)
    with (
        PgBouncer(postgres) as pooler,
        DatabaseServer(tmp_path / "state", pooler.url(pooler.create_database())) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        told = Told(start(server.stub, run.request).run_id)
        reader = pool.submit(told.follow, server)
        for _ in range(3):
            until_more(told, server)
            pooler.kill()
            pooler.start()
        until_more(told, server)
        run.stop()
        reader.result(SECONDS)
        run.check(told)
        assert finish(server.stub, told.run_id).events == told.events


def test_a_pooler_may_add_to_the_names_of_connections(postgres: Postgres, tmp_path: Path) -> None:
    """With `application_name_add_host`, others still find those of a server."""
    with (
        PgBouncer(postgres, "application_name_add_host = 1") as pooler,
        DatabaseServer(tmp_path / "state", pooler.url(pooler.create_database())) as server,
    ):
        assert texts(perform(server.stub, inline("print('hello')")).events) == "hello\n"


async def test_a_pooler_that_replaces_the_names_of_connections_is_refused(
    postgres: Postgres, tmp_path: Path
) -> None:
    """The connections of a server that is lost could not be ended."""
    database = postgres.create_database()
    with PostgresProxy(postgres.port) as proxy:
        proxy.hides_names = True
        url = postgres.url(database, port=proxy.port, options=PLAIN)
        opened = PostgresDatabase(PostgresOptions(url, tmp_path, LEASE, 1, 0, print))
        with pytest.raises(UnusableDatabaseError, match="application_name"):
            await opened.open(is_first=True)
        await opened.close()


async def test_a_server_recognizes_its_own_hints(postgres: Postgres) -> None:
    """Also where a pooler gives a connection another process id than the database."""
    received: asyncio.Queue[int] = asyncio.Queue()
    seen: asyncio.Queue[int] = asyncio.Queue()
    with PgBouncer(postgres, "pool_mode = session") as pooler:
        database = pooler.create_database()
        url = pooler.url(database)
        one, two = Hints(url, "one", url), Hints(url, "two", url)
        try:
            one.listen(lambda _, position: received.put_nowait(position), is_pooled=True)
            two.listen(lambda _, position: seen.put_nowait(position), is_pooled=True)
            await asyncio.to_thread(until, lambda: _listening(postgres, database) == 2, lambda: pooler.log)
            one.send(Topic.KILLS, 1)
            assert await seen.get() == 1
            two.send(Topic.KILLS, 2)
            assert await received.get() == 2
        finally:
            await asyncio.to_thread(one.close)
            await asyncio.to_thread(two.close)


def _threshold(db: PostgresConnection) -> int | None:
    """How often the connection executes a statement until it prepares it."""
    # Not on a connection that is lost.
    db.execute("SELECT 1").fetchall()
    return db.raw.prepare_threshold


async def test_a_pooler_may_come_later(postgres: Postgres, pgbouncer: PgBouncer, tmp_path: Path) -> None:
    """A server whose connections lead to a pooler after a failure prepares no statements from then on."""
    database = postgres.create_database()
    with CuttingProxy(f"127.0.0.1:{postgres.port}") as proxy:
        url = postgres.url(database, port=int(proxy.target.rpartition(":")[2]))
        opened = PostgresDatabase(PostgresOptions(url, tmp_path, LONG_LEASE, 1, 0, print))
        await opened.open(is_first=True)
        try:
            assert await opened.write(_threshold) is not None
            assert await opened.read(_threshold) is not None
            proxy.server = ("127.0.0.1", pgbouncer.port)
            with postgres.admin() as db:
                db.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [database]
                )
            assert await opened.write(_threshold) is None
            assert await opened.read(_threshold) is None
        finally:
            await opened.close()


def _setting(db: Connection) -> str:
    """The durability of the transaction."""
    value: str = db.execute("SELECT current_setting('synchronous_commit')").fetchall()[0][0]
    return value


async def test_each_transaction_is_durable(postgres: Postgres, pgbouncer: PgBouncer, tmp_path: Path) -> None:
    """The role's default is another one, and nothing of a connection stays with a client."""
    database = postgres.create_database()
    with postgres.admin(database) as db:
        db.execute(f"ALTER ROLE {ROLE} IN DATABASE {database} SET synchronous_commit = off".encode())
    options = PostgresOptions(pgbouncer.url(database), tmp_path, LEASE, 1, 0, print)
    opened = PostgresDatabase(options)
    await opened.open(is_first=True)
    try:
        assert [await opened.write(_setting) for _ in range(5)] == ["on"] * 5
        assert await opened.read(_setting) == "off"
    finally:
        await opened.close()
