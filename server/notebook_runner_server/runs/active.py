"""A run that has not ended: what its backend tells becomes events of its log, one batch at a time.

An executed notebook that is to be written to a URI is written between the last of these and the terminal
event. That may take long, so it is done without the lock: the run can be killed, followed and listed
meanwhile. Its worker is free only afterwards, so there are never more writes, nor more runs going on, than
workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import IO

from notebook_runner_server.errors import StorageFullError
from notebook_runner_server.execution.interface import (
    Cause,
    CellChunk,
    CellFinished,
    CellOutcome,
    Ended,
    ExecutionEvent,
    Failure,
    RunHandle,
)
from notebook_runner_server.runs import transitions
from notebook_runner_server.runs.folder import RunFolder
from notebook_runner_server.runs.log import RunLog
from notebook_runner_server.runs.model import (
    Checkpoint,
    ExecutionOptions,
    Part,
    Run,
    RunChanged,
    RunState,
    WriteBatch,
)
from notebook_runner_server.runs.observer import RunContext
from notebook_runner_server.runs.salvage import SalvagedCell
from notebook_runner_server.runs.store import Store
from notebook_runner_server.runs.transitions import PartsCursor, apply_events
from notebook_runner_server.transfer.interface import Transfer, TransferError

_logger = logging.getLogger(__name__)


class OutputUploader:
    """Writes executed notebooks to URIs.

    Args:
        store: Where the notebooks are.
        transfer: What writes to URIs.
    """

    def __init__(self, store: Store, transfer: Transfer) -> None:
        self._store = store
        self._transfer = transfer

    async def deliver(self, run_id: str, log: RunLog, uri: str) -> str:
        """Write a run's notebook as it is now; return why it is not there, or nothing.

        To cancel it is to abandon the write, at once.
        """
        folder = self._store.folder(run_id)
        try:
            # What a worker sent last belongs to the event that is to come.
            parts = await self._store.parts(log.position, log.last_sequence + 1)
            # Without a name, so that nothing of it stays whatever happens.
            with tempfile.TemporaryFile(dir=folder.path) as file:
                await asyncio.to_thread(_assemble, folder, parts, file)
                await self._transfer.write(uri, file.fileno())
        except TransferError as error:
            return f"Not written: {error}."
        except OSError as error:
            return f"Not written: the server cannot keep it for the transfer: {error.strerror}."
        except Exception:
            _logger.exception("a notebook could not be written to its URI", extra={"run_id": run_id})
            return "Not written: the server failed, and its log says more."
        return ""


def _assemble(folder: RunFolder, parts: list[Part], file: IO[bytes]) -> None:
    file.writelines(folder.notebook(parts))
    file.flush()
    file.seek(0)


_logger = logging.getLogger(__name__)
_UNFOLLOWED = "Not written: the server could not follow the run."
_LOST = Failure(Cause.STORAGE_FAILED, "The server could not write what the run did to its state folder.")


class ActiveRun:
    """A run on its way to its end.

    Attributes:
        run: The run as it is now.
        order: What a worker is to do.
        log: Its events.
        run_context: How it went so far.
        settled: Set when no process of it is left, and its end is durable or waits for room.
        stop_requested: Why and with what grace period (seconds) it is to end; None: it is not.

    Args:
        run: The run as the store has it.
        order: What a worker is to do.
        log: Its events.
        parts_size: How many bytes its file of parts has.
        delivery: What writes its notebook to a URI.
        run_context: Is told how it goes.
    """

    def __init__(
        self,
        run: Run,
        order: ExecutionOptions,
        log: RunLog,
        parts_size: int,
        delivery: OutputUploader,
        run_context: RunContext,
    ) -> None:
        self.run = run
        self.order = order
        self.log = log
        self.run_context = run_context
        self.settled = asyncio.Event()
        # An end that the store could not take, and why its notebook is not at its URI.
        self._held: tuple[Ended, str] | None = None
        self.stop_requested: tuple[Cause, float] | None = None
        self._parts_cursor = PartsCursor(parts_size, parts_size)
        self._handle: RunHandle | None = None
        self._delivery = delivery
        self._writing: asyncio.Task[str] | None = None
        # The store did not take something: nothing after it may be told.
        self._lost = False
        # Calls and the backend change the run at the same time.
        self._lock = asyncio.Lock()

    def resume(self, resume: Checkpoint) -> None:
        """Go on where an earlier server has stopped; what it wrote after that is written again."""
        is_between_parts = resume.size == resume.part_start
        self._parts_cursor = PartsCursor(
            resume.size, resume.part_start, part_checksum=0 if is_between_parts else None
        )

    async def move(self, state: RunState) -> None:
        """Bring the run to a later state that is not an end."""
        async with self._lock:
            await self._append(transitions.move(self.run, state, self.log.clock.now()))

    async def end(self, failure: Failure) -> None:
        """End the run, of which no process is there; its notebook is written nowhere."""
        async with self._lock:
            # The first end is the one that callers are told of.
            if self._held is None and not self.run.state.is_terminal:
                output_error = transitions.unwritten(self.run, failure) or _UNFOLLOWED
                await self._end(Ended(self._located(failure)), output_error)

    async def stop(self, cause: Cause, grace_period: float) -> None:
        """Ask that the run be ended; `settled` is set when it is."""
        async with self._lock:
            if self._held is not None:
                # No process of it is left.
                await self._save()
                return
            if self.run.state in (RunState.STARTING, RunState.RUNNING) and not self._lost:
                # A full disk must not keep anyone from ending a run.
                with contextlib.suppress(StorageFullError):
                    await self._append(transitions.move(self.run, RunState.KILLING, self.log.clock.now()))
        self.stop_requested = (cause, grace_period)
        if self._handle is not None:
            self._handle.stop(cause, grace_period)
        if self._writing is not None and not self._writing.cancelling():
            self._writing.cancel()

    async def follow(self, handle: RunHandle) -> None:
        """Take what the backend tells until the run has ended."""
        self._handle = handle
        if self.stop_requested is not None:
            handle.stop(*self.stop_requested)
        # Closed before anything is said of a run that could not be followed: that ends its processes.
        async with contextlib.aclosing(handle.events()) as batches:
            async for batch in batches:
                await self._follow(handle, batch)

    async def _follow(self, handle: RunHandle, batch: Sequence[ExecutionEvent]) -> None:
        async with self._lock:
            ended = await self._take(handle, batch)
            if ended is not None and not self._is_wanted(ended):
                await self._conclude(ended)
        if ended is not None and not self.settled.is_set():
            ended, output_error = await self._delivered(ended)
            async with self._lock:
                await self._conclude(ended, output_error)

    async def _take(self, handle: RunHandle, batch: Sequence[ExecutionEvent]) -> Ended | None:
        """Record what was told, but its end, which is returned."""
        last = batch[-1]
        ended = last if isinstance(last, Ended) else None
        if ended is not None:
            self.run_context.processes_ended = ended.processes_ended
            self.run_context.peak_memory_bytes = ended.peak_memory_bytes
        if not self._lost:
            try:
                await self._record(batch if ended is None else batch[:-1])
                if ended is not None:
                    salvaged = await self._salvaged()
                    ended = replace(ended, failure=self._located(ended.failure) if ended.failure else None)
                    await self._record(salvaged, is_end=True)
            except StorageFullError:
                self._lost = True
                handle.stop(Cause.STORAGE_FAILED, 0.0)
        return ended

    async def _conclude(self, ended: Ended, output_error: str = "") -> None:
        """Record the end of a run of which all else is recorded, unless the store did not take something."""
        await self._end(Ended(self._located(_LOST)) if self._lost else ended, output_error)

    def _is_wanted(self, ended: Ended) -> bool:
        """Tell whether the notebook of a run that ends so is to be written."""
        return (
            bool(self.run.output_uri)
            and not self._lost
            and not transitions.unwritten(self.run, ended.failure)
        )

    async def _delivered(self, ended: Ended) -> tuple[Ended, str]:
        """Write the notebook; return how the run ends then, and why it is not there.

        The first cause wins: who stops the write of a run that had none is its cause.
        """
        work = self._delivery.deliver(self.run.run_id, self.log, self.order.output_uri)
        self._writing = asyncio.ensure_future(work)
        if self.stop_requested is not None:
            self._writing.cancel()
        try:
            await asyncio.wait([self._writing])
        finally:
            self._writing.cancel()
        if not self._writing.cancelled():
            return ended, self._writing.result()
        assert self.stop_requested is not None  # noqa: S101 - nothing else cancels it
        cause, _ = self.stop_requested
        failure = ended.failure or Failure(cause, "The run was ended while its notebook was written.")
        return replace(ended, failure=failure), transitions.abandoned(cause)

    def _located(self, failure: Failure) -> Failure:
        """Say which cell was executed, where a worker that died could not."""
        if failure.cell_index is not None or self.run.current_cell is None:
            return failure
        return replace(failure, cell_index=self.run.current_cell, cell_id=self._parts_cursor.cell_id)

    async def _salvaged(self) -> list[ExecutionEvent]:
        """Return the end of a cell whose worker could not tell it, with the text that it printed."""
        index = self.run.current_cell
        if index is None:
            return []
        # What the worker had sent of this cell's part is not whole.
        self._parts_cursor = self._parts_cursor.without_part()
        seconds = self._parts_cursor.cell_seconds
        part: list[ExecutionEvent] = []
        try:
            cell = SalvagedCell(await self.log.source(self.run.run_id, index))
            self._parts_cursor = replace(self._parts_cursor, cell_id=cell.cell_id)
            await self._record([CellChunk(index, cell.head, last=False)], is_end=True)
            async for events in self.log.shown():
                piece = await asyncio.to_thread(cell.piece, events)
                await self._record([CellChunk(index, piece, last=False)], is_end=True)
            part.append(CellChunk(index, cell.tail(), last=True))
        except StorageFullError:
            raise
        except Exception:
            # The files are damaged or gone: the run must have its end all the same.
            _logger.exception("the text of a cell could not be saved", extra=self.run_context.ids)
            self._parts_cursor = self._parts_cursor.without_part()
        return [*part, CellFinished(index, self._parts_cursor.cell_id, 0, seconds, CellOutcome.STOPPED)]

    async def _record(
        self, batch: Sequence[ExecutionEvent], output_error: str = "", *, is_end: bool = False
    ) -> None:
        if not batch:
            return
        told = apply_events(
            batch, self.run, self._parts_cursor, self.log.clock, self.log.last_sequence, output_error
        )
        if told.is_warm is not None:
            self.run_context.is_warm = told.is_warm
        await self.log.append(told.run, told.events, told.written, self._expire_time(told.run), is_end=is_end)
        self.run, self._parts_cursor = told.run, told.parts_cursor

    async def _append(self, run: Run) -> None:
        event = self.log.next_event(run, RunChanged(run))
        await self.log.append(run, [event], WriteBatch(0), self._expire_time(run))
        self.run = run

    async def _end(self, ended: Ended, output_error: str) -> None:
        """Record an end, or hold it back until there is room for it: nothing is told that is not durable."""
        self._held = ended, output_error
        if not await self._save():
            # A later server must not execute what callers were told to have no process.
            await self.log.note_begun(self.run.run_id)
            _logger.error("the end of a run waits for room in the state folder", extra=self.run_context.ids)
        self.settled.set()

    async def save(self) -> None:
        """Try to record an end that is held back."""
        async with self._lock:
            if await self._save():
                _logger.info("the end of a run could be written", extra=self.run_context.ids)

    async def _save(self) -> bool:
        if self._held is None:
            return True
        ended, output_error = self._held
        parts_cursor = self._parts_cursor
        try:
            # Not if the cell has its end.
            salvaged = await self._salvaged()
            await self._record([*salvaged, ended], output_error, is_end=True)
        except StorageFullError:
            # What was written of the cell is written again.
            self._parts_cursor = parts_cursor
            return False
        self._held = None
        return True

    @property
    def is_held(self) -> bool:
        """Whether the run's end waits for room in the state folder."""
        return self._held is not None

    def _expire_time(self, run: Run) -> int | None:
        # By the system's clock, as it is looked at later.
        return time.time_ns() + int(self.order.retention * 1e9) if run.state.is_terminal else None
