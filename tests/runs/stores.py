"""A store on a real file, and the shortest ways to put something in it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from notebook_runner_server.execution.interface import Cause, Failure
from notebook_runner_server.runs.model import Event, ExecutionOptions, Run, RunState, Segment, WriteBatch
from notebook_runner_server.runs.store import Store
from tests.runs.samples import a_run, changed, some_options

TAIL = -1
SEGMENTS = {0: b"first", 1: b"second", TAIL: b"tail"}


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Store]:
    """A store, open until the block is left."""
    store = Store(folder)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def insert(store: Store, run_id: str, options: ExecutionOptions | None = None, **fields: Any) -> int:
    """Inserts a queued run with two cells; returns its position."""
    run = a_run(run_id=run_id, **fields)
    return await store.insert(run, options or some_options(), "digest", changed(1, run), SEGMENTS)


async def append(
    store: Store, position: int, run: Run, *events: Event, expire_time: int | None = None
) -> None:
    """Appends events that tell of no segment."""
    await store.append(position, run, events, WriteBatch(), expire_time)


async def finish(store: Store, position: int, run_id: str, *, sequence: int = 2, expire_time: int = 0) -> Run:
    """Ends a run as one that was killed."""
    failure = Failure(Cause.KILL_REQUESTED, "why")
    run = replace(a_run(RunState.KILLED, run_id=run_id), end_time=5, failure=failure)
    await append(store, position, run, changed(sequence, run), expire_time=expire_time)
    return run


def content(store: Store, run_id: str, segments: Sequence[Segment]) -> bytes:
    """The notebook that is put together from these versions of a run's segments."""
    return b"".join(store.folder(run_id).notebook(segments))
