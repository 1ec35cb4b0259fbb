"""Two servers on one database, and clients that know both: one server stops, and no client notices."""

import asyncio
import itertools
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from notebook_runner import AsyncClient, Client, Event, Printed, RunState, StateChanged
from notebook_runner.events import event_of
from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS
from tests.support.database_server import DatabaseServer, until
from tests.support.gate import Gate
from tests.support.notebooks import notebook
from tests.support.postgres import Postgres
from tests.support.server import MARK_VARIABLE

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.process_pool("on a cluster runs do not belong to a server"),
]

# Prints which server executes it, and then a number for each time that its gate opens.
HELD = """
print(os.environ[{mark!r}], flush=True)
for number in range({times}):
    {wait}
    print(number, flush=True)
"""
TIMES = 3


class Held:
    """A run that waits at a gate between its lines, and a reader that follows it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.gate = Gate(folder, name)
        self.events: list[Event] = []
        wait = self.gate.source.partition("; ")[2]
        self.cells = ("import os", HELD.format(mark=MARK_VARIABLE, times=TIMES, wait=wait))

    def start(self, client: Client) -> None:
        """Starts it."""
        self.run = client.start(notebook(*self.cells))

    def follow(self, client: Client) -> None:
        """Reads its events to its end."""
        for event in client.progress(self.run.id):
            self.events.append(event)

    def read_once(self, server: DatabaseServer) -> None:
        """Reads its events to its end, in one stream of a server."""
        request = pb.ProgressRequest(run_id=self.run.id)
        for event in server.stub.Progress(request, timeout=SECONDS):
            if not event.HasField("heartbeat"):
                self.events.append(event_of(event))

    def follow_async(self, target: str) -> None:
        """The same by the other client."""

        async def follow() -> None:
            async with AsyncClient(target) as client:
                async for event in client.progress(self.run.id):
                    self.events.append(event)

        asyncio.run(follow())

    @property
    def lines(self) -> list[str]:
        """What the reader was told that it has printed."""
        return "".join(one.text for one in list(self.events) if isinstance(one, Printed)).splitlines()

    def check(self) -> None:
        """Asserts that it succeeded, and that its reader was told of everything once, in order."""
        last = self.events[-1]
        assert isinstance(last, StateChanged)
        assert last.state is RunState.SUCCEEDED, last.run.failure
        assert self.lines[1:] == [str(number) for number in range(TIMES)]
        assert [event.sequence for event in self.events] == list(range(1, len(self.events) + 1))


class Callers:
    """Threads that make calls until they are told to stop, and keep what failed."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._is_over = threading.Event()
        self.started: list[str] = []

    def call(self) -> None:
        """Makes each call again and again; raises what one of them raises."""
        for number in itertools.count():
            if self._is_over.is_set():
                return
            run = self._client.start(notebook(f"print({number})"))
            self.started.append(run.id)
            assert self._client.get(run.id).id == run.id
            assert self._client.list()
            self._client.info()
            self._client.kill(run.id)

    def stop(self) -> None:
        """Lets them end."""
        self._is_over.set()


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


def both(*servers: DatabaseServer) -> str:
    """The target that is both servers."""
    return "ipv4:" + ",".join(server.target for server in servers)


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
        _more(callers, calls)
        there.gate.open(TIMES)
        # The queued run gets the worker of the server that stays.
        until(lambda: bool(held[2].lines), left.tail)
        assert held[2].lines == [left.mark]
        here.gate.open(TIMES)
        assert stopped.process.wait(SECONDS) == 0
        _more(callers, calls)
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


def _more(callers: Callers, calls: Future[None]) -> None:
    """Waits until five further Starts are acknowledged; raises what a call has raised."""
    before = len(callers.started)

    def holds() -> bool:
        if calls.done():
            calls.result()
        return len(callers.started) >= before + 5

    until(holds, lambda: len(callers.started) - before)
