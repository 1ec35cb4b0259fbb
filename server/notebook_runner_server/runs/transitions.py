"""The state machine of a run: pure functions from a run and what happened to the run after it."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from notebook_runner_server.execution.files import FileEvent, FilePiece, FilesLeft
from notebook_runner_server.execution.interface import (
    Cause,
    CellChunk,
    CellFinished,
    CellOutcome,
    CellStarted,
    Ended,
    ExecutionEvent,
    Failure,
    KernelReady,
    ReplayMark,
)
from notebook_runner_server.runs.model import (
    Body,
    Checkpoint,
    Event,
    Part,
    Run,
    RunChanged,
    RunState,
    WriteBatch,
)


class Clock:
    """Tells the time of a run: of the system's clock at its beginning, and a monotonic clock from there on.

    The system's clock may be set while a run goes on; its times shall stay in order all the same, and the
    time between two of them be the time that passed.

    Args:
        not_before: Nanoseconds since the epoch that the run has already seen.
    """

    def __init__(self, not_before: int = 0) -> None:
        self._origin = max(time.time_ns(), not_before) - time.monotonic_ns()

    def now(self) -> int:
        """Return nanoseconds since the epoch, UTC."""
        return self._origin + time.monotonic_ns()


_NEXT = {
    RunState.QUEUED: {RunState.STARTING},
    RunState.STARTING: {RunState.RUNNING, RunState.KILLING},
    RunState.RUNNING: {RunState.KILLING},
    RunState.KILLING: set[RunState](),
}

ENDS = {
    Cause.CELL_ERROR: RunState.FAILED,
    Cause.RUN_TIMEOUT: RunState.TIMED_OUT,
    Cause.CELL_TIMEOUT: RunState.TIMED_OUT,
    Cause.OUTPUT_TIMEOUT: RunState.TIMED_OUT,
    Cause.KILL_REQUESTED: RunState.KILLED,
    Cause.KERNEL_SIGNALED: RunState.CRASHED,
    Cause.KERNEL_EXITED: RunState.CRASHED,
    Cause.OUT_OF_MEMORY: RunState.CRASHED,
    Cause.KERNEL_NOT_READY: RunState.CRASHED,
    Cause.PROCESS_LIMIT: RunState.CRASHED,
    Cause.WORKER_DIED: RunState.CRASHED,
    Cause.STORAGE_FAILED: RunState.CRASHED,
    Cause.SERVER_STOPPED: RunState.INTERRUPTED,
    Cause.SERVER_DIED: RunState.INTERRUPTED,
}
"""How a run ends for each cause."""

# Runs that end so have their notebook written nowhere.
_UNWRITTEN = {
    Cause.KILL_REQUESTED: "the run was killed",
    Cause.SERVER_STOPPED: "the server was stopped",
    Cause.SERVER_DIED: "the server died",
    Cause.STORAGE_FAILED: "the server could not keep what the run did",
}


def event_of(run: Run, body: Body, sequence: int, time: int) -> Event:
    """Return the event that records something of a run, which is as it is after it."""
    return Event(sequence, time, run.cells_completed, run.cells_total, body)


class IllegalTransitionError(RuntimeError):
    """A run cannot go from the one state to the other: a fault in this program."""


def move(run: Run, state: RunState, now: int) -> Run:
    """Return the run in a later state that is not an end.

    Raises:
        IllegalTransitionError: There is no way from its state to that one.
    """
    if state not in _NEXT.get(run.state, ()):
        raise IllegalTransitionError(f"{run.run_id}: {run.state.name} to {state.name}")
    started = now if state is RunState.STARTING else run.start_time
    return replace(run, state=state, start_time=started)


def unwritten(run: Run, failure: Failure | None) -> str:
    """Return why the notebook of a run that ends so is not to be written; empty: it is, or nobody asked."""
    why = _UNWRITTEN.get(failure.cause) if failure is not None and run.output_uri else None
    if failure is None or why is None:
        return ""
    # It may have died when all was there.
    known = "Not known to be written" if failure.cause is Cause.SERVER_DIED else "Not written"
    return f"{known}: {why}."


def abandoned(cause: Cause) -> str:
    """Return what to say of a notebook while which was written the run was stopped."""
    return f"Given up while it was written, and so perhaps there: {_UNWRITTEN[cause]}."


def end(run: Run, failure: Failure | None, now: int, output_error: str = "") -> Run:
    """Return the run after its end; no failure means that every cell was executed.

    Args:
        run: The run.
        failure: What ended it.
        now: When, in nanoseconds since the epoch.
        output_error: Why its notebook is not at its URI, where the failure alone does not tell.

    Raises:
        IllegalTransitionError: It has ended already.
    """
    if run.state.is_terminal:
        raise IllegalTransitionError(f"{run.run_id}: {run.state.name} has ended already")
    return replace(
        run,
        state=RunState.SUCCEEDED if failure is None else ENDS[failure.cause],
        end_time=now,
        current_cell=None,
        cells_completed=run.cells_total if failure is None else run.cells_completed,
        failure=failure,
        output_error=(output_error or unwritten(run, failure)) if run.output_uri else "",
    )


def react(run: Run, event: ExecutionEvent, now: int, output_error: str = "") -> tuple[Run, Body | None]:
    """Return the run after what a backend told, and what the log is to say of it; see `end`."""
    match event:
        case KernelReady():
            if run.state is RunState.KILLING:
                return run, None
            run = move(run, RunState.RUNNING, now)
            return run, RunChanged(run)
        case CellStarted():
            return replace(run, current_cell=event.cell_index, cells_completed=event.cell_index), event
        case CellFinished():
            done = event.outcome in (CellOutcome.SUCCEEDED, CellOutcome.ERROR_ALLOWED)
            completed = event.cell_index + 1 if done else run.cells_completed
            return replace(run, current_cell=None, cells_completed=completed), event
        case Ended():
            run = end(run, event.failure, now, output_error)
            return run, RunChanged(run)
    return run, None if isinstance(event, CellChunk | FileEvent | ReplayMark) else event


@dataclass(frozen=True, slots=True)
class PartsCursor:
    """How far a run is, between two batches.

    Attributes:
        size: Bytes that its file of parts has.
        part_start: Where in it the part begins that is not whole yet.
        cell_id: Of the cell that is executed, or was last.
        cell_start: When that was started, by the monotonic clock; 0: before this server.
        part_checksum: Of what there is of that part; None: what an earlier server has of it is not known.
    """

    size: int
    part_start: int
    cell_id: str = ""
    cell_start: float = 0.0
    part_checksum: int | None = field(default=0, compare=False)

    def without_part(self) -> PartsCursor:
        """Return the same standing, with what there is of a part given up."""
        return replace(self, part_start=self.size, part_checksum=0)

    def with_piece(self, data: bytes) -> PartsCursor:
        """Return the standing after more of a part."""
        known = self.part_checksum
        total = None if known is None else zlib.crc32(data, known)
        return replace(self, size=self.size + len(data), part_checksum=total)

    @property
    def cell_seconds(self) -> float:
        """Seconds since the cell was started; 0: nobody knows."""
        return time.monotonic() - self.cell_start if self.cell_start else 0.0


@dataclass(frozen=True, slots=True)
class Update:
    """What a batch has made.

    Attributes:
        run: The run after it.
        parts_cursor: How far it is then.
        events: What its log is to say.
        written: What goes into its files.
        is_warm: Whether its kernel was there already; None: that was not told.
    """

    run: Run
    parts_cursor: PartsCursor
    events: list[Event]
    written: WriteBatch
    is_warm: bool | None


def apply_events(
    batch: Sequence[ExecutionEvent],
    run: Run,
    parts_cursor: PartsCursor,
    clock: Clock,
    last_sequence: int,
    output_error: str,
) -> Update:
    """Return what a batch makes of a run; nothing has changed yet.

    Args:
        batch: What the backend has told.
        run: The run before it.
        parts_cursor: How far that is.
        clock: The run's clock.
        last_sequence: The sequence number of the newest event of its log.
        output_error: Why its notebook is not at its URI; see `end`.
    """
    start, now = parts_cursor.size, clock.now()
    events: list[Event] = []
    pieces: list[bytes] = []
    parts: list[Part] = []
    files: list[FileEvent] = []
    mark: int | None = None
    is_warm: bool | None = None
    for told in batch:
        match told:
            case CellChunk():
                pieces.append(told.data)
                parts_cursor = parts_cursor.with_piece(told.data)
                if told.last:
                    # It shows from the event on that comes next and tells of it.
                    sequence = last_sequence + len(events) + 1
                    length = parts_cursor.size - parts_cursor.part_start
                    parts.append(
                        Part(told.part, sequence, parts_cursor.part_start, length, parts_cursor.part_checksum)
                    )
                    parts_cursor = parts_cursor.without_part()
            case ReplayMark():
                mark = told.number
            case CellStarted():
                parts_cursor = replace(parts_cursor, cell_id=told.cell_id, cell_start=time.monotonic())
            case KernelReady():
                is_warm = told.is_warm
            case FilePiece() | FilesLeft():
                files.append(told)
        run, body = react(run, told, now, output_error)
        if body is not None:
            events.append(event_of(run, body, last_sequence + len(events) + 1, clock.now()))
    resume = None if mark is None else Checkpoint(mark, parts_cursor.part_start, parts_cursor.size)
    return Update(run, parts_cursor, events, WriteBatch(start, pieces, parts, resume, files), is_warm)
