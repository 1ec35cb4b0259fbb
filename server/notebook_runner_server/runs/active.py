"""A run that has not ended: the backend's events become events of its log, one batch at a time.

Between the last of these and the terminal event, an executed notebook with an output URI is uploaded, and
the run's files are stored. That may take long, so the run's lock is not held meanwhile: the run can be
killed, followed and listed. Its worker is free only afterwards, so there are never more uploads, nor more
active runs, than workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import IO

from notebook_runner_server.errors import ShuttingDownError, StorageFullError
from notebook_runner_server.execution.interface import (
    Cause,
    CellFinished,
    CellOutcome,
    Ended,
    ExecutionEvent,
    Failure,
    RunHandle,
    SegmentChunk,
)
from notebook_runner_server.runs import transitions
from notebook_runner_server.runs.folder import RunFolder
from notebook_runner_server.runs.log import RunLog
from notebook_runner_server.runs.model import (
    Admitted,
    Checkpoint,
    ExecutionOptions,
    Run,
    RunChanged,
    RunState,
    Segment,
    Successor,
    WriteBatch,
)
from notebook_runner_server.runs.names import new_run_id
from notebook_runner_server.runs.observer import RunContext
from notebook_runner_server.runs.problems import ProblemLogger
from notebook_runner_server.runs.replicas import ClaimedError
from notebook_runner_server.runs.salvage import SalvagedCell
from notebook_runner_server.runs.store import Store
from notebook_runner_server.runs.transitions import SegmentCursor
from notebook_runner_server.transfer.interface import Transfer, TransferError

_logger = ProblemLogger(__name__)
_NOT_FOLLOWED = "Not uploaded: the server could not follow the run."
_NOT_STORED = Failure(
    Cause.STORAGE_FAILED, "The server could not write the run's events to its state folder."
)


@dataclass(frozen=True, slots=True)
class Retries:
    """How the runs that repeat others get into the queue.

    Attributes:
        admitting: Held while a run is in the store and not yet in the queue.
        has_room: Returns whether the share of a run's owner has room for its repetition, given the groups
            that the run stores.
        position: Returns how many queued runs would start before a run.
        add: Adds a stored run to the queue, given its position in the store.
    """

    admitting: asyncio.Lock
    has_room: Callable[[Run, Sequence[str]], bool]
    position: Callable[[Run], int]
    add: Callable[[int, Successor], None]


class ActiveRun:
    """A run on its way to its end.

    Attributes:
        run: The run as it is now.
        options: How it is executed.
        log: Its events.
        run_context: What observers learn of it.
        settled: Set when none of its processes is left, and its end is durable or waits for free space.
        stop_requested: Why and with what grace period (seconds) it has to end; None: it has not.
        is_elsewhere: Whether another server has claimed it.

    Args:
        run: The run as the store has it.
        options: How it is executed.
        store: Where its notebook is.
        transfer: Uploads its notebook.
        log: Its events.
        run_context: What observers learn of it.
        segments_size: The size of its file of segments, in bytes.
        retries: Gets the run that repeats it.
    """

    def __init__(
        self,
        run: Run,
        options: ExecutionOptions,
        store: Store,
        transfer: Transfer,
        log: RunLog,
        run_context: RunContext,
        segments_size: int,
        retries: Retries,
    ) -> None:
        self.run = run
        self.options = options
        self.log = log
        self.run_context = run_context
        self.settled = asyncio.Event()
        self.stop_requested: tuple[Cause, float] | None = None
        self.is_elsewhere = False
        self._cursor = SegmentCursor(segments_size, segments_size)
        self._store = store
        self._transfer = transfer
        self._upload: asyncio.Task[str] | None = None
        self._stopped = asyncio.Event()
        # Its files are stored, as far as that is possible.
        self._is_prepared = False
        self._handle: RunHandle | None = None
        # An end that is not durable: the failure, and why the notebook is not at its URI.
        self._held_end: tuple[Failure | None, str] | None = None
        # The store refused a batch, so no later one may be recorded.
        self._is_incomplete = False
        self._retries = retries
        self._successor_id = ""
        self._is_kill_requested = run.is_kill_requested
        # Calls and the backend change the run at the same time.
        self._lock = asyncio.Lock()

    @property
    def is_held(self) -> bool:
        """Whether the run's end waits for free space in the state folder."""
        return self._held_end is not None

    @property
    def _has_end(self) -> bool:
        return self.is_elsewhere or self.is_held or self.run.state.is_terminal

    @property
    def is_claimed(self) -> bool:
        """Whether this server executes it: a run that is queued may be claimed by another one."""
        return self.run.state is not RunState.QUEUED

    def leave(self) -> None:
        """Let go of the run, which another server has claimed."""
        self.is_elsewhere = True
        # It was refused.
        self._held_end = None
        self.run_context.leave()
        self.settled.set()

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue where an earlier server has stopped; what it wrote after that is written again."""
        is_between = checkpoint.size == checkpoint.segment_start
        self._cursor = SegmentCursor(
            checkpoint.size, checkpoint.segment_start, checksum=0 if is_between else None
        )

    async def move(self, state: RunState, max_active: int | None = None) -> None:
        """Bring the run to a later state that is not terminal; `max_active` as in `Store.append`."""
        async with self._lock:
            moved = transitions.move(self.run, state, self.log.clock.now())
            await self._change(moved, max_active=max_active)

    async def stop(self, cause: Cause, grace_period: float) -> None:
        """Ask the run to end; `settled` is set when it has."""
        if cause is Cause.KILL_REQUESTED:
            # From now on the run is not repeated, also if it crashes first.
            self._is_kill_requested = True
        async with self._lock:
            if self.is_elsewhere:
                return
            if self.is_held:
                # None of its processes is left.
                self._stopped.set()
                # What fails here is logged by the next attempt to record the end.
                with contextlib.suppress(Exception):
                    await self._save_end()
                return
            if self.run.state in (RunState.STARTING, RunState.RUNNING) and not self._is_incomplete:
                # A full disk must not keep anyone from ending a run.
                with contextlib.suppress(StorageFullError):
                    killing = transitions.move(self.run, RunState.KILLING, self.log.clock.now())
                    await self._change(replace(killing, is_kill_requested=self._is_kill_requested))
        self.stop_requested = (cause, grace_period)
        self._stopped.set()
        if self._handle is not None:
            self._handle.stop(cause, grace_period)
        if self._upload is not None and not self._upload.cancelling():
            self._upload.cancel()

    async def follow(self, handle: RunHandle) -> None:
        """Record the backend's events until the run has ended."""
        self._handle = handle
        if self.stop_requested is not None:
            handle.stop(*self.stop_requested)
        # Closing the events ends the processes of a run that cannot be followed, before its end is recorded.
        async with contextlib.aclosing(handle.events()) as batches:
            async for batch in batches:
                if isinstance(last := batch[-1], Ended):
                    self.run_context.processes_ended = last.processes_ended
                    self.run_context.peak_memory_bytes = last.peak_memory_bytes
                    self.run_context.cpu_seconds = last.cpu_seconds
                    await self.finish(last.failure, batch[:-1])
                else:
                    async with self._lock:
                        await self._attempt(partial(self._record, batch))

    async def finish(
        self, failure: Failure | None, last_batch: Sequence[ExecutionEvent] | None = None
    ) -> None:
        """Upload the notebook, store the files, and record the end of a run that has no processes.

        The first end counts.

        Args:
            failure: What ended the run; None: every cell was executed.
            last_batch: What the backend reported before the end; None: nobody followed the run to its end, so
                its notebook is not uploaded.
        """
        output_error = _NOT_FOLLOWED if last_batch is None else ""
        async with self._lock:
            if self._has_end:
                return
            if last_batch is not None:
                await self._attempt(partial(self._record, last_batch))
            interrupted = self.run.current_cell
            if last_batch is not None:
                await self._attempt(self._salvage)
                failure = _NOT_STORED if self._is_incomplete else failure
            # A worker that died could not say which cell was executed.
            if failure is not None and failure.cell_index is None and interrupted is not None:
                failure = replace(failure, cell_index=interrupted, cell_id=self._cursor.cell_id)
            output_error = transitions.upload_refusal(self.run, failure) or output_error
        if self.run.output_uri and not output_error:
            failure, output_error = await self._upload_notebook(failure)
        if await self._prepare_end() and self.stop_requested is not None:
            message = "The run was stopped while its files were stored."
            failure = failure or Failure(self.stop_requested[0], message)
        async with self._lock:
            if not self._has_end:
                await self._hold_end(failure, output_error)

    async def save_end(self) -> None:
        """Try again to record an end that waits for free space."""
        if not self._is_prepared:
            await self._prepare_end()
        async with self._lock:
            if await self._save_end():
                _logger.info("run_end_recorded", extra=self.run_context.ids)

    async def _prepare_end(self) -> bool:
        """Store the run's files; return whether a stop of the run has prevented that."""
        is_cut = False
        # Otherwise its end is held.
        with contextlib.suppress(StorageFullError, ShuttingDownError):
            is_cut = await self._store.prepare_end(self.run, self._stopped)
            self._is_prepared = True
        return is_cut

    async def _hold_end(self, failure: Failure | None, output_error: str) -> None:
        """Record an end, or hold it until the disk has space: readers see only what is durable."""
        self._held_end = failure, output_error
        try:
            if not await self._save_end():
                # A later server must not execute a run that callers believe to have no processes.
                await self._store.mark_begun(self.run.run_id)
                _logger.error("run_end_held", extra=self.run_context.ids)
        finally:
            # Whatever happens, who waits for the end of its processes need not wait longer.
            self.settled.set()

    async def _save_end(self) -> bool:
        if self._held_end is None:
            return True
        if not self._is_prepared:
            return False
        failure, output_error = self._held_end
        try:
            await self._salvage()
            run = transitions.end(self.run, failure, self.log.clock.now(), output_error)
            context = self.run_context
            run = replace(
                run,
                peak_memory_bytes=context.peak_memory_bytes,
                cpu_seconds=context.cpu_seconds,
                is_kill_requested=self._is_kill_requested,
            )
            await self._record_end(run)
        except StorageFullError:
            return False
        self._held_end = None
        return True

    async def _record_end(self, run: Run) -> None:
        """Record the end, and the run that repeats this one, if there is to be one: both or none.

        Raises:
            StorageFullError: They could not be written.
        """
        admitted = await self._stage_successor(run)
        if admitted is None or not await self._record_end_with(run, admitted):
            await self._change(run, is_end=True)

    async def _record_end_with(self, run: Run, admitted: Admitted) -> bool:
        """Record the end together with its successor; false: that is not possible.

        Raises:
            StorageFullError: They could not be written.
        """
        new = admitted.run
        async with self._retries.admitting:
            queued = replace(new, queue_position=self._retries.position(new))
            event = transitions.event_of(queued, RunChanged(queued), 1, new.create_time)
            successor = Successor(admitted, event)
            ended = replace(run, retried_by=new.run_id)
            try:
                position = await self._change(ended, is_end=True, successor=successor)
            except (StorageFullError, ClaimedError):
                raise
            except Exception:
                _logger.exception("run_not_retried", extra=self.run_context.ids)
                return False
            self._retries.add(position, successor)
            return True

    async def _stage_successor(self, run: Run) -> Admitted | None:
        """Write the folder of the run that repeats this one; None: it is not repeated.

        Raises:
            StorageFullError: The disk is full.
        """
        if not transitions.is_retried(run):
            return None
        if not self._successor_id and not self._retries.has_room(run, self.options.owner_groups):
            why = "The owner's history has reached the limit of its share."
            _logger.warning("run_not_retried", extra={**self.run_context.ids, "why": why})
            return None
        # A later attempt to record the end writes the same folder.
        self._successor_id = self._successor_id or new_run_id()
        successor = transitions.successor(run, self._successor_id)
        try:
            return await self._store.stage(successor, self.options, self.log.position)
        except StorageFullError:
            raise
        except Exception:
            # A run whose files are damaged or missing must still end.
            _logger.exception("run_not_retried", extra=self.run_context.ids)
            return None

    async def _attempt(self, step: Callable[[], Awaitable[None]]) -> None:
        """Take a step of recording; when the store refuses one, stop the run and take no further step."""
        if self._is_incomplete:
            return
        try:
            await step()
        except StorageFullError:
            self._is_incomplete = True
            assert self._handle is not None  # noqa: S101 - the run is followed
            self._handle.stop(Cause.STORAGE_FAILED, 0.0)

    async def _upload_notebook(self, failure: Failure | None) -> tuple[Failure | None, str]:
        """Upload the notebook; return how the run ends after that, and why the notebook is not at its URI.

        The first cause wins: stopping the upload is the cause of an end that had none.
        """
        self._upload = asyncio.ensure_future(self._write_to_uri())
        if self.stop_requested is not None:
            self._upload.cancel()
        try:
            await asyncio.wait([self._upload])
        finally:
            self._upload.cancel()
        if not self._upload.cancelled():
            return failure, self._upload.result()
        assert self.stop_requested is not None  # noqa: S101 - nothing else cancels it
        cause, _ = self.stop_requested
        failure = failure or Failure(cause, "The run was stopped during the upload of its notebook.")
        return failure, transitions.upload_aborted(cause)

    async def _write_to_uri(self) -> str:
        """Write the notebook to its URI; return why that failed, or an empty string. Can be cancelled."""
        folder = self._store.folder(self.run.run_id)
        try:
            # What the worker sent last becomes visible with the next event.
            segments = await self._store.segments(self.log.position, self.log.last_sequence + 1)
            # A file without a name leaves nothing behind, whatever happens.
            with tempfile.TemporaryFile(dir=folder.path) as file:
                await asyncio.to_thread(_assemble, folder, segments, file)
                await self._transfer.write(self.options.output_uri, file.fileno())
        except TransferError as error:
            return f"Not uploaded: {error}."
        except OSError as error:
            return f"Not uploaded: the notebook cannot be written to the state folder: {error.strerror}."
        except Exception:
            _logger.exception("upload_failed", extra=self.run_context.ids)
            return "Not uploaded: internal error; see the server log."
        return ""

    async def _salvage(self) -> None:
        """Record the end of a cell whose worker could not report it, with the text that the cell printed.

        Raises:
            StorageFullError: It could not be written; the next attempt starts over.
        """
        index, before = self.run.current_cell, self._cursor
        if index is None:
            return
        # The worker has not sent all of the cell's segment.
        self._cursor = before.without_segment()
        last: list[ExecutionEvent] = []
        try:
            try:
                cell = SalvagedCell(await self._store.source(self.run.run_id, self.log.position, index))
                self._cursor = replace(self._cursor, cell_id=cell.cell_id)
                await self._record([SegmentChunk(index, cell.head, last=False)], is_end=True)
                async for events in self.log.shown():
                    chunk = await asyncio.to_thread(cell.chunk, events)
                    await self._record([SegmentChunk(index, chunk, last=False)], is_end=True)
                last.append(SegmentChunk(index, cell.tail(), last=True))
            except StorageFullError:
                raise
            except Exception:
                # A run whose files are damaged or missing must still end.
                _logger.exception("cell_output_lost", extra=self.run_context.ids)
                self._cursor = self._cursor.without_segment()
            finished = CellFinished(index, self._cursor.cell_id, 0, before.cell_seconds, CellOutcome.STOPPED)
            await self._record([*last, finished], is_end=True)
        except StorageFullError:
            self._cursor = replace(before, cell_id=self._cursor.cell_id)
            raise

    async def _record(self, batch: Sequence[ExecutionEvent], *, is_end: bool = False) -> None:
        """Record a batch of events; `is_end` as in `Store.append`.

        Raises:
            StorageFullError: The store refused them.
        """
        if not batch:
            return
        update = transitions.apply_events(
            batch, self.run, self._cursor, self.log.clock, self.log.last_sequence
        )
        if update.is_warm is not None:
            self.run_context.is_warm = update.is_warm
        await self.log.append(update.run, update.events, update.written, is_end=is_end)
        self.run, self._cursor = update.run, update.cursor

    async def _change(
        self,
        run: Run,
        *,
        is_end: bool = False,
        max_active: int | None = None,
        successor: Successor | None = None,
    ) -> int:
        """Record the run's new state; arguments and result as in `Store.append`."""
        event = transitions.event_of(run, RunChanged(run), self.log.last_sequence + 1, self.log.clock.now())
        # By the system's clock, which retention compares it with.
        retention = int(self.options.retention * 1e9)
        expire_time = time.time_ns() + retention if run.state.is_terminal else None
        position = await self.log.append(
            *(run, [event], WriteBatch(), expire_time),
            is_end=is_end,
            is_first_step=not self.is_claimed,
            max_active=max_active,
            successor=successor,
        )
        self.run = run
        return position


def _assemble(folder: RunFolder, segments: Sequence[Segment], file: IO[bytes]) -> None:
    file.writelines(folder.notebook(segments))
    file.flush()
    file.seek(0)
