"""The stream validator itself: it passes what is right and names what is wrong."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.progress import BrokenStreamError, Validator, checked, checked_async

pytestmark = pytest.mark.unit

Stream = list[pb.ProgressResponse]
RUN = "run-1"
CELLS = 2


def changed(state: pb.RunState.ValueType, completed: int = 0) -> pb.ProgressResponse:
    """The run in a new state."""
    run = pb.Run(run_id=RUN, state=state, cells_total=CELLS, cells_completed=completed)
    if state >= pb.RUN_STATE_SUCCEEDED:
        run.end_time.GetCurrentTime()
    return pb.ProgressResponse(run_changed=run, cells_completed=completed)


def begun(cell: int) -> pb.ProgressResponse:
    """A cell that starts."""
    started = pb.CellStarted(cell_index=cell, cell_id=f"id-{cell}", first_line="print()")
    return pb.ProgressResponse(cell_started=started, cells_completed=cell)


def said(cell: int, text: str = "text") -> pb.ProgressResponse:
    """A cell that prints."""
    output = pb.CellOutput(cell_index=cell, stream=pb.StreamOutput(name="stdout", text=text))
    return pb.ProgressResponse(cell_output=output, cells_completed=cell)


def done(cell: int, outcome: pb.CellOutcome.ValueType = pb.CELL_OUTCOME_SUCCEEDED) -> pb.ProgressResponse:
    """A cell that ends."""
    finished = pb.CellFinished(cell_index=cell, cell_id=f"id-{cell}", outcome=outcome)
    finished.duration.FromMilliseconds(1)
    return pb.ProgressResponse(cell_finished=finished, cells_completed=cell + 1)


def numbered(messages: Iterable[pb.ProgressResponse]) -> Stream:
    """The same messages with sequence numbers, times and the number of cells."""
    stream = list(messages)
    for number, message in enumerate(stream, start=1):
        message.sequence = number
        message.cells_total = CELLS
        message.time.FromSeconds(number)
    return stream


def good() -> Stream:
    """A stream with everything in it that is allowed."""
    return numbered(
        [
            changed(pb.RUN_STATE_QUEUED),
            changed(pb.RUN_STATE_STARTING),
            changed(pb.RUN_STATE_RUNNING),
            begun(0),
            said(0),
            done(0),
            begun(1),
            said(1),
            said(1),
            done(1),
            changed(pb.RUN_STATE_SUCCEEDED, CELLS),
        ]
    )


def judge(stream: Iterable[pb.ProgressResponse], *, after_terminal: bool = False, **fields: object) -> None:
    """Sends the stream through the validator."""
    request = pb.ProgressRequest(run_id=RUN, **fields)  # type: ignore[arg-type] # the tests' own literals
    for _ in checked(stream, request, after_terminal=after_terminal):
        pass


def beat(sequence: int, completed: int) -> pb.ProgressResponse:
    """A heartbeat."""
    return pb.ProgressResponse(
        sequence=sequence, cells_total=CELLS, cells_completed=completed, heartbeat=pb.Heartbeat()
    )


def test_a_good_stream_passes() -> None:
    """Nothing is found in a stream that keeps every guarantee."""
    judge(good())


@pytest.mark.parametrize("sequence", range(1, len(good())))
def test_every_tail_of_a_good_stream_passes(sequence: int) -> None:
    """A stream that resumes is judged by what it can know."""
    judge(good()[sequence:], after_sequence=sequence)


def test_nothing_after_the_terminal_event_passes() -> None:
    """Whoever asks for what follows the end gets an empty stream."""
    judge([], after_sequence=len(good()), after_terminal=True)


def test_heartbeats_that_repeat_the_last_sequence_pass() -> None:
    """A heartbeat may come after every event but the last."""
    stream = [each for event in good()[:-1] for each in (event, beat(event.sequence, event.cells_completed))]
    judge([*stream, good()[-1]])


def test_gaps_pass_where_output_is_omitted() -> None:
    """Without cell output the sequence only grows."""
    judge([m for m in good() if not m.HasField("cell_output")], omit_cell_output=True)


def test_a_snapshot_may_end_early() -> None:
    """A snapshot ends where the run is now."""
    for length in range(len(good())):
        judge(good()[:length], snapshot_only=True)


@pytest.mark.parametrize("length", range(len(good())))
def test_an_early_end_is_found(length: int) -> None:
    """A stream that ends OK before the terminal event is broken."""
    with pytest.raises(BrokenStreamError, match="before the terminal event"):
        judge(good()[:length])


@pytest.mark.parametrize("index", range(len(good()) - 1))
def test_a_lost_a_repeated_and_a_swapped_event_are_found(index: int) -> None:
    """Every gap, every repeat and every wrong order breaks the stream."""
    lost, repeated, swapped = good(), good(), good()
    del lost[index]
    repeated.insert(index, repeated[index])
    swapped[index : index + 2] = reversed(swapped[index : index + 2])
    for stream in (lost, repeated, swapped):
        with pytest.raises(BrokenStreamError):
            judge(stream)


def test_cell_output_that_was_to_be_omitted_is_found() -> None:
    """A reader that asked for no cell output gets none."""
    with pytest.raises(BrokenStreamError, match="omitted"):
        judge(good(), omit_cell_output=True)


def _with(change: Callable[[Stream], object]) -> Stream:
    stream = good()
    change(stream)
    return stream


def _replaced(index: int, *messages: pb.ProgressResponse) -> Stream:
    stream = good()
    stream[index : index + 1] = messages
    return numbered(stream)


BROKEN = {
    "nothing follows": lambda: numbered([*good(), changed(pb.RUN_STATE_FAILED, CELLS)]),
    "nothing follows the terminal": lambda: [*good(), beat(len(good()), CELLS)],
    "a heartbeat repeats": lambda: [*good()[:3], beat(4, 0), *good()[3:]],
    "tells what happened": lambda: [*good()[:3], pb.ProgressResponse(sequence=4), *good()[4:]],
    "has its time": lambda: _with(lambda stream: stream[4].ClearField("time")),
    "the run comes first": lambda: _replaced(0, begun(0)),
    "states only move forward": lambda: _replaced(2, changed(pb.RUN_STATE_QUEUED)),
    "only move forward": lambda: _replaced(1, changed(pb.RUN_STATE_QUEUED)),
    "a queued run has no result": lambda: _replaced(1, changed(pb.RUN_STATE_SUCCEEDED, CELLS)),
    "one stream, one run": lambda: _with(lambda stream: setattr(stream[1].run_changed, "run_id", "2")),
    "cells_completed never": lambda: _with(lambda stream: setattr(stream[7], "cells_completed", 0)),
    "cells_total is constant": lambda: _with(lambda stream: setattr(stream[4], "cells_total", 3)),
    "at most cells_total": lambda: _with(lambda stream: setattr(stream[9], "cells_completed", 3)),
    "the message's counts": lambda: _with(lambda s: setattr(s[2].run_changed, "cells_total", 1)),
    "end_time is there": lambda: _with(lambda stream: stream[-1].run_changed.ClearField("end_time")),
    "running run": lambda: numbered([good()[0], begun(0), *good()[1:]]),
    "one cell at a time": lambda: _replaced(5, begun(1)),
    "cells start in order": lambda: _replaced(6, _again()),
    "the cell that runs": lambda: _replaced(4, said(1)),
    "output belongs": lambda: _replaced(6, said(1)),
    "of some kind": lambda: _with(lambda s: s[4].cell_output.ClearField("stream")),
    "at most 64 KiB": lambda: _replaced(4, said(0, "é" * 32 * 1024 + "x")),
    "the cell that started finishes": lambda: _replaced(5, done(1)),
    "keeps its id": lambda: _with(lambda stream: setattr(stream[5].cell_finished, "cell_id", "x")),
    "has an outcome": lambda: _with(lambda s: s[5].cell_finished.ClearField("outcome")),
    "has a duration": lambda: _with(lambda s: s[5].cell_finished.ClearField("duration")),
    "a finished cell is completed": lambda: _with(lambda s: setattr(s[5], "cells_completed", 0)),
    "all cells above": lambda: _with(lambda s: setattr(s[6], "cells_completed", 2)),
    "that ended the run": lambda: _replaced(5, done(0, pb.CELL_OUTCOME_STOPPED)),
    "has finished": lambda: _replaced(9, said(1)),
    "unless it succeeded": lambda: _with(lambda s: s[-1].run_changed.failure.SetInParent()),
    "completes all cells": lambda: numbered([*good()[:6], changed(pb.RUN_STATE_SUCCEEDED, 1)]),
    "a failure unless": lambda: _replaced(10, changed(pb.RUN_STATE_FAILED, CELLS)),
    "the cause fits": lambda: _failed(pb.FAILURE_CAUSE_CELL_TIMEOUT, "A cell took too long."),
    "has a message": lambda: _failed(pb.FAILURE_CAUSE_CELL_ERROR, ""),
}


def _again() -> pb.ProgressResponse:
    message = begun(0)
    message.cells_completed = 1
    return message


def _failed(cause: pb.FailureCause.ValueType, text: str) -> Stream:
    stream = good()
    stream[-1].run_changed.state = pb.RUN_STATE_FAILED
    stream[-1].run_changed.failure.CopyFrom(pb.Failure(cause=cause, message=text))
    return stream


@pytest.mark.parametrize("rule", BROKEN)
def test_each_broken_rule_is_named(rule: str) -> None:
    """The validator says which guarantee a stream broke."""
    with pytest.raises(BrokenStreamError, match=rule):
        judge(BROKEN[rule]())


def test_a_failed_run_passes() -> None:
    """The last cell may fail, and the run with it."""
    stream = _failed(pb.FAILURE_CAUSE_CELL_ERROR, "The cell raised ValueError.")
    stream[9].cell_finished.outcome = pb.CELL_OUTCOME_FAILED
    judge(stream)


def test_the_asynchronous_form_judges_alike() -> None:
    """A stream of grpc.aio goes through the same rules."""

    async def stream(messages: Stream) -> AsyncIterator[pb.ProgressResponse]:
        for message in messages:
            yield message

    async def read(messages: Stream) -> int:
        return len([m async for m in checked_async(stream(messages), pb.ProgressRequest(run_id=RUN))])

    assert asyncio.run(read(good())) == len(good())
    with pytest.raises(BrokenStreamError):
        asyncio.run(read(good()[:-1]))


def test_the_validator_can_be_fed_by_hand() -> None:
    """A reader that owns its loop feeds messages and the end itself."""
    validator = Validator(pb.ProgressRequest(run_id=RUN))
    for message in good():
        validator.see(message)
    validator.end()
