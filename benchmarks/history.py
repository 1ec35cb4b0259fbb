"""Write histories of ended runs directly into the store."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from notebook_runner_server.execution.interface import Limits, StreamOutput
from notebook_runner_server.runs import schema, tables
from notebook_runner_server.runs.model import (
    Event,
    ExecutionOptions,
    Run,
    RunChanged,
    RunState,
    Segment,
    WriteBatch,
)
from notebook_runner_server.runs.schema import SqliteConnection
from notebook_runner_server.runs.store import Store

AT_ONCE = 1000
FOR_EVER = 4 * 10**18


def fill(state: Path, runs: int, events: int = 8) -> None:
    """Write a history of ended runs, each with events and a folder.

    Args:
        state: The state folder to create.
        runs: Number of runs.
        events: Number of events of each run.
    """
    state.mkdir()
    with schema.connect(state / "notebook-runner.db") as db:
        schema.create(db)
        db.execute("BEGIN")
        for number in range(runs):
            run_id = f"20260101-000000-{number:08x}"
            _insert(db, run_id, events)
            os.makedirs(state / "runs" / run_id / "work")
        db.execute("COMMIT")
    db.close()


def _insert(db: SqliteConnection, run_id: str, count: int) -> None:
    now = time.time_ns()
    run = Run(run_id, "", RunState.SUCCEEDED, now, "python3", 1, end_time=now, cells_completed=1)
    order: Any = {"working_folder": "", "allow_errors": False, "environment": {}, "retention": 1e6}
    first = Event(1, now, 0, 1, RunChanged(run))
    segments = [Segment(0, 0, 0, 0), Segment(-1, 0, 0, 0)]
    position = tables.insert_run(db, run, ExecutionOptions(limits=Limits(), **order), "", first, segments)
    text = StreamOutput(0, "stdout", "a line of text\n")
    for start in range(2, count, AT_ONCE):
        bodies = range(start, min(start + AT_ONCE, count))
        events = [Event(sequence, now, 0, 1, text) for sequence in bodies]
        tables.append(db, position, run, events, [], FOR_EVER)
    tables.append(db, position, run, [Event(count, now, 1, 1, RunChanged(run))], [], FOR_EVER)


async def grow(state: Path, lines: int) -> float:
    """Append lines to all runs of a history concurrently, each line after the run's previous one is durable.

    Args:
        state: The state folder.
        lines: Number of lines of each run.

    Returns:
        The duration in seconds.
    """
    store = Store(state)
    await store.open()
    try:
        rows = await store.ended(0, store.count)
        begin = time.perf_counter()
        await asyncio.gather(*(_print(store, row, lines) for row in rows))
        return time.perf_counter() - begin
    finally:
        await store.close()


async def _print(store: Store, row: tables.RunRecord, lines: int) -> None:
    text = StreamOutput(0, "stdout", "a line of text\n")
    for sequence in range(row.last_sequence + 1, row.last_sequence + 1 + lines):
        event = Event(sequence, time.time_ns(), 0, 1, text)
        await store.append(row.position, row.run, [event], WriteBatch(), FOR_EVER)
