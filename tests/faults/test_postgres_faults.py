"""A database that goes away and comes back: runs go on, and nothing acknowledged is lost or doubled."""

import contextlib
import secrets
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.faults.history import History, Told
from tests.support.calls import executed, finish, follow, history, inline, perform, start, texts
from tests.support.database_server import CountingRun, DatabaseServer, serves, until, until_more
from tests.support.errors import refusal_of, refused
from tests.support.killable import figure
from tests.support.notebooks import printed
from tests.support.postgres import Postgres
from tests.support.postgres_proxy import PLAIN, PostgresProxy

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.process_pool("what executes runs is nothing to the database"),
]

NOT_READY = (grpc.StatusCode.UNAVAILABLE, "NOT_READY")
FULL = (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL")
ENDS = [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL, signal.SIGSTOP]
SECONDS = 60.0
# The file system of a database that is to be full: three times an empty one.
DISK_BYTES = 128 * 1024 * 1024
RUNS = 4
# More than the free space within the files of an empty database; no compression makes it less.
LARGE_BYTES = 4 * 1024 * 1024


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    """A PostgreSQL that is stopped and killed."""
    with Postgres() as running:
        yield running


@pytest.fixture
def url(database: Postgres) -> str:
    """A new database of it."""
    return database.url(database.create_database())


@pytest.fixture
def server(tmp_path: Path, url: str) -> Iterator[DatabaseServer]:
    """A server on that database."""
    with DatabaseServer(tmp_path / "state", url, "--heartbeat-interval", "0.5") as running:
        yield running


@contextmanager
def away(database: Postgres, how: signal.Signals) -> Iterator[None]:
    """Takes the database away while the block goes on; SIGSTOP: its connections stay, and nobody answers."""
    if how is signal.SIGSTOP:
        with database.paused():
            yield
        return
    if how is signal.SIGKILL:
        database.kill()
    else:
        database.stop(how)
    try:
        yield
    finally:
        database.start()


@pytest.mark.parametrize("how", ENDS, ids=lambda how: how.name)
def test_a_run_goes_on_without_its_database(
    database: Postgres, server: DatabaseServer, tmp_path: Path, how: signal.Signals
) -> None:
    """Its readers get every line once, in order; meanwhile Starts are refused, and health says so."""
    run = CountingRun(tmp_path)
    told = Told(start(server.stub, run.request).run_id)
    later = inline("print('later')", request_id="later")
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(told.follow, server)
        until_more(told, server)
        with away(database, how):
            begin = time.monotonic()
            refusal = refused(lambda: start(server.stub, later))
            figure(f"a Start without a database is refused after {time.monotonic() - begin:.2f} s")
            until(lambda: not serves(server), server.tail)
        until(lambda: serves(server), server.tail)
        until_more(told, server)
        run.stop()
        reader.result()
    assert refusal.kind == NOT_READY
    assert "database" in str(refusal.message).lower()
    run.check(told)
    assert finish(server.stub, told.run_id).events == told.events
    assert texts(perform(server.stub, later).events) == "later\n"
    assert len(history(server.stub)) == 2


def test_a_run_that_ends_without_its_database_is_not_told_to_have_ended(
    database: Postgres, server: DatabaseServer, tmp_path: Path
) -> None:
    """Its stream goes on with heartbeats; the end comes with the database, and so does what was printed."""
    run = CountingRun(tmp_path)
    told = Told(start(server.stub, run.request).run_id)
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(told.follow, server)
        until_more(told, server)
        with closing(follow(server.stub, told.run_id)) as events:
            next(events)
            with away(database, signal.SIGINT):
                until(lambda: not serves(server), server.tail)
                run.stop()
                beats = (event.sequence for event in events if event.HasField("heartbeat"))
                # Two of one number in a row come when all that was there before has been read.
                assert any(one == two for one, two in pairwise(beats))
                assert not reader.done()
        reader.result()
    run.check(told)
    node = executed(server.stub, told.run_id)
    assert "".join(printed(node, index) for index in range(3)) == texts(told.events)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGSTOP], ids=lambda how: how.name)
def test_a_stream_of_changes_goes_on_without_the_database(
    database: Postgres, server: DatabaseServer, how: signal.Signals
) -> None:
    """It has heartbeats, and what changes afterwards."""
    stream = server.stub.Watch(pb.WatchRequest(), timeout=2 * SECONDS)
    arrived: SimpleQueue[pb.WatchResponse] = SimpleQueue()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(deque, map(arrived.put, stream), 0)
        try:
            assert arrived.get(timeout=SECONDS).HasField("heartbeat")
            with away(database, how):
                until(lambda: not serves(server), server.tail)
                # These were sent before the database was away.
                while not arrived.empty():
                    arrived.get()
                for _ in range(5):
                    assert arrived.get(timeout=SECONDS).HasField("heartbeat")
            until(lambda: serves(server), server.tail)
            run_id = perform(server.stub, inline("1")).run.run_id
            messages = iter(partial(arrived.get, timeout=SECONDS), None)
            assert next(one for one in messages if not one.HasField("heartbeat")).run.run_id == run_id
        finally:
            stream.cancel()


def test_reads_of_ended_runs_fail_with_a_sentence(database: Postgres, server: DatabaseServer) -> None:
    """UNAVAILABLE, for a client that tries again; with the database back, the same calls succeed."""
    run_id = perform(server.stub, inline("print('kept')")).run.run_id
    calls: list[Callable[[], object]] = [
        lambda: server.stub.List(pb.ListRequest(), timeout=SECONDS),
        lambda: server.stub.Output(pb.OutputRequest(run_id=run_id, format="html"), timeout=SECONDS),
        lambda: list(follow(server.stub, run_id)),
    ]
    with away(database, signal.SIGINT):
        for call in calls:
            assert refused(call).kind == NOT_READY
    until(lambda: serves(server), server.tail)
    for call in calls:
        call()


def test_the_server_outlives_many_restarts(
    database: Postgres, server: DatabaseServer, tmp_path: Path
) -> None:
    """Whatever statement each of them hits, the run's readers notice none of them."""
    run = CountingRun(tmp_path)
    told = Told(start(server.stub, run.request).run_id)
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(told.follow, server)
        for how in (signal.SIGKILL, signal.SIGINT, signal.SIGQUIT) * 3:
            until_more(told, server)
            database.restart(how)
        until_more(told, server)
        run.stop()
        reader.result()
    run.check(told)


def test_a_commit_whose_answer_was_lost_is_written_once(database: Postgres, tmp_path: Path) -> None:
    """Every third answer to a commit is lost with its connection: no Start and no event is, or is doubled."""
    name = database.create_database()
    with PostgresProxy(database.port, seed=1) as proxy:
        url = database.url(name, port=proxy.port, options=PLAIN)
        with DatabaseServer(tmp_path / "state", url) as server:
            past = History(tmp_path / "effects")
            requests = [past.request() for _ in range(RUNS)]
            with ThreadPoolExecutor(RUNS) as pool:
                proxy.chance = 1 / 3
                told = list(pool.map(lambda request: _started(server, request), requests))
                list(pool.map(lambda one: one.follow(server), told))
                proxy.chance = 0.0
            figure(f"{proxy.lost} answers to commits were lost")
            assert proxy.lost
            past.check(server, told)
            assert past.states == {"SUCCEEDED": RUNS}
            # And one of the check's own.
            assert len(history(server.stub)) == RUNS + 1
            assert [start(server.stub, request).run_id for request in requests] == [
                one.run_id for one in told
            ]


def _started(server: DatabaseServer, request: pb.StartRequest) -> Told:
    """Starts a run, as a caller does that tries again until it gets an answer."""
    while True:
        with contextlib.suppress(grpc.RpcError):
            return Told(start(server.stub, request).run_id)


def test_connections_that_are_reset_are_replaced(database: Postgres, tmp_path: Path) -> None:
    """Again and again, while a run prints and is read."""
    name = database.create_database()
    with PostgresProxy(database.port) as proxy:
        url = database.url(name, port=proxy.port, options=PLAIN)
        with DatabaseServer(tmp_path / "state", url) as server, ThreadPoolExecutor(1) as pool:
            run = CountingRun(tmp_path)
            told = Told(start(server.stub, run.request).run_id)
            reader = pool.submit(told.follow, server)
            for _ in range(10):
                until_more(told, server)
                proxy.reset()
            run.stop()
            reader.result()
            run.check(told)


@pytest.fixture
def disk() -> Iterator[Path]:
    """A small file system."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="disk-")))
        options = ["-o", f"size={DISK_BYTES},mode=755", "tmpfs", str(folder)]
        mounted = subprocess.run(["/bin/mount", "-t", "tmpfs", *options], capture_output=True, check=False)
        if mounted.returncode:
            pytest.skip("only root can mount a small file system")
        stack.callback(subprocess.run, ["/bin/umount", str(folder)], check=True)
        yield folder


def test_a_full_disk_of_the_database(disk: Path, tmp_path: Path) -> None:
    """Starts are refused, what was told stays true, and with room again everything goes on."""
    with (
        Postgres(folder=disk) as database,
        DatabaseServer(tmp_path / "state", database.url(database.create_database())) as server,
    ):
        past = History(tmp_path / "effects")
        told = [Told(perform(server.stub, past.request()).run.run_id)]
        run = CountingRun(tmp_path)
        told.append(Told(start(server.stub, run.request).run_id))
        with ThreadPoolExecutor(1) as pool:
            reader = pool.submit(told[1].follow, server)
            until_more(told[1], server)
            with _filled(disk):
                until(lambda: _refusal(server) in {FULL, NOT_READY}, server.tail)
            until(lambda: _refusal(server) is None, server.tail)
            run.stop()
            reader.result()
        told[0].follow(server)
        for one in told:
            assert finish(server.stub, one.run_id).events == one.events
        assert perform(server.stub, past.request()).run.state == pb.RUN_STATE_SUCCEEDED


def _refusal(server: DatabaseServer) -> tuple[grpc.StatusCode, str] | None:
    """How the server refuses a Start that needs space; None: it does not."""
    try:
        start(server.stub, inline(f"'{secrets.token_hex(LARGE_BYTES // 2)}'"))
    except grpc.RpcError as error:
        return refusal_of(error).kind
    return None


@contextmanager
def _filled(disk: Path) -> Iterator[None]:
    """Keeps the file system full while the block goes on."""
    filler = disk / "filler"
    try:
        with filler.open("ab", buffering=0) as file:
            size = 1024 * 1024
            while size:
                try:
                    file.write(b"x" * size)
                except OSError:
                    size //= 2
        yield
    finally:
        filler.unlink()
