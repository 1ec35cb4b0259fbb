"""Runs and callers that notice whether servers are replaced one after the other."""

import asyncio
import itertools
import threading
from concurrent.futures import Future
from pathlib import Path

from notebook_runner import AsyncClient, Client, Event, Printed, RunState, StateChanged
from notebook_runner.events import event_of
from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS
from tests.support.database_server import DatabaseServer, until
from tests.support.gate import Gate
from tests.support.notebooks import notebook
from tests.support.server import MARK_VARIABLE

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


def both(*servers: DatabaseServer) -> str:
    """The target that is both servers."""
    return "ipv4:" + ",".join(server.target for server in servers)


def until_more_starts(callers: Callers, calls: Future[None]) -> None:
    """Waits until five further Starts are acknowledged; raises what a call has raised."""
    before = len(callers.started)

    def holds() -> bool:
        if calls.done():
            calls.result()
        return len(callers.started) >= before + 5

    until(holds, lambda: len(callers.started) - before)
