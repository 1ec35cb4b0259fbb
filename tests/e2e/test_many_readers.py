"""Two hundred readers of one run, of whom many come and go."""

import asyncio
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, NamedTuple, cast

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc
from tests.support.calls import SECONDS, finish, inline, reach, started
from tests.support.gate import Gate
from tests.support.progress import TERMINAL, checked_async
from tests.support.server import Server

pytestmark = pytest.mark.long

if TYPE_CHECKING:
    from notebook_runner.v1.notebook_runner_pb2_grpc import NotebookRunnerAsyncStub

READERS = 200
CHANNELS = 8
CELLS = 24
GATE_CELL = 8


class Plan(NamedTuple):
    """After which event a reader begins, and after how many it loses its connection: 0, never."""

    after: int
    stay: int


def plans(known: int) -> list[Plan]:
    """Readers that begin everywhere in the known events; three of four stay for 2 to 7 messages."""
    return [Plan(n % known, 0 if n % 4 == 0 else 2 + n % 6) for n in range(READERS)]


class Reader:
    """Follows the run to its end, on as many connections as its plan says."""

    def __init__(self, stub: "NotebookRunnerAsyncStub", run_id: str, plan: Plan) -> None:
        self._stub, self._run_id, self._plan = stub, run_id, plan
        self._last = plan.after
        self._is_over = False
        self.events: list[pb.ProgressResponse] = []

    async def read(self, here: asyncio.Barrier) -> list[pb.ProgressResponse]:
        """Waits, after the first connection, until all readers are there."""
        await self._connect(1)
        await here.wait()
        while not self._is_over:
            await self._connect(self._plan.stay)
        return self.events

    async def _connect(self, stay: int) -> None:
        """Reads so many messages, or to the end of the stream, then leaves."""
        request = pb.ProgressRequest(run_id=self._run_id, after_sequence=self._last)
        call = self._stub.Progress(request, timeout=2 * SECONDS)
        count = 0
        async with aclosing(checked_async(call, request)) as messages:
            async for message in messages:
                self._take(message)
                count += 1
                if count == stay and not self._is_over:
                    break
        call.cancel()

    def _take(self, message: pb.ProgressResponse) -> None:
        if not message.HasField("heartbeat"):
            self.events.append(message)
            self._last = message.sequence
        self._is_over = message.run_changed.state in TERMINAL


async def read_all(target: str, run_id: str, known: int, gate: Gate) -> list[list[pb.ProgressResponse]]:
    """Lets the run go on when every reader has had its first event."""
    here = asyncio.Barrier(READERS + 1)
    async with AsyncExitStack() as stack:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(target, options) for _ in range(CHANNELS)]
        stubs = [
            cast("NotebookRunnerAsyncStub", rpc.NotebookRunnerStub(await stack.enter_async_context(each)))
            for each in channels
        ]
        readers = [Reader(stubs[n % CHANNELS], run_id, plan) for n, plan in enumerate(plans(known))]
        tasks = [asyncio.create_task(reader.read(here)) for reader in readers]
        await asyncio.wait_for(here.wait(), 2 * SECONDS)
        gate.open()
        return await asyncio.gather(*tasks)


def test_each_of_two_hundred_readers_sees_every_event_once(server: Server, gate: Gate) -> None:
    """From wherever a reader begins, and however often it reconnects, it sees all that follows."""
    cells = [f"for n in range(4): print({cell}, n, flush=True)" for cell in range(CELLS)]
    cells[GATE_CELL] = gate.source
    with started(server.stub, inline(*cells)) as run:
        known = reach(server.stub, run.run_id, "cell_started", cell=GATE_CELL).sequence
        seen = asyncio.run(read_all(server.target, run.run_id, known, gate))
        events = finish(server.stub, run.run_id).events
    assert len(events) >= 3 * CELLS
    for plan, theirs in zip(plans(known), seen, strict=True):
        assert theirs == events[plan.after :]
