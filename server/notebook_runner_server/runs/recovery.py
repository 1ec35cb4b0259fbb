"""What becomes of the runs that an earlier server has left."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable

from notebook_runner_server.execution.interface import Backend, Cause, Failure
from notebook_runner_server.runs.active import ActiveRun
from notebook_runner_server.runs.checkpoint import Checkpoint
from notebook_runner_server.runs.clock import Clock
from notebook_runner_server.runs.dispatcher import Dispatcher
from notebook_runner_server.runs.errors import DamagedRunError, damaged
from notebook_runner_server.runs.model import RunChanged, RunState
from notebook_runner_server.runs.store import Store
from notebook_runner_server.runs.tables import RunRecord

_logger = logging.getLogger(__name__)


async def recover(
    store: Store,
    backend: Backend,
    dispatcher: Dispatcher,
    active_run: Callable[[RunRecord, Clock, int], ActiveRun],
) -> None:
    """Say of each run that had not ended what became of it, before anyone can ask.

    Args:
        store: Where they are.
        backend: What may have gone on with them.
        dispatcher: Takes in what waits or goes on.
        active_run: Makes a run of its row, its clock, and the bytes that are there of its parts.
    """
    for row in await store.unended():
        try:
            await _recover(store, backend, dispatcher, active_run, row)
        except (OSError, DamagedRunError) as error:
            # One damaged run is no reason to serve no other.
            store.note_damage(row.run.run_id, error)


async def _recover(
    store: Store,
    backend: Backend,
    dispatcher: Dispatcher,
    active_run: Callable[[RunRecord, Clock, int], ActiveRun],
    row: RunRecord,
) -> None:
    """Say of one run what became of it.

    Raises:
        DamagedRunError: Nobody can, for its events or parts are damaged.
    """
    last = next(iter(await store.events(row.position, row.last_sequence - 1)), None)
    if last is None:
        raise damaged(row.run.run_id, f"event {row.last_sequence} is missing")
    folder = store.folder(row.run.run_id)
    size = await asyncio.to_thread(folder.parts_size)
    failure: Failure | None = None
    try:
        row = dataclasses.replace(row, order=await asyncio.to_thread(store.order, row))
    except DamagedRunError as error:
        _logger.exception("a run that has not ended is damaged", extra={"run_id": row.run.run_id})
        failure = Failure(Cause.STORAGE_FAILED, error.message, cell_index=row.run.current_cell)
    active = active_run(row, Clock(last.time), size)
    resume = await store.checkpoint(row.position) or Checkpoint(0, size, size)
    if row.run.state is RunState.QUEUED and folder.is_begun:
        message = (
            "The server died before the run's end was recorded, and its events were lost from the history."
        )
        failure = failure or Failure(Cause.SERVER_DIED, message)
    if failure is not None:
        await dispatcher.end(active, failure)
        return
    # What goes on is new to those who watch.
    if row.run.state is RunState.QUEUED:
        active.run_context.tell([last])
        dispatcher.add(active)
    elif handle := backend.find(row.run.run_id, resume.mark):
        active.resume(resume)
        active.run_context.tell([dataclasses.replace(last, body=RunChanged(row.run))])
        if row.run.state is RunState.KILLING:
            # Whoever asked for that cannot be told that it was done.
            active.stop_requested = Cause.KILL_REQUESTED, 0.0
        dispatcher.follow(active, handle)
    else:
        message = "The server died while the run went on."
        await dispatcher.end(active, Failure(Cause.SERVER_DIED, message, cell_index=row.run.current_cell))
