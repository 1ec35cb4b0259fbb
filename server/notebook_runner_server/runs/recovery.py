"""What becomes of the runs that an earlier server has left."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable

from notebook_runner_server.execution.interface import Backend, Cause, Failure
from notebook_runner_server.runs.active import ActiveRun
from notebook_runner_server.runs.clock import Clock
from notebook_runner_server.runs.dispatcher import Dispatcher
from notebook_runner_server.runs.model import RunChanged, RunState
from notebook_runner_server.runs.resume import Resume
from notebook_runner_server.runs.store import Store
from notebook_runner_server.runs.tables import Row


async def recover(
    store: Store,
    backend: Backend,
    dispatcher: Dispatcher,
    active_run: Callable[[Row, Clock, int], ActiveRun],
) -> None:
    """Say of each run that had not ended what became of it, before anyone can ask.

    Args:
        store: Where they are.
        backend: What may have gone on with them.
        dispatcher: Takes in what waits or goes on.
        active_run: Makes a run of its row, its clock, and the bytes that are there of its parts.
    """
    for row in await store.unended():
        last = (await store.events(row.position, row.last_sequence - 1))[-1]
        size = await asyncio.to_thread(store.folder(row.run.run_id).parts_size)
        active = active_run(row, Clock(last.time), size)
        resume = await store.resume(row.position) or Resume(0, size, size)
        # What goes on is new to those who watch.
        if row.run.state is RunState.QUEUED:
            active.course.tell([last])
            dispatcher.add(active)
        elif handle := backend.find(row.run.run_id, resume.mark):
            active.resume(resume)
            active.course.tell([dataclasses.replace(last, body=RunChanged(row.run))])
            if row.run.state is RunState.KILLING:
                # Whoever asked for that cannot be told that it was done.
                active.stop_requested = Cause.KILL_REQUESTED, 0.0
            dispatcher.follow(active, handle)
        else:
            message = "The server died while the run went on."
            await active.end(Failure(Cause.SERVER_DIED, message, cell_index=row.run.current_cell))
