"""The state machine of a run: pure functions from a run and the backend's events to the run after them."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from notebook_runner_server.execution.interface import (
    MAX_TEXT_BYTES,
    Cause,
    CellFinished,
    CellOutcome,
    CellStarted,
    DisplayOutput,
    Ended,
    ExecutionEvent,
    Failure,
    FileEvent,
    FilePiece,
    FilesLeft,
    KeptContent,
    KernelReady,
    ReplayMark,
    ResultValue,
    SegmentChunk,
    StreamOutput,
)
from notebook_runner_server.execution.output_limiter import data_size
from notebook_runner_server.runs.model import (
    Body,
    Checkpoint,
    Event,
    Run,
    RunChanged,
    RunState,
    Segment,
    WriteBatch,
)
from notebook_runner_server.runs.results import Results

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
"""The terminal state for each cause."""

# Why the notebook of a run with such a failure is not uploaded.
_NOT_UPLOADED = {
    Cause.KILL_REQUESTED: "the run was killed",
    Cause.SERVER_STOPPED: "the server was stopped",
    Cause.SERVER_DIED: "the server died",
    Cause.STORAGE_FAILED: "the server could not store the run's events",
}


class Clock:
    """The clock of one run, which never goes backwards.

    It takes the system's time once, and a monotonic clock from there on: times of a run stay in order, and
    durations stay true, when the system's clock is set.

    Args:
        not_before: Nanoseconds since the epoch that the run has already seen.
    """

    def __init__(self, not_before: int = 0) -> None:
        self._origin = max(time.time_ns(), not_before) - time.monotonic_ns()

    def now(self) -> int:
        """Return nanoseconds since the epoch, UTC."""
        return self._origin + time.monotonic_ns()


class IllegalTransitionError(RuntimeError):
    """A transition that the state machine does not have: a bug of this program."""


def move(run: Run, state: RunState, now: int) -> Run:
    """Return the run in a later state that is not terminal.

    Raises:
        IllegalTransitionError: Its state does not lead to that one.
    """
    if state not in _NEXT.get(run.state, ()):
        raise IllegalTransitionError(f"{run.run_id}: {run.state.name} to {state.name}")
    started = now if state is RunState.STARTING else run.start_time
    return replace(run, state=state, start_time=started)


def end(run: Run, failure: Failure | None, now: int, output_error: str = "") -> Run:
    """Return the run after its end.

    Args:
        run: The run.
        failure: What ended it; None: every cell was executed.
        now: The time of the end, in nanoseconds since the epoch.
        output_error: Why its notebook is not at its URI, where the failure does not imply it.

    Raises:
        IllegalTransitionError: The run has already ended.
    """
    if run.state.is_terminal:
        raise IllegalTransitionError(f"{run.run_id}: {run.state.name} has already ended")
    return replace(
        run,
        state=RunState.SUCCEEDED if failure is None else ENDS[failure.cause],
        end_time=now,
        current_cell=None,
        cells_completed=run.cells_total if failure is None else run.cells_completed,
        failure=failure,
        output_error=(output_error or upload_refusal(run, failure)) if run.output_uri else "",
    )


def is_retried(run: Run) -> bool:
    """Return whether a run that has ended is to be repeated."""
    policy = run.retry
    if policy is None or run.is_kill_requested or run.attempt > policy.max_retries:
        return False
    return run.state in policy.states


def successor(run: Run, run_id: str) -> Run:
    """Return the queued run that repeats a run.

    Args:
        run: The run, which has ended and has a retry policy.
        run_id: The id of the new run.
    """
    assert run.retry is not None  # noqa: S101 - see above
    return replace(
        run,
        run_id=run_id,
        request_id="",
        state=RunState.QUEUED,
        create_time=run.end_time,
        start_time=0,
        end_time=0,
        cells_completed=0,
        current_cell=None,
        failure=None,
        queue_position=None,
        output_error="",
        peak_memory_bytes=0,
        cpu_seconds=None,
        results=Results(),
        attempt=run.attempt + 1,
        retry_of=run.run_id,
        retried_by="",
        not_before=run.end_time + round(run.retry.delay(run.attempt) * 1e9),
    )


def seconds_to_start(run: Run, now: int) -> float:
    """Return the seconds until a queued run may start.

    Args:
        run: The run.
        now: The system's time, in nanoseconds since the epoch. If it was set back since the run's
            predecessor ended, the run does not wait longer than its policy says.
    """
    if run.retry is None or not run.not_before:
        return 0.0
    return min(max((run.not_before - now) / 1e9, 0.0), run.retry.delay(run.attempt - 1))


def upload_refusal(run: Run, failure: Failure | None) -> str:
    """Return why the notebook of a run with this failure is not uploaded; empty: it is, or has no URI."""
    why = _NOT_UPLOADED.get(failure.cause) if failure is not None and run.output_uri else None
    if failure is None or why is None:
        return ""
    # The server may have died after the upload.
    return f"{'Upload unknown' if failure.cause is Cause.SERVER_DIED else 'Not uploaded'}: {why}."


def upload_aborted(cause: Cause) -> str:
    """Return what to say of a notebook whose run was stopped during the upload."""
    return f"Upload aborted; the target may be incomplete: {_NOT_UPLOADED[cause]}."


def react(run: Run, event: ExecutionEvent, now: int) -> tuple[Run, Body | None]:
    """Return the run after an event of the backend, and what its log records of it; None: nothing."""
    match event:
        case KernelReady():
            running = run if run.state is RunState.KILLING else move(run, RunState.RUNNING, now)
            return running, None if running is run else RunChanged(running)
        case CellStarted():
            return replace(run, current_cell=event.cell_index, cells_completed=event.cell_index), event
        case CellFinished():
            done = event.outcome in (CellOutcome.SUCCEEDED, CellOutcome.ERROR_ALLOWED)
            completed = event.cell_index + 1 if done else run.cells_completed
            return replace(run, current_cell=None, cells_completed=completed), event
        case DisplayOutput(result=ResultValue() as result):
            return replace(run, results=run.results.with_value(result)), event
        # The run's end is recorded by `end`, once its processes are gone and its notebook is uploaded.
        case Ended() | SegmentChunk() | FilePiece() | FilesLeft() | ReplayMark():
            return run, None
    return run, event


def event_of(run: Run, body: Body, sequence: int, time: int) -> Event:
    """Return an event of a run's log, given the run after the event."""
    return Event(sequence, time, run.cells_completed, run.cells_total, body)


@dataclass(frozen=True, slots=True)
class SegmentCursor:
    """How far a run has come between two batches.

    Attributes:
        size: The size of its file of segments, in bytes.
        segment_start: Where the unfinished segment begins in the file.
        cell_id: The id of the current cell, or of the last one.
        cell_start: When that cell was started, by the monotonic clock; 0: before this server.
        checksum: CRC-32 of the unfinished segment so far; None: unknown, begun by an earlier server.
    """

    size: int
    segment_start: int
    cell_id: str = ""
    cell_start: float = 0.0
    checksum: int | None = field(default=0, compare=False)

    def without_segment(self) -> SegmentCursor:
        """Return the cursor at the beginning of a new segment."""
        return replace(self, segment_start=self.size, checksum=0)

    def with_chunk(self, data: bytes) -> SegmentCursor:
        """Return the cursor after a chunk of the unfinished segment."""
        checksum = None if self.checksum is None else zlib.crc32(data, self.checksum)
        return replace(self, size=self.size + len(data), checksum=checksum)

    @property
    def cell_seconds(self) -> float:
        """Seconds since the cell was started; 0: unknown."""
        return time.monotonic() - self.cell_start if self.cell_start else 0.0


@dataclass(frozen=True, slots=True)
class Update:
    """The result of a batch.

    Attributes:
        run: The run after the batch.
        cursor: The cursor after the batch.
        events: The new events of the run's log.
        written: What goes into the run's folder.
        is_warm: Whether the kernel was warm; None: the batch does not say.
    """

    run: Run
    cursor: SegmentCursor
    events: list[Event]
    written: WriteBatch
    is_warm: bool | None


def apply_events(
    batch: Sequence[ExecutionEvent], run: Run, cursor: SegmentCursor, clock: Clock, last_sequence: int
) -> Update:
    """Return what a batch of the backend's events makes of a run; nothing is changed yet.

    Args:
        batch: The events.
        run: The run before them.
        cursor: The cursor before them.
        clock: The run's clock.
        last_sequence: The sequence number of the newest event in the run's log.
    """
    marks = [event.number for event in batch if isinstance(event, ReplayMark)]
    start, now = cursor.size, clock.now()
    events: list[Event] = []
    chunks: list[bytes] = []
    segments: list[Segment] = []
    files: list[FileEvent] = []
    is_warm: bool | None = None
    for arrived in _with_joined_text(one for one in batch if not isinstance(one, ReplayMark)):
        event = arrived
        sequence = last_sequence + len(events) + 1
        match event:
            case SegmentChunk():
                chunks.append(event.data)
                cursor = cursor.with_chunk(event.data)
                if event.last:
                    # The segment becomes visible with the next event.
                    length = cursor.size - cursor.segment_start
                    segments.append(
                        Segment(event.segment, sequence, cursor.segment_start, length, cursor.checksum)
                    )
                    cursor = cursor.without_segment()
            case CellStarted():
                cursor = replace(cursor, cell_id=event.cell_id, cell_start=time.monotonic())
            case KernelReady():
                is_warm = event.is_warm
            case FilePiece() | FilesLeft():
                files.append(event)
            case DisplayOutput() if event.contents:
                # No segment is unfinished: the chunks of one come without an event in between.
                chunks += [content for _, content in event.contents]
                event, cursor = _kept(event, cursor)
        run, body = react(run, event, now)
        if body is not None:
            events.append(event_of(run, body, sequence, clock.now()))
    checkpoint = Checkpoint(marks[-1], cursor.segment_start, cursor.size) if marks else None
    return Update(run, cursor, events, WriteBatch(start, chunks, segments, checkpoint, files), is_warm)


def _kept(event: DisplayOutput, cursor: SegmentCursor) -> tuple[DisplayOutput, SegmentCursor]:
    """Return the event of a display with the place of its content instead of the content itself."""
    kept, start = [], cursor.size
    for index, content in event.contents:
        kept.append(KeptContent(index, start, len(content), zlib.crc32(content)))
        start += len(content)
    return replace(event, contents=(), kept=tuple(kept)), replace(cursor, size=start).without_segment()


def _with_joined_text(events: Iterable[ExecutionEvent]) -> Iterator[ExecutionEvent]:
    """Yield events, adjacent text of one stream as one event.

    While a kernel prints faster than its text is stored and sent, a batch has what has arrived meanwhile: an
    event for each piece would fall behind further. Text that arrives alone is an event of its own.
    """
    first: StreamOutput | None = None
    pieces: list[str] = []
    size = 0
    for event in events:
        if isinstance(event, StreamOutput):
            length = data_size(event.text)
            is_next = first is not None and (first.cell_index, first.name) == (event.cell_index, event.name)
            if is_next and size + length <= MAX_TEXT_BYTES:
                pieces.append(event.text)
                size += length
                continue
        if first is not None:
            yield replace(first, text="".join(pieces))
        first = None
        if isinstance(event, StreamOutput):
            first, pieces, size = event, [event.text], length
        else:
            yield event
    if first is not None:
        yield replace(first, text="".join(pieces))
