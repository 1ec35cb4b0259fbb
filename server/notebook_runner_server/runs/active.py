"""A run that has not ended: what its backend tells becomes events of its log, one batch at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from notebook_runner_server.execution.interface import (
    Cause,
    CellFinished,
    CellOutcome,
    CellStarted,
    Ended,
    ExecutionEvent,
    Failure,
    PartChunk,
    RunHandle,
)
from notebook_runner_server.runs import transitions
from notebook_runner_server.runs.errors import StorageFullError
from notebook_runner_server.runs.log import RunLog
from notebook_runner_server.runs.model import Event, Order, Run, RunChanged, RunState
from notebook_runner_server.runs.salvage import salvage
from notebook_runner_server.runs.store import Written
from notebook_runner_server.runs.tables import Part

_LOST = Failure(Cause.STORAGE_FAILED, "The server could not write what the run did to its state folder.")


class ActiveRun:
    """A run on its way to its end.

    Attributes:
        run: The run as it is now.
        order: What a worker is to do.
        log: Its events.
        ended: Set when the run has its terminal state and no process of it is left.
        processes_ended: How many processes were ended by force; final when `ended` is set.
        unsaved: Whether the store could not take the run's end.
        stop_requested: Why and with what grace period (seconds) it is to end; None: it is not.

    Args:
        run: The run as the store has it.
        order: What a worker is to do.
        log: Its events.
        parts_size: How many bytes its file of parts has.
    """

    def __init__(self, run: Run, order: Order, log: RunLog, parts_size: int) -> None:
        self.run = run
        self.order = order
        self.log = log
        self.ended = asyncio.Event()
        self.processes_ended = 0
        self.unsaved = False
        self.stop_requested: tuple[Cause, float] | None = None
        self._size = parts_size
        self._part_start = parts_size
        self._handle: RunHandle | None = None
        # The store did not take something: nothing after it may be told.
        self._lost = False
        # Calls and the backend change the run at the same time.
        self._lock = asyncio.Lock()

    async def move(self, state: RunState) -> None:
        """Bring the run to a later state that is not an end."""
        async with self._lock:
            await self._append(transitions.move(self.run, state, time.time_ns()))

    async def end(self, failure: Failure) -> None:
        """End the run, of which no process is there."""
        async with self._lock:
            if not self.run.state.is_terminal:
                try:
                    await self._record([*await self._salvaged(), Ended(failure)])
                    self.ended.set()
                except StorageFullError:
                    await self._end(failure)

    async def stop(self, cause: Cause, grace_period: float) -> None:
        """Ask that the run be ended; `ended` is set when it is."""
        async with self._lock:
            if self.run.state in (RunState.STARTING, RunState.RUNNING) and not self._lost:
                await self._append(transitions.move(self.run, RunState.KILLING, time.time_ns()))
        self.stop_requested = (cause, grace_period)
        if self._handle is not None:
            self._handle.stop(cause, grace_period)

    async def follow(self, handle: RunHandle) -> None:
        """Take what the backend tells until the run has ended."""
        self._handle = handle
        if self.stop_requested is not None:
            handle.stop(*self.stop_requested)
        async for batch in handle.events():
            async with self._lock:
                await self._take(handle, batch)

    async def _take(self, handle: RunHandle, batch: Sequence[ExecutionEvent]) -> None:
        last = batch[-1]
        if isinstance(last, Ended):
            self.processes_ended = last.processes_ended
        if not self._lost:
            try:
                await self._record(batch[:-1] if isinstance(last, Ended) else batch)
                if isinstance(last, Ended):
                    await self._record([*await self._salvaged(), last])
            except StorageFullError:
                self._lost = True
                handle.stop(Cause.STORAGE_FAILED, 0.0)
        if isinstance(last, Ended):
            if self._lost:
                await self._end(_LOST)
            self.ended.set()

    async def _salvaged(self) -> list[ExecutionEvent]:
        """Return the end of a cell whose worker could not tell it, with the text that it printed."""
        index = self.run.current_cell
        if index is None:
            return []
        events = await self.log.events_of_cell()
        # What the worker had sent of this cell's part is not whole.
        self._part_start = self._size
        started = events[0]
        assert isinstance(started.body, CellStarted)  # noqa: S101 - it is what they begin with
        seconds = (time.time_ns() - started.time) / 1e9
        cell = salvage(await self.log.source(self.run.run_id, index), events)
        finished = CellFinished(index, started.body.cell_id, 0, max(0.0, seconds), CellOutcome.STOPPED)
        return [PartChunk(index, cell, last=True), finished]

    async def _record(self, batch: Sequence[ExecutionEvent]) -> None:
        if not batch:
            return
        run, start, now = self.run, self._size, time.time_ns()
        events: list[Event] = []
        pieces: list[bytes] = []
        parts: list[Part] = []
        for told in batch:
            if isinstance(told, PartChunk):
                pieces.append(told.data)
                self._size += len(told.data)
                if told.last:
                    # It shows from the event on that comes next and tells of it.
                    sequence = self.log.last_sequence + len(events) + 1
                    parts.append(Part(told.part, sequence, self._part_start, self._size - self._part_start))
                    self._part_start = self._size
            run, body = transitions.react(run, told, now)
            if body is not None:
                events.append(self.log.next_event(run, body, len(events)))
        await self.log.append(run, events, Written(start, pieces, parts), self._expire_time(run))
        self.run = run

    async def _append(self, run: Run) -> None:
        event = self.log.next_event(run, RunChanged(run))
        await self.log.append(run, [event], Written(0), self._expire_time(run))
        self.run = run

    async def _end(self, failure: Failure) -> None:
        run = transitions.end(self.run, failure, time.time_ns())
        try:
            await self._append(run)
        except StorageFullError:
            # The history says at the next start that the run was interrupted; callers learn it now.
            self.log.publish([self.log.next_event(run, RunChanged(run))])
            self.run = run
            self.unsaved = True
        self.ended.set()

    def _expire_time(self, run: Run) -> int | None:
        return run.end_time + int(self.order.retention * 1e9) if run.state.is_terminal else None
