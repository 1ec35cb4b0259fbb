"""Two servers on one database, and clients that know both: one server stops, and no client notices."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from notebook_runner import Client
from tests.faults.rolling import TIMES, Callers, Held, both, until_more_starts
from tests.support.calls import SECONDS
from tests.support.database_server import DatabaseServer, until
from tests.support.postgres import Postgres

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.process_pool("on a cluster runs do not belong to a server"),
]


@pytest.fixture
def servers(postgres: Postgres, tmp_path: Path) -> Iterator[tuple[DatabaseServer, DatabaseServer]]:
    """Two servers, each of which knows of the other."""
    url = postgres.url(postgres.create_database())
    with ExitStack() as stack:
        # Runs end when the test lets them.
        first, second = (
            stack.enter_context(DatabaseServer(tmp_path / name, url, "--drain-timeout", "600"))
            for name in ("a", "b")
        )
        for server in (first, second):
            with Client(server.target) as client:
                until(lambda client=client: client.info().workers == 2, server.tail)  # type: ignore[misc]
        yield first, second


def test_a_server_that_stops_is_not_noticed(
    servers: tuple[DatabaseServer, DatabaseServer], tmp_path: Path
) -> None:
    """No call is refused before, during and after its drain; each stream goes on without a gap."""
    with ExitStack() as stack:
        client = stack.enter_context(Client(both(*servers)))
        pool = stack.enter_context(ThreadPoolExecutor(4))
        held = [Held(tmp_path, name) for name in ("one", "two", "queued")]
        for one in held:
            stack.callback(one.gate.close)
            stack.callback(one.gate.open, TIMES)
        for one in held[:2]:
            one.start(client)
        readers = [pool.submit(one.follow, client) for one in held[:2]]
        until(lambda: all(one.lines for one in held[:2]), servers[0].tail)
        held[2].start(client)
        readers.append(pool.submit(held[2].follow_async, both(*servers)))
        callers = Callers(client)
        calls = pool.submit(callers.call)
        stack.callback(callers.stop)
        places = [one.lines[0] for one in held[:2]]
        assert sorted(places) == sorted(server.mark for server in servers)
        stopped, left = servers
        here, there = sorted(held[:2], key=lambda one: one.lines[0] != stopped.mark)

        stopped.process.send_signal(signal.SIGTERM)
        stopped.logged("server_stopping")
        until_more_starts(callers, calls)
        there.gate.open(TIMES)
        # The queued run gets the worker of the server that stays.
        until(lambda: bool(held[2].lines), left.tail)
        assert held[2].lines == [left.mark]
        here.gate.open(TIMES)
        assert stopped.process.wait(SECONDS) == 0
        until_more_starts(callers, calls)
        held[2].gate.open(TIMES)
        for reader in readers:
            reader.result(SECONDS)
        callers.stop()
        calls.result(SECONDS)
        for one in held:
            one.check()


def test_a_server_that_drains_serves_its_callers(
    servers: tuple[DatabaseServer, DatabaseServer], tmp_path: Path
) -> None:
    """A caller that knows it alone starts runs there, and follows them while the other one executes them."""
    stopped, left = servers
    with ExitStack() as stack:
        client = stack.enter_context(Client(stopped.target))
        pool = stack.enter_context(ThreadPoolExecutor(4))
        held = [Held(tmp_path, name) for name in ("one", "two", "queued", "later")]
        for one in held:
            stack.callback(one.gate.close)
            stack.callback(one.gate.open, TIMES)
        for one in held[:2]:
            one.start(client)
        readers = [pool.submit(one.follow, client) for one in held[:2]]
        until(lambda: all(one.lines for one in held[:2]), stopped.tail)
        held[2].start(client)
        # Its stream breaks nowhere: it is read without another attempt.
        queued = pool.submit(held[2].read_once, stopped)
        here, there = sorted(held[:2], key=lambda one: one.lines[0] != stopped.mark)

        stopped.process.send_signal(signal.SIGTERM)
        stopped.logged("server_stopping")
        held[3].start(client)
        later = pool.submit(held[3].read_once, stopped)
        for one in (there, held[2], held[3]):
            one.gate.open(TIMES)
        for reader in (queued, later):
            reader.result(SECONDS)
        for one in held[2:]:
            one.check()
            assert one.lines[0] == left.mark
        here.gate.open(TIMES)
        for reader in readers:
            reader.result(SECONDS)
        assert stopped.process.wait(SECONDS) == 0
