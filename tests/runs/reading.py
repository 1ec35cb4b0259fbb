"""Readers of one run's log, and what they read from."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from typing_extensions import override

from notebook_runner_server.errors import StorageFullError
from notebook_runner_server.execution.interface import Cause, Failure, StreamOutput
from notebook_runner_server.runs.log import RunLog
from notebook_runner_server.runs.model import Event, Run, RunState, WriteBatch
from notebook_runner_server.runs.store import Store
from notebook_runner_server.runs.transitions import event_of
from tests.runs.samples import a_run, changed
from tests.runs.stores import insert

LONG = 3600.0
RUNNING = a_run(RunState.RUNNING, run_id="one")
FAILURE = Failure(Cause.KILL_REQUESTED, "why")
ENDED = replace(a_run(RunState.KILLED, run_id="one"), end_time=5, failure=FAILURE)


class CountingStore(Store):
    """A store that counts how often events are read from it."""

    reads = 0

    @override
    async def events(self, position: int, after: int) -> list[Event]:
        """Reads events."""
        self.reads += 1
        return await super().events(position, after)


class FullStore(Store):
    """A store that takes nothing more once it is said to be full."""

    full = False

    @override
    async def append(self, *args: Any, **options: Any) -> int:
        """Refuses, or appends."""
        if self.full:
            raise StorageFullError("no space left")
        return await super().append(*args, **options)


@asynccontextmanager
async def a_log(store: Store) -> AsyncIterator[RunLog]:
    """The log of a run with one event."""
    await store.open()
    try:
        position = await insert(store, "one")
        log = RunLog(store, position, 0, ended=False)
        log.publish([changed(1, a_run(run_id="one"))])
        yield log
    finally:
        await store.close()


async def say(log: RunLog, *texts: str, run: Run = RUNNING) -> None:
    """Appends one event for each text."""
    bodies = [StreamOutput(0, "stdout", text) for text in texts]
    events = [event_of(run, body, log.last_sequence + place, 1) for place, body in enumerate(bodies, 1)]
    await log.append(run, events, WriteBatch())


async def end(log: RunLog) -> None:
    """Appends the terminal event."""
    event = changed(log.last_sequence + 1, ENDED)
    await log.append(ENDED, [event], WriteBatch(), 0)


@asynccontextmanager
async def following(
    log: RunLog, after: int, idle: float = LONG
) -> AsyncIterator[AsyncIterator[Sequence[Event]]]:
    """A reader, until the block is left."""
    reader = log.follow(after, idle)
    assert isinstance(reader, AsyncGenerator)
    try:
        yield reader
    finally:
        await reader.aclose()


def sequences(events: Sequence[Event]) -> list[int]:
    """The sequence numbers of events."""
    return [event.sequence for event in events]


async def first(reader: AsyncIterator[Sequence[Event]]) -> list[int]:
    """The sequence numbers of a reader's next batch."""
    return sequences(await anext(reader))


async def everything(log: RunLog, after: int = 0) -> list[int]:
    """The sequence numbers that a reader gets until the log has ended."""
    return [event.sequence async for batch in log.follow(after, LONG) for event in batch]
