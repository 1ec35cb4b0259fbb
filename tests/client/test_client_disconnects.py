"""Progress of a real server over a hundred broken connections, a dead server and a new address."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typing_extensions import override

from notebook_runner import AsyncClient, Client, _retry
from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, finish
from tests.support.cutting_proxy import CuttingProxy
from tests.support.gate import Gate
from tests.support.killable import KillableServer
from tests.support.name_server import NameServer
from tests.support.notebooks import notebook, printed
from tests.support.ports import free_port
from tests.support.progress import Validator
from tests.support.server import Server

pytestmark = pytest.mark.long

CUTS = 100
SEED = 5
# Prints a line every few milliseconds until the test has seen enough.
CHATTER = """
import pathlib, time

stop, number = pathlib.Path({stop!r}), 0
while not stop.exists():
    print(number, flush=True)
    number += 1
    time.sleep(0.005)
"""
Follow = Callable[[str, str], Iterator[pb.ProgressResponse]]


@dataclass(frozen=True)
class Died:
    """A server that is to die, with the runs that it leaves: one under way, one that waits."""

    server: KillableServer
    active: str
    queued: str


def follow_blocking(target: str, run_id: str) -> Iterator[pb.ProgressResponse]:
    """All events of a run, by one loop of the blocking client."""
    with Client(target) as client:
        yield from (event.pb for event in client.progress(run_id))


def follow_awaited(target: str, run_id: str) -> Iterator[pb.ProgressResponse]:
    """All events of a run, by one loop of the client of asyncio."""
    with asyncio.Runner() as runner:
        client = AsyncClient(target)
        events = client.progress(run_id)
        while (event := runner.run(anext(events, None))) is not None:
            yield event.pb
        runner.run(client.close())


BOTH = pytest.mark.parametrize("follow", [follow_blocking, follow_awaited])


def check(events: list[pb.ProgressResponse], run_id: str) -> None:
    """Holds what one loop saw against the guarantees of one stream."""
    validator = Validator(pb.ProgressRequest(run_id=run_id))
    for event in events:
        validator.see(event)
    validator.end()
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))


def text(events: list[pb.ProgressResponse]) -> str:
    """What the events say was printed."""
    return "".join(event.cell_output.stream.text for event in events)


class Reader(threading.Thread):
    """Follows a run in a thread of its own; `reached` is set at an event of the wanted kind."""

    def __init__(self, follow: Follow, target: str, run_id: str, wanted: str = "run_changed") -> None:
        super().__init__(daemon=True)
        self._follow, self._target, self.run_id, self._wanted = follow, target, run_id, wanted
        self.reached = threading.Event()
        self.events: list[pb.ProgressResponse] = []
        self.start()

    @override
    def run(self) -> None:
        """Follows to the end."""
        for event in self._follow(self._target, self.run_id):
            self.events.append(event)
            if event.HasField(self._wanted):  # type: ignore[arg-type] # one of them
                self.reached.set()


def test_hundred_disconnects(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both clients see every event once and in order while a hundred connections of each are cut."""
    # What is tested is not the patience of a reader, but it would take most of the time.
    monkeypatch.setattr(_retry, "FIRST_PAUSE", 0.01)
    stop = tmp_path / "stop"
    with (
        Client(server.target) as client,
        CuttingProxy(server.target, cuts=CUTS, seed=SEED) as first,
        CuttingProxy(server.target, cuts=CUTS, seed=SEED + 1) as second,
    ):
        run = client.start(notebook(CHATTER.format(stop=str(stop))))
        readers = [
            Reader(follow_blocking, first.target, run.id),
            Reader(follow_awaited, second.target, run.id),
        ]
        for proxy in (first, second):
            assert proxy.whole.wait(10 * SECONDS), f"only {proxy.cuts} cuts"
        stop.touch()
        for reader in readers:
            reader.join(SECONDS)
            check(reader.events, run.id)
        assert text(readers[0].events) == text(readers[1].events) == printed(client.notebook(run.id), 0)
    assert first.cuts == second.cuts == CUTS


@pytest.fixture
def died(tmp_path: Path, gate: Gate) -> Iterator[Died]:
    """A server with a run under way and one that waits, to be killed by the test."""
    # The next server listens at the same port, which no other program is given meanwhile.
    options = ("--queue", "1", "--listen", f"127.0.0.1:{free_port()}")
    with KillableServer(tmp_path / "state", *options) as server, Client(server.target) as client:
        active = client.start(notebook("print('before')", gate.source))
        queued = client.start(notebook("print('after')"))
        yield Died(server, active.id, queued.id)


@BOTH
def test_server_dies_and_returns(died: Died, tmp_path: Path, follow: Follow) -> None:
    """The loops of a run under way and of one that waits go on over a SIGKILL of the server."""
    readers = [
        Reader(follow, died.server.target, died.active, "cell_finished"),
        Reader(follow, died.server.target, died.queued),
    ]
    for reader in readers:
        assert reader.reached.wait(SECONDS)
    died.server.die()
    with KillableServer(tmp_path / "state", "--queue", "1", "--listen", died.server.target):
        for reader in readers:
            reader.join(SECONDS)
    for reader, state in zip(readers, (pb.RUN_STATE_INTERRUPTED, pb.RUN_STATE_SUCCEEDED), strict=True):
        check(reader.events, reader.run_id)
        assert reader.events[-1].run_changed.state == state
    assert [text(reader.events) for reader in readers] == ["before\n", "after\n"]


@BOTH
def test_server_returns_at_another_address(died: Died, tmp_path: Path, follow: Follow) -> None:
    """The loop goes on where the server's name leads to now, after a time in which it led nowhere."""
    port = died.server.target.rpartition(":")[2]
    with NameServer("127.0.0.1") as names:
        reader = Reader(follow, names.target("runner.test", port), died.queued)
        assert reader.reached.wait(SECONDS)
        names.address = ""
        died.server.die()
        with KillableServer(tmp_path / "state", "--queue", "1", "--listen", f"127.0.0.2:{port}") as server:
            # What the server takes is not counted below.
            finish(server.stub, died.queued)
            names.address = "127.0.0.2"
            # gRPC by itself would look the name up again after 30 s.
            reader.join(25)
    check(reader.events, reader.run_id)
    assert text(reader.events) == "after\n"
