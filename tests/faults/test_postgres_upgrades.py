"""Servers of a newer version upgrade the tables of a database on which older ones work."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from notebook_runner import Client
from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.runs.postgres import migrate
from notebook_runner_server.runs.postgres.database import PostgresDatabase, PostgresOptions
from tests.faults import upgraded_server
from tests.faults.history import Told
from tests.faults.rolling import TIMES, Callers, Held, both, until_more_starts
from tests.faults.upgraded_server import SCRIPTS, scripts_up_to
from tests.support.calls import SECONDS, finish, history, inline, perform, start, texts
from tests.support.database_server import (
    LONG_LEASE,
    REPLICA_TIMEOUT,
    CountingRun,
    DatabaseServer,
    until,
    until_more,
)
from tests.support.postgres import Postgres
from tests.support.processes import stopped
from tests.support.server import STORE
from tests.support.settings import clean

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.process_pool("what executes runs is nothing to the database"),
]

PROGRAM = [sys.executable, upgraded_server.__file__]
# Short enough to wait for, and long enough for a server on a busy machine.
LEASE = 4.0
COMPATIBLE, INCOMPATIBLE, SLOW = "0002", "0003", "0004"


class Database:
    """A database, and servers of several versions on it."""

    def __init__(self, postgres: Postgres, folder: Path) -> None:
        self._postgres = postgres
        self._folder = folder
        self.name = postgres.create_database()
        self.url = postgres.url(self.name)

    def server(self, name: str, version: str = "", lease: float = LEASE) -> DatabaseServer:
        """A server of a later version, or of the one that is there."""
        if not version:
            return DatabaseServer(self._folder / name, self.url, lease=lease)
        variables = {SCRIPTS: str(self._scripts(version))}
        return DatabaseServer(
            self._folder / name, self.url, lease=lease, program=PROGRAM, environment=variables
        )

    def _scripts(self, version: str) -> Path:
        folder = self._folder / f"scripts-{version}"
        return folder if folder.exists() else scripts_up_to(version, folder)

    def refusal(self, version: str = "") -> str:
        """What a server says that must not start."""
        variables = {STORE: self.url, REPLICA_TIMEOUT: str(LEASE)}
        if version:
            variables[SCRIPTS] = str(self._scripts(version))
        options = ("--listen", "127.0.0.1:0", "--state-dir", str(self._folder / "refused"))
        program = PROGRAM if version else [str(Path(sys.executable).with_name("notebook-runner-server"))]
        done = subprocess.run(
            [*program, *options],
            env=clean(**variables),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 1, done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done.stderr

    @property
    def version(self) -> tuple[str, str]:
        """The version of its tables, and the oldest one of servers that can use them."""
        with self._postgres.admin(self.name) as db:
            text = "SELECT version_num, oldest_version FROM alembic_version CROSS JOIN history"
            ((found, oldest),) = db.execute(text).fetchall()
        return found, oldest

    @contextmanager
    def upgrading(self, version: str) -> Iterator[None]:
        """Upgrades, at the end of the block, to a version that no other server can use; it begins before."""
        with self._postgres.admin(self.name) as db, db.transaction():
            db.execute("SELECT pg_advisory_xact_lock(%s)", [migrate.LOCK_KEY])
            yield
            db.execute("UPDATE alembic_version SET version_num = %s", [version])
            db.execute("UPDATE history SET oldest_version = %s", [version])
            db.execute("DELETE FROM servers")

    def is_waited_for(self, seconds: float = 0.0) -> bool:
        """Whether a server has waited for the end of an upgrade for so long."""
        with self._postgres.admin(self.name) as db:
            text = (
                "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = %s"
                " AND clock_timestamp() - query_start >= make_interval(secs => %s)"
            )
            return bool(db.execute(text, [self.name, seconds]).fetchall())

    @property
    def is_upgrading(self) -> bool:
        """Whether a server has a connection for an upgrade."""
        with self._postgres.admin(self.name) as db:
            text = "SELECT FROM pg_stat_activity WHERE application_name LIKE '%% upgrade' AND datname = %s"
            return bool(db.execute(text, [self.name]).fetchall())

    def opened_by(self, monkeypatch: pytest.MonkeyPatch, version: str, folder: Path) -> PostgresDatabase:
        """The database, as a server of a later version opens it, in this process."""
        monkeypatch.setattr(migrate, "SCRIPTS", self._scripts(version))
        monkeypatch.setattr(migrate, "VERSION", version)
        return PostgresDatabase(PostgresOptions(self.url, folder, LEASE, 1, 0, print))

    @contextmanager
    def lost_transaction(self) -> Iterator[None]:
        """The only server has stopped in a transaction, which stays open until somebody ends it."""
        with psycopg.connect(self.url, autocommit=True) as db:
            [(server_id,)] = db.execute("SELECT server_id FROM servers").fetchall()
        lost = psycopg.connect(self.url, application_name=f"notebook-runner {server_id} writes")
        try:
            lost.execute("UPDATE server_commits SET number = number")
            lost.execute("SELECT 1 FROM history FOR NO KEY UPDATE")
            yield
            with pytest.raises(psycopg.errors.AdminShutdown):
                lost.execute("SELECT 1")
        finally:
            lost.close()

    @contextmanager
    def advisory_lock(self) -> Iterator[None]:
        """Another server upgrades, as long as the block takes."""
        with self._postgres.admin(self.name) as db, db.transaction():
            db.execute("SELECT pg_advisory_xact_lock(%s)", [migrate.LOCK_KEY])
            yield

    @contextmanager
    def read_by_others(self, table: str) -> Iterator[None]:
        """Another transaction reads a table as long as the block takes, as a backup does."""
        with self._postgres.admin(self.name) as db, db.transaction():
            db.execute(f"SELECT FROM {table} LIMIT 1".encode())
            yield


@pytest.fixture
def database(postgres: Postgres, tmp_path: Path) -> Database:
    """A database that no server has used."""
    return Database(postgres, tmp_path)


@contextmanager
def called(server: DatabaseServer) -> Iterator[Callable[[], None]]:
    """Calls a server again and again, each call once; gives what waits for more of them."""
    over, answered = threading.Event(), [0]

    def call() -> None:
        while not over.is_set():
            run_id = start(server.stub, inline("1")).run_id
            server.stub.Get(pb.GetRequest(run_id=run_id), timeout=SECONDS)
            server.stub.Kill(pb.KillRequest(run_id=run_id), timeout=SECONDS)
            answered[0] += 1

    with ThreadPoolExecutor(1) as pool:
        calls = pool.submit(call)

        def more() -> None:
            before = answered[0]
            until(lambda: calls.done() or answered[0] >= before + 3, server.tail)
            if calls.done():
                calls.result()

        try:
            more()
            yield more
            more()
        finally:
            over.set()
        calls.result(SECONDS)


def test_an_upgrade_is_rolled_out(database: Database, tmp_path: Path) -> None:
    """Two older servers work on while a newer one upgrades, then stop; no call fails, no stream has a gap."""
    with ExitStack() as stack:
        old = [stack.enter_context(database.server(name)) for name in ("a", "b")]
        for server in old:
            with Client(server.target) as client:
                until(lambda client=client: client.info().workers == 2, server.tail)  # type: ignore[misc]
        held = [Held(tmp_path, name) for name in ("one", "two", "queued")]
        for one in held:
            stack.callback(one.gate.close)
            stack.callback(one.gate.open, TIMES)
        pool = stack.enter_context(ThreadPoolExecutor(8))
        first = stack.enter_context(Client(both(*old)))
        for one in held:
            one.start(first)
        until(lambda: first.info().runs_active == 2, old[0].tail)
        # At one server, whichever executes the run.
        readers = [pool.submit(one.read_once, old[1]) for one in held]
        until(lambda: all(one.lines for one in held[:2]), old[0].tail)

        with called(old[0]), called(old[1]) as more:
            new = stack.enter_context(database.server("c", COMPATIBLE))
            assert new.said("schema_upgraded")
            more()
        assert database.version == (COMPATIBLE, "0001")

        client = stack.enter_context(Client(both(*old, new)))
        callers = Callers(client)
        calls = pool.submit(callers.call)
        stack.callback(callers.stop)
        until(lambda: client.info().workers == 3, new.tail)
        for one in held:
            one.gate.open(TIMES)
        for reader in readers:
            reader.result(SECONDS)
        for server in old:
            server.stop()
            until_more_starts(callers, calls)
        callers.stop()
        calls.result(SECONDS)
        with Client(new.target) as alone:
            for one in held:
                one.check()
                assert list(alone.progress(one.run.id)) == one.events


def test_the_older_server_can_come_back(database: Database) -> None:
    """After an upgrade that it can live with, and while the newer one works."""
    with database.server("new", COMPATIBLE) as new:
        first = perform(new.stub, inline("1")).run
        with database.server("old") as old:
            assert not old.said("schema_upgraded")
            assert perform(old.stub, inline("print('old')")).run.state == pb.RUN_STATE_SUCCEEDED
    with database.server("old") as old:
        assert first.run_id in history(old.stub)
        assert texts(perform(old.stub, inline("print('again')")).events) == "again\n"
    assert database.version == (COMPATIBLE, "0001")


def test_two_newer_servers_upgrade_once(database: Database) -> None:
    """One of two that start together upgrades; the other one waits for it."""
    with (
        database.server("old") as old,
        called(old),
        ThreadPoolExecutor(2) as pool,
        ExitStack() as stack,
    ):
        starting = [database.server(name, COMPATIBLE) for name in ("c", "d")]
        new = list(pool.map(lambda server: server.__enter__(), starting))
        for server in new:
            stack.push(server.__exit__)
        assert [bool(server.said("schema_upgraded")) for server in new].count(True) == 1
        for server in new:
            assert perform(server.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED


def test_an_upgrade_waits_for_readers_and_others_do_not(database: Database) -> None:
    """While a backup keeps the upgrade from its lock, the older server answers calls."""
    with database.server("old") as old, called(old) as more, ThreadPoolExecutor(1) as pool:
        new = database.server("new", COMPATIBLE)
        with database.read_by_others("runs"):
            starting = pool.submit(new.__enter__)
            until(lambda: bool(new.said("schema_upgrade_waits")), old.tail)
            more()
            assert not starting.done()
            assert database.version == ("0001", "0001")
        starting.result(SECONDS)
        with ExitStack() as stack:
            stack.push(new.__exit__)
            assert new.said("schema_upgraded")
            more()


def test_a_server_that_waits_with_its_upgrade_can_be_stopped(database: Database) -> None:
    """It does not upgrade the tables afterwards."""
    with database.server("old") as old, ThreadPoolExecutor(1) as pool:
        new = database.server("new", COMPATIBLE)
        with database.read_by_others("runs"):
            starting = pool.submit(new.__enter__)
            until(lambda: bool(new.said("schema_upgrade_waits")), old.tail)
            new.process.send_signal(signal.SIGTERM)
            assert new.process.wait(SECONDS) == 0
        with pytest.raises(AssertionError, match="the server ended"):
            starting.result(SECONDS)
        assert database.version == ("0001", "0001")


def test_an_upgrade_waits_for_that_of_another_server(database: Database) -> None:
    """However long that takes."""
    with database.server("old"):
        pass
    new = database.server("new", COMPATIBLE)
    with ThreadPoolExecutor(1) as pool:
        with database.advisory_lock():
            starting = pool.submit(new.__enter__)
            until(lambda: database.is_waited_for(2 * migrate.LOCK_TIMEOUT), starting.done)
        starting.result(SECONDS)
    with ExitStack() as stack:
        stack.push(new.__exit__)
        assert not new.said("schema_upgrade_waits")
        assert new.said("schema_upgraded")


def test_a_lost_server_does_not_keep_its_locks_from_an_upgrade(database: Database) -> None:
    """It was lost in the middle of a transaction, and no other server is there that would end it."""
    with database.server("old") as old:
        with (
            stopped(old.process.pid),
            database.lost_transaction(),
            database.server("new", COMPATIBLE) as new,
        ):
            assert new.said("schema_upgraded")
            assert database.version == (COMPATIBLE, "0001")
        assert old.process.wait(SECONDS) == 1
        old.buried()


def test_an_upgrade_cancels_an_autovacuum(tmp_path: Path) -> None:
    """One that takes minutes, of a table that the upgrade changes."""
    with Postgres("autovacuum_naptime=1s") as postgres:
        database = Database(postgres, tmp_path)
        with database.server("old") as old:
            with postgres.admin(database.name) as db:
                db.execute(
                    "ALTER TABLE runs SET (autovacuum_vacuum_threshold = 1,"
                    " autovacuum_vacuum_scale_factor = 0,"
                    " autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1)"
                )
                with db.transaction():
                    # No server sees them.
                    db.execute(
                        "INSERT INTO runs (run_id, request_digest, state, run, parameters, options,"
                        " last_sequence, owner) SELECT 'old-' || n, '', '', repeat('x', 2000), '', '', 0, ''"
                        " FROM generate_series(1, 5000) AS n"
                    )
                    db.execute("DELETE FROM runs WHERE state = ''")
                text = "SELECT FROM pg_stat_activity WHERE query LIKE 'autovacuum: VACUUM% public.runs%'"
                until(lambda: bool(db.execute(text).fetchall()), old.tail)
            with database.server("new", COMPATIBLE) as new:
                assert new.said("schema_upgraded")


async def test_an_upgrade_that_gets_no_lock_says_so(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the versions, the time, the reason, and what to do."""
    with database.server("old"):
        pass
    opened = database.opened_by(monkeypatch, COMPATIBLE, tmp_path)
    monkeypatch.setattr(migrate, "_PATIENCE", 0.0)
    said = r"from schema version 0001 to 0002: .* for \d+ s \(.*lock timeout.*\)\. .* Nothing was changed\."
    try:
        with database.read_by_others("runs"), pytest.raises(migrate.UpgradeBlockedError, match=said):
            await opened.open(is_first=True)
        assert database.version == ("0001", "0001")
    finally:
        await opened.close()


async def test_an_upgrade_that_stood_still_is_repeated(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database has ended its transaction, as other servers wait."""
    with database.server("old"):
        pass
    opened = database.opened_by(monkeypatch, COMPATIBLE, tmp_path)
    monkeypatch.setattr(migrate, "IDLE_TIMEOUT", 0.5)
    lock_out, attempts = migrate._lock_out, []

    def stand_still(driver: psycopg.Connection[Any], *details: Any) -> None:
        attempts.append(driver)
        lock_out(driver, *details)
        if len(attempts) == 1:
            until(lambda: not database.is_upgrading, lambda: "still upgrading")

    monkeypatch.setattr(migrate, "_lock_out", stand_still)
    try:
        await opened.open(is_first=True)
        assert len(attempts) == 2
        assert database.version == (COMPATIBLE, "0001")
    finally:
        await opened.close()


def test_an_upgrade_that_older_servers_cannot_use_waits_for_their_end(database: Database) -> None:
    """It is refused, and names them; then it is done, and they are refused."""
    with database.server("a") as one, database.server("b") as two:
        with called(one):
            said = database.refusal(INCOMPATIBLE)
        for server in (one, two):
            assert f"process {server.process.pid} on " in said
        assert f"{INCOMPATIBLE} or newer" in said
        assert database.version == ("0001", "0001")
        run = perform(two.stub, inline("1")).run
    with database.server("new", INCOMPATIBLE) as new:
        assert run.run_id in history(new.stub)
        assert database.version == (INCOMPATIBLE, INCOMPATIBLE)
        said = database.refusal()
        assert f"version {INCOMPATIBLE}" in said
        assert "Start the newer server" in said
    assert database.version == (INCOMPATIBLE, INCOMPATIBLE)


def test_an_older_server_that_stood_still_is_fenced(database: Database, tmp_path: Path) -> None:
    """It is gone when its lease is over; its run is interrupted, and it ends when it goes on."""
    run = CountingRun(tmp_path)
    with database.server("old") as old:
        told = Told(start(old.stub, run.request).run_id)
        with ThreadPoolExecutor(1) as pool:
            reader = pool.submit(told.read, old)
            until_more(told, old)
            with stopped(old.process.pid), database.server("new", INCOMPATIBLE) as new:
                ended = finish(new.stub, told.run_id)
                assert database.version == (INCOMPATIBLE, INCOMPATIBLE)
            assert old.process.wait(SECONDS) == 1
            reader.result(SECONDS)
        assert old.said("lease_lost")
        old.buried()
        assert f"version {INCOMPATIBLE}" in database.refusal()
    assert ended.run.state == pb.RUN_STATE_INTERRUPTED
    assert ended.events[: len(told.events)] == told.events


def test_a_server_learns_that_an_upgrade_has_replaced_it(database: Database) -> None:
    """Its machine was suspended, so by its own clock its lease has not ended."""
    with database.server("old", lease=LONG_LEASE) as old:
        with database.upgrading(INCOMPATIBLE):
            pass
        assert old.process.wait(SECONDS) == 1
        (lost,) = old.said("lease_lost")
        assert f"version {INCOMPATIBLE}" in lost
        assert "Start the newer server" in lost
        old.buried()


def test_a_server_that_starts_during_an_upgrade_is_refused(database: Database) -> None:
    """It has found the version that it knows, and takes its lease only after the upgrade."""
    with database.server("first"):
        pass
    with ThreadPoolExecutor(1) as pool:
        with database.upgrading(INCOMPATIBLE):
            refused = pool.submit(database.refusal)
            until(database.is_waited_for, refused.done)
        assert f"version {INCOMPATIBLE}" in refused.result(SECONDS)


def test_an_upgrade_that_takes_long_waits_for_the_end_of_others(database: Database) -> None:
    """They could not write meanwhile, although no statement takes long. Without them it may take its time."""
    with database.server("old", INCOMPATIBLE) as old:
        said = database.refusal(SLOW)
        assert f"process {old.process.pid} on " in said
        assert "longer than 2 s" in said
        assert database.version == (INCOMPATIBLE, INCOMPATIBLE)
    with database.server("new", SLOW) as new:
        assert new.said("schema_upgraded")
    assert database.version == (SLOW, INCOMPATIBLE)
