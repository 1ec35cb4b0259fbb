"""A backend that does exactly what the test says, and a runner on a real store above it.

The fake is here so that a test can decide in which order things happen; everything else is real.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from nbformat import NotebookNode
from nbformat.v4 import new_output

from notebook_runner_server.app import prepare
from notebook_runner_server.execution.interface import (
    Cause,
    CellFinished,
    CellOutcome,
    CellStarted,
    Ended,
    ExecutionEvent,
    Failure,
    Job,
    KernelReady,
    SegmentChunk,
    StreamOutput,
    WarmCounts,
)
from notebook_runner_server.execution.notebook import encode_cell
from notebook_runner_server.execution.segments import TAIL
from notebook_runner_server.runs.admission import Admission, Defaults
from notebook_runner_server.runs.log import RunLog
from notebook_runner_server.runs.manager import RunManager
from notebook_runner_server.runs.model import Event, Run, RunChanged, RunState, StartSpec
from notebook_runner_server.runs.observer import Observer
from notebook_runner_server.runs.retention import HistoryLimits
from notebook_runner_server.runs.shares import ShareRules
from notebook_runner_server.runs.sources import NotebookRoot
from notebook_runner_server.runs.store import Store
from notebook_runner_server.transfer.interface import Transfer
from notebook_runner_server.transfer.policy import UriPolicy
from notebook_runner_server.transfer.service import TransferService
from tests.support.notebooks import code, content, parsed

SIMPLE = content("1", "2")
DONE = Ended(None)


def no_uris() -> TransferService:
    """What brings notebooks from and to URIs where none is allowed."""
    return TransferService(UriPolicy(), 10**6, 1.0)


class Handle:
    """A run on the fake: tells what the test tells it to, and keeps what it is asked.

    Attributes:
        job: What it was given.
        stops: The orders to stop that it got.
        asked: Set when it got one.
        left: Set when nobody listens any more.
    """

    def __init__(self, job: Job, *, obedient: bool, free: Callable[[], None]) -> None:
        self.job = job
        self.stops: list[tuple[Cause, float]] = []
        self.asked = asyncio.Event()
        self.left = asyncio.Event()
        self._obedient = obedient
        self._free = free
        self._batches: asyncio.Queue[Sequence[ExecutionEvent]] = asyncio.Queue()

    def tell(self, *events: ExecutionEvent) -> None:
        """Makes events happen, as one batch."""
        self._batches.put_nowait(events)

    async def events(self) -> AsyncGenerator[Sequence[ExecutionEvent]]:
        """Yields what was told."""
        try:
            ended = False
            while not ended:
                batch = await self._batches.get()
                ended = isinstance(batch[-1], Ended)
                yield batch
        finally:
            self.left.set()
            self._free()

    def stop(self, cause: Cause, grace_period: float) -> None:
        """Keeps the order; an obedient run ends at the first one, with two processes ended by force."""
        self.stops.append((cause, grace_period))
        self.asked.set()
        if self._obedient and len(self.stops) == 1:
            self.tell(Ended(Failure(cause, "asked to stop"), 2))


class FakeBackend:
    """A backend of so many workers; `taken` gives the runs in the order in which they were submitted."""

    survives_restart = False

    def __init__(self, capacity: int = 1, *, obedient: bool = True) -> None:
        self.capacity = capacity
        self.worker_deaths = 0
        self.problem = ""
        self.kernels: Mapping[str, str] = {"python3": "python"}
        self.warm_counts: Mapping[str, WarmCounts] = {}
        self.is_open = False
        self.handles: list[Handle] = []
        self._obedient = obedient
        self._submitted: asyncio.Queue[Handle] = asyncio.Queue()
        self._idle = capacity
        self._room = asyncio.Event()
        self._room.set()

    async def start(self) -> None:
        """Begins."""
        self.is_open = True

    async def wait_for_worker(self) -> None:
        """Waits until a worker is free."""
        await self._room.wait()

    def submit(self, job: Job) -> Handle:
        """Takes a run; one too many is a mistake of who submits."""
        assert self._idle > 0, "submitted to no worker"
        self._idle -= 1
        if not self._idle:
            self._room.clear()
        handle = Handle(job, obedient=self._obedient, free=self._release)
        self.handles.append(handle)
        self._submitted.put_nowait(handle)
        return handle

    def find(self, run_id: str, mark: int) -> None:
        """Knows no run of an earlier server."""

    def leave(self) -> None:
        """Ends with its server."""

    def set_deadline(self, moment: float) -> None:
        """Ends nothing by itself."""

    def _release(self) -> None:
        self._idle += 1
        self._room.set()

    async def taken(self, run_id: str = "") -> Handle:
        """Waits for the next run that is submitted, or for this one."""
        handle = await self._submitted.get()
        while run_id and handle.job.run_id != run_id:
            handle = await self._submitted.get()
        return handle

    async def close(self) -> None:
        """Ends."""
        self.is_open = False


@asynccontextmanager
async def running(
    store: Store,
    backend: FakeBackend,
    queue_size: int = 0,
    defaults: Defaults | None = None,
    transfer: Transfer | None = None,
    observers: Sequence[Observer] = (),
    rules: Callable[[], ShareRules] = ShareRules,
) -> AsyncIterator[RunManager]:
    """A runner that is drained and closed when the block is left."""
    carrier = transfer or no_uris()
    admission = Admission(NotebookRoot(None, 10**6), 10**6, defaults or Defaults(), prepare, carrier)
    runner = RunManager(store, backend, admission, queue_size, HistoryLimits(), carrier, observers, rules)
    await runner.open()
    try:
        yield runner
    finally:
        await runner.drain(asyncio.Event(), 0.0)
        await runner.close()


@asynccontextmanager
async def abandoned(
    store: Store,
    backend: FakeBackend,
    queue_size: int = 0,
    rules: Callable[[], ShareRules] = ShareRules,
) -> AsyncIterator[RunManager]:
    """A runner that is gone at the end of the block as if its server had been killed."""
    carrier = no_uris()
    admission = Admission(NotebookRoot(None, 10**6), 10**6, Defaults(), prepare, carrier)
    runner = RunManager(store, backend, admission, queue_size, HistoryLimits(), carrier, (), rules)
    await runner.open()
    before = asyncio.all_tasks()
    yield runner
    own = [runner._retention_task, runner._dispatcher._task, *runner._dispatcher._followers]
    tasks = [task for task in own if task is not None and task in before | asyncio.all_tasks()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if runner._replication is not None:
        await runner._replication.close()
    await store.close()


def spec(**fields: Any) -> StartSpec:
    """A request for a run of two cells."""
    return StartSpec(**{"content": SIMPLE, **fields})


def cell(index: int) -> list[ExecutionEvent]:
    """What a cell tells that prints its number and ends well."""
    said = f"said {index}\n"
    node = code(f"print({index})")
    node.outputs = [new_output("stream", name="stdout", text=said)]
    data = encode_cell(node)
    return [
        CellStarted(index, "id", "line"),
        StreamOutput(index, "stdout", said),
        SegmentChunk(index, data[:5], last=False),
        SegmentChunk(index, data[5:], last=True),
        CellFinished(index, "id", index + 1, 0.1, CellOutcome.SUCCEEDED),
    ]


CHANGED = b'\n ],\n "metadata": {"a": 1}, "nbformat": 4, "nbformat_minor": 5\n}\n'
WHOLE: list[ExecutionEvent] = [
    KernelReady(),
    *cell(0),
    *cell(1),
    SegmentChunk(TAIL, CHANGED, last=True),
    DONE,
]


async def executed(store: Store, run_id: str, as_of: int = 0) -> NotebookNode:
    """The notebook as it was at a sequence number; zero: as it is."""
    row = await store.find(run_id)
    assert row is not None
    segments = await store.segments(row.position, as_of or row.last_sequence)
    return parsed(b"".join(store.folder(run_id).notebook(segments)))


async def tells(log: RunLog, body: object) -> int:
    """Waits until a log tells this; answers the sequence number of it."""
    async for batch in log.follow(0, 3600.0):
        for event in batch:
            if event.body == body:
                return event.sequence
    raise AssertionError(f"the run ended without telling {body}")


async def events(runner: RunManager, run_id: str, after: int = 0) -> list[Event]:
    """All events of a run, until its end."""
    return await events_of((await runner.log(run_id))[1], after)


async def events_of(log: RunLog, after: int = 0) -> list[Event]:
    """All events of a log, until its end."""
    return [event async for batch in log.follow(after, 3600.0) for event in batch]


async def ended(runner: RunManager, run_id: str) -> Run:
    """The run after its end."""
    await events(runner, run_id)
    return await runner.find(run_id)


async def reach(runner: RunManager, run_id: str, state: RunState) -> None:
    """Waits until the run is in a state that it is to pass."""
    _, log = await runner.log(run_id)
    async for batch in log.follow(0, 3600.0):
        if state in states(batch):
            return
    raise AssertionError(f"the run ended without being {state.name}")


async def settled(store: Store) -> None:
    """Lets tasks that were just made come as far as they can: they and this look runs up in turn."""
    for _ in range(5):
        await asyncio.sleep(0)
        await store.newest()


def numbers(told: Sequence[Event]) -> list[int]:
    """The sequence numbers of events."""
    return [event.sequence for event in told]


def states(told: Sequence[Event]) -> list[RunState]:
    """The states that events tell of, in order."""
    return [event.body.run.state for event in told if isinstance(event.body, RunChanged)]
