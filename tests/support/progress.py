"""The guarantees of Progress as one executable rule book, which every stream of a test passes."""

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator, Sequence
from itertools import pairwise

from notebook_runner.v1 import notebook_runner_pb2 as pb

TEXT_BYTES = 64 * 1024
MESSAGE_BYTES = 4 * 1024
LINE_CHARACTERS = 200

# The causes that may stand beside each terminal state; none beside success.
CAUSES: dict[int, frozenset[int]] = {
    pb.RUN_STATE_SUCCEEDED: frozenset(),
    pb.RUN_STATE_FAILED: frozenset({pb.FAILURE_CAUSE_CELL_ERROR}),
    pb.RUN_STATE_TIMED_OUT: frozenset(
        {
            pb.FAILURE_CAUSE_RUN_TIMEOUT,
            pb.FAILURE_CAUSE_CELL_TIMEOUT,
            pb.FAILURE_CAUSE_OUTPUT_TIMEOUT,
        }
    ),
    pb.RUN_STATE_KILLED: frozenset({pb.FAILURE_CAUSE_KILL_REQUESTED}),
    pb.RUN_STATE_CRASHED: frozenset(
        {
            pb.FAILURE_CAUSE_KERNEL_SIGNALED,
            pb.FAILURE_CAUSE_KERNEL_EXITED,
            pb.FAILURE_CAUSE_PROCESS_LIMIT,
            pb.FAILURE_CAUSE_OUT_OF_MEMORY,
            pb.FAILURE_CAUSE_KERNEL_NOT_READY,
            pb.FAILURE_CAUSE_WORKER_DIED,
            pb.FAILURE_CAUSE_STORAGE_FAILED,
        }
    ),
    pb.RUN_STATE_INTERRUPTED: frozenset({pb.FAILURE_CAUSE_SERVER_STOPPED, pb.FAILURE_CAUSE_SERVER_DIED}),
}
TERMINAL = frozenset(CAUSES)
# Only a run whose cells were executed can end so.
AFTER_CELLS = frozenset({pb.RUN_STATE_SUCCEEDED, pb.RUN_STATE_FAILED})
WITH_CELLS = frozenset({pb.RUN_STATE_RUNNING, pb.RUN_STATE_KILLING})
LAST_OUTCOMES = frozenset({pb.CELL_OUTCOME_FAILED, pb.CELL_OUTCOME_STOPPED})


class BrokenStreamError(AssertionError):
    """A stream broke one of its guarantees."""


class Validator:
    """Sees every message of one stream, then its end, and raises where a guarantee is broken.

    `after_terminal` says that the request asks for what follows the terminal event: nothing.
    What happened before `after_sequence` is unknown to a stream that resumes, and is learnt from it.
    """

    def __init__(self, request: pb.ProgressRequest, *, after_terminal: bool = False) -> None:
        self._request = request
        self._from_start = request.after_sequence == 0
        self._sequence = request.after_sequence
        self._completed = 0
        self._total = 0
        self._run_id = request.run_id
        self._state: int = pb.RUN_STATE_UNSPECIFIED
        self._open: int | None = None
        self._knows_cell = self._from_start
        self._cell_id = ""
        self._last_cell = -1
        self._cells_are_over = False
        self._is_over = after_terminal

    def see(self, message: pb.ProgressResponse) -> None:
        """Takes the next message."""
        kind = message.WhichOneof("event")
        self._require(not self._is_over, message, "nothing follows the terminal event")
        self._require(kind is not None, message, "a message tells what happened")
        self._check_sequence(message)
        self._check_cells(message)
        match kind:
            case "run_changed":
                self._run_changed(message)
            case "cell_started":
                self._cell_started(message)
            case "cell_output":
                self._cell_output(message)
            case "cell_finished":
                self._cell_finished(message)

    def end(self) -> None:
        """Takes the end of the stream with OK."""
        if not (self._is_over or self._request.snapshot_only):
            raise BrokenStreamError(f"the stream ended OK at {self._sequence}, before the terminal event")

    def _require(self, holds: bool, message: pb.ProgressResponse, rule: str) -> None:
        if not holds:
            raise BrokenStreamError(f"{rule}; after {self._sequence} came: {message}")

    def _check_sequence(self, message: pb.ProgressResponse) -> None:
        number, last = message.sequence, self._sequence
        gaps = self._request.omit_cell_output
        if message.HasField("heartbeat"):
            holds, rule = (number >= last if gaps else number == last), "a heartbeat repeats the last one"
        else:
            holds, rule = (number > last if gaps else number == last + 1), "sequence without gap or repeat"
            self._require(message.HasField("time"), message, "an event has its time")
            first = number == 1
            self._require(not first or message.HasField("run_changed"), message, "the run comes first")
        self._require(holds, message, rule)
        self._sequence = number

    def _check_cells(self, message: pb.ProgressResponse) -> None:
        done, total = message.cells_completed, message.cells_total
        self._require(done >= self._completed, message, "cells_completed never decreases")
        self._require(total == self._total or not self._total, message, "cells_total is constant")
        self._require(done <= total or not total, message, "cells_completed is at most cells_total")
        self._completed, self._total = done, total

    def _run_changed(self, message: pb.ProgressResponse) -> None:
        run = message.run_changed
        self._require(bool(run.run_id), message, "a run has an id")
        self._require(run.run_id == self._run_id or not self._run_id, message, "one stream, one run")
        self._require(run.state > self._state, message, "run states only move forward")
        queued = self._state == pb.RUN_STATE_QUEUED
        self._require(not (queued and run.state in AFTER_CELLS), message, "a queued run has no result")
        self._require(self._state not in TERMINAL, message, "there is one terminal state")
        counts = (run.cells_completed, run.cells_total)
        told = (message.cells_completed, message.cells_total)
        self._require(counts == told, message, "the run has the message's counts")
        self._run_id, self._state = run.run_id, run.state
        is_terminal = run.state in TERMINAL
        undelivered = is_terminal and bool(run.output_uri)
        self._require(undelivered or not run.output_error, message, "output_error is told of an ended run")
        self._require(run.HasField("end_time") == is_terminal, message, "end_time is there at the end")
        self._require(run.HasField("queue_position") <= (run.state == pb.RUN_STATE_QUEUED), message, "queue")
        if is_terminal:
            self._ended(message)

    def _ended(self, message: pb.ProgressResponse) -> None:
        run = message.run_changed
        succeeded = run.state == pb.RUN_STATE_SUCCEEDED
        self._require(self._open is None, message, "a cell that started has finished")
        self._require(run.HasField("failure") != succeeded, message, "a failure unless it succeeded")
        self._require(not run.HasField("current_cell"), message, "an ended run executes no cell")
        if succeeded:
            self._require(run.cells_completed == run.cells_total, message, "success completes all cells")
        else:
            self._require(run.failure.cause in CAUSES[run.state], message, "the cause fits the state")
            self._require(bool(run.failure.message), message, "a failure has a message")
        self._is_over = True

    def _in_run(self, message: pb.ProgressResponse) -> None:
        """Cells are executed only while the run is in a state for it."""
        learnt = self._state == pb.RUN_STATE_UNSPECIFIED and not self._from_start
        self._require(learnt or self._state in WITH_CELLS, message, "cells belong to a running run")

    def _cell_started(self, message: pb.ProgressResponse) -> None:
        self._in_run(message)
        cell = message.cell_started
        self._require(self._open is None, message, "one cell at a time")
        self._require(cell.cell_index > self._last_cell, message, "cells start in order")
        self._require(not self._cells_are_over, message, "no cell starts after one that ended the run")
        self._require(message.cells_completed == cell.cell_index, message, "all cells above are completed")
        short = len(cell.first_line) <= LINE_CHARACTERS and "\n" not in cell.first_line
        self._require(short, message, "first_line is one line")
        self._open, self._knows_cell, self._cell_id = cell.cell_index, True, cell.cell_id

    def _cell_output(self, message: pb.ProgressResponse) -> None:
        self._in_run(message)
        output = message.cell_output
        self._require(not self._request.omit_cell_output, message, "cell output was to be omitted")
        if not self._knows_cell:
            self._open, self._knows_cell = output.cell_index, True
        self._require(output.cell_index == self._open, message, "output belongs to the cell that runs")
        self._require(output.WhichOneof("output") is not None, message, "output is of some kind")
        fits = len(output.stream.text.encode()) <= TEXT_BYTES
        self._require(fits, message, "a text is at most 64 KiB")
        most = self._request.display_data_max_bytes
        asked = [one for one in output.display.data if one.HasField("content")]
        fits = all(len(one.content) <= most and most for one in asked)
        self._require(fits, message, "content is as large as was asked for, if it was")
        fits = len(output.error.exception_message.encode()) <= MESSAGE_BYTES
        self._require(fits, message, "an exception's text is at most 4 KiB")

    def _cell_finished(self, message: pb.ProgressResponse) -> None:
        self._in_run(message)
        cell = message.cell_finished
        opened = cell.cell_index == self._open
        self._require(opened or not self._knows_cell, message, "the cell that started finishes")
        same = cell.cell_id == self._cell_id
        self._require(same or self._open is None or not self._cell_id, message, "a cell keeps its id")
        self._require(cell.outcome != pb.CELL_OUTCOME_UNSPECIFIED, message, "a cell has an outcome")
        timed = cell.HasField("duration") and cell.duration.ToNanoseconds() >= 0
        self._require(timed, message, "a cell has a duration")
        self._cells_are_over = cell.outcome in LAST_OUTCOMES
        counted = self._cells_are_over or message.cells_completed > cell.cell_index
        self._require(counted, message, "a finished cell is completed")
        self._open, self._knows_cell, self._last_cell = None, True, cell.cell_index


def checked(
    stream: Iterable[pb.ProgressResponse],
    request: pb.ProgressRequest,
    *,
    after_terminal: bool = False,
) -> Iterator[pb.ProgressResponse]:
    """The same stream, through the validator."""
    validator = Validator(request, after_terminal=after_terminal)
    for message in stream:
        validator.see(message)
        yield message
    validator.end()


async def checked_async(
    stream: AsyncIterable[pb.ProgressResponse],
    request: pb.ProgressRequest,
    *,
    after_terminal: bool = False,
) -> AsyncGenerator[pb.ProgressResponse, None]:
    """The same stream of grpc.aio, through the validator."""
    validator = Validator(request, after_terminal=after_terminal)
    async for message in stream:
        validator.see(message)
        yield message
    validator.end()


def out_of_order(events: Sequence[pb.ProgressResponse]) -> str:
    """Which time of a run goes backwards, in all of its events; empty: none."""
    run = events[-1].run_changed
    known = [
        (f"its {name}", getattr(run, name).ToNanoseconds())
        for name in ("create_time", "start_time", "end_time")
        if run.HasField(name)
    ]
    happened = [(f"event {event.sequence}", event.time.ToNanoseconds()) for event in events]
    ends = (*zip(known[:1], happened[:1], strict=False), *zip(known[-1:], happened[-1:], strict=False))
    for pairs in (pairwise(known), pairwise(happened), ends):
        for (earlier, before), (later, after) in pairs:
            if after < before:
                return f"{later} is {(before - after) / 1e9:.6f} s before {earlier}"
    return ""
