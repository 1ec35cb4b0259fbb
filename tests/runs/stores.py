"""A store on a real file, and the shortest ways to put something in it."""

import logging
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from notebook_runner_server.execution.interface import Cause, Failure
from notebook_runner_server.runs.artefacts import DEFAULT_BYTES
from notebook_runner_server.runs.model import Event, ExecutionOptions, Run, RunState, Segment, WriteBatch
from notebook_runner_server.runs.store import RemoteHistory, Store
from tests.runs.samples import a_run, changed, some_options
from tests.support.server import Server

TAIL = -1
# A store that follows one on the same folder does not wait for the end of its lease; no delay of a busy
# machine ends one.
LEASE_SECONDS = 300.0
FILES_BYTES = 2**24
_logger = logging.getLogger(__name__)
S = TypeVar("S", bound=Store)
SEGMENTS = {0: b"first", 1: b"second", TAIL: b"tail"}


def a_store(kind: type[S], folder: Path, artefact_bytes: int = DEFAULT_BYTES) -> S:
    """A store of a kind, which is not open yet, on this folder, or on the database that belongs to it."""
    return kind(folder, artefact_bytes, _remote(folder))


def _remote(folder: Path) -> RemoteHistory | None:
    if Server.databases is None:
        return None
    # Extras, which the tests of SQLite do without.
    from notebook_runner_server.runs.postgres.database import PostgresOptions  # noqa: PLC0415 - as above
    from notebook_runner_server.runs.postgres.history import PostgresHistory  # noqa: PLC0415 - as above

    url = Server.databases.url(folder)
    return PostgresHistory(folder, PostgresOptions(url, folder, LEASE_SECONDS, 1, FILES_BYTES, _logger.error))


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Store]:
    """A store, open until the block is left."""
    store = a_store(Store, folder)
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
    is_first = bool(events) and events[0].sequence == 2
    await store.append(position, run, events, WriteBatch(), expire_time, is_first_step=is_first)


async def finish(store: Store, position: int, run_id: str, *, sequence: int = 2, expire_time: int = 0) -> Run:
    """Ends a run as one that was killed."""
    failure = Failure(Cause.KILL_REQUESTED, "why")
    run = replace(a_run(RunState.KILLED, run_id=run_id), end_time=5, failure=failure)
    await append(store, position, run, changed(sequence, run), expire_time=expire_time)
    return run


def leave_file(store: Store, run_id: str, size: int, name: str = "file") -> None:
    """Writes a file as the run's notebook does; no compression makes it smaller."""
    work = store.folder(run_id).work
    work.mkdir(parents=True, exist_ok=True)
    (work / name).write_bytes(os.urandom(size))


def check_folders(folder: Path, run_ids: Iterable[str]) -> None:
    """Asserts that each run has its folder, if these are the history, and that there is no other."""
    found, wanted = {path.name for path in (folder / "runs").iterdir()}, set(run_ids)
    assert found == wanted if Server.databases is None else found <= wanted


def content(store: Store, run_id: str, segments: Sequence[Segment]) -> bytes:
    """The notebook that is put together from these versions of a run's segments."""
    return b"".join(store.folder(run_id).notebook(segments))
