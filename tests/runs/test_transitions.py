"""The state machine: what each state makes of everything that can happen in it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notebook_runner_server.execution.interface import (
    Cause,
    CellFinished,
    CellOutcome,
    CellStarted,
    ClearOutput,
    DisplayOutput,
    Ended,
    ErrorOutput,
    ExecutionEvent,
    Failure,
    KernelReady,
    OutputCut,
    SegmentChunk,
    StreamOutput,
)
from notebook_runner_server.runs.model import Run, RunChanged, RunState
from notebook_runner_server.runs.transitions import (
    IllegalTransitionError,
    end,
    move,
    react,
    upload_aborted,
    upload_refusal,
)
from tests.runs.samples import GOING_ON, TERMINAL, a_run, cell_events

S = RunState
NOW = 99
# The contract's options: no run comes back to a state that stands further left.
ORDER = [S.QUEUED, S.STARTING, S.RUNNING, S.KILLING]
MOVES = {(S.QUEUED, S.STARTING), (S.STARTING, S.RUNNING), (S.STARTING, S.KILLING), (S.RUNNING, S.KILLING)}
# What the contract says beside each cause.
ENDS = {
    Cause.CELL_ERROR: S.FAILED,
    Cause.RUN_TIMEOUT: S.TIMED_OUT,
    Cause.CELL_TIMEOUT: S.TIMED_OUT,
    Cause.OUTPUT_TIMEOUT: S.TIMED_OUT,
    Cause.KILL_REQUESTED: S.KILLED,
    Cause.KERNEL_SIGNALED: S.CRASHED,
    Cause.KERNEL_EXITED: S.CRASHED,
    Cause.OUT_OF_MEMORY: S.CRASHED,
    Cause.KERNEL_NOT_READY: S.CRASHED,
    Cause.PROCESS_LIMIT: S.CRASHED,
    Cause.WORKER_DIED: S.CRASHED,
    Cause.STORAGE_FAILED: S.CRASHED,
    Cause.SERVER_STOPPED: S.INTERRUPTED,
    Cause.SERVER_DIED: S.INTERRUPTED,
}
# What a backend says with nothing of it left to the run's state.
TOLD: list[ExecutionEvent] = [
    CellStarted(1, "id", "print()"),
    StreamOutput(1, "stdout", "text"),
    DisplayOutput(1, "display_data", (("text/plain", 3),)),
    ErrorOutput(1, "ValueError", "no"),
    ClearOutput(1, wait=True),
    OutputCut(1, 10, whole_run=False),
    CellFinished(1, "id", 7, 0.5, CellOutcome.SUCCEEDED),
]


def rank(state: RunState) -> int:
    """How far a state is on the way; all ends are equally far."""
    return ORDER.index(state) if state in ORDER else len(ORDER)


@pytest.mark.parametrize("after", list(RunState))
@pytest.mark.parametrize("before", list(RunState))
def test_moves_are_those_of_the_contract(before: RunState, after: RunState) -> None:
    """From each state only the contract's next ones can be moved to, and none of those is an end."""
    run = a_run(before)
    if (before, after) not in MOVES:
        with pytest.raises(IllegalTransitionError, match=f"{before.name} to {after.name}"):
            move(run, after, NOW)
        return
    started = NOW if after is S.STARTING else 0
    assert move(run, after, NOW) == replace(run, state=after, start_time=started)


@pytest.mark.parametrize("cause", [None, *Cause])
@pytest.mark.parametrize("before", list(RunState))
def test_every_cause_has_its_end(before: RunState, cause: Cause | None) -> None:
    """A run that goes on ends in the state of the cause, once; without a failure it succeeded."""
    run = a_run(before, current_cell=1, cells_completed=1)
    failure = None if cause is None else Failure(cause, "why")
    if before in TERMINAL:
        with pytest.raises(IllegalTransitionError, match="already ended"):
            end(run, failure, NOW)
        return
    ended = end(run, failure, NOW)
    assert ended.state is (S.SUCCEEDED if cause is None else ENDS[cause])
    assert (ended.end_time, ended.current_cell, ended.failure) == (NOW, None, failure)
    assert ended.cells_completed == (run.cells_total if cause is None else 1)


UNWRITTEN = {
    Cause.KILL_REQUESTED: "Not uploaded: the run was killed.",
    Cause.SERVER_STOPPED: "Not uploaded: the server was stopped.",
    Cause.SERVER_DIED: "Upload unknown: the server died.",
    Cause.STORAGE_FAILED: "Not uploaded: the server could not store the run's events.",
}


@pytest.mark.parametrize("cause", [None, *Cause])
def test_some_ends_write_no_notebook(cause: Cause | None) -> None:
    """The run says why, when somebody asked for its notebook; all other ends have it written."""
    failure = None if cause is None else Failure(cause, "why")
    asked, silent = a_run(S.RUNNING, output_uri="s3://bucket/a.ipynb"), a_run(S.RUNNING)
    why = "" if cause is None else UNWRITTEN.get(cause, "")
    assert upload_refusal(asked, failure) == end(asked, failure, NOW).output_error == why
    assert upload_refusal(silent, failure) == end(silent, failure, NOW).output_error == ""
    assert end(asked, failure, NOW, "Refused.").output_error == "Refused."
    assert end(silent, failure, NOW, "Refused.").output_error == ""


@pytest.mark.parametrize("cause", [Cause.KILL_REQUESTED, Cause.SERVER_STOPPED])
def test_a_write_that_is_given_up_may_have_been_one(cause: Cause) -> None:
    """What is said of it names the cause, and does not promise that nothing is there."""
    why = UNWRITTEN[cause].removeprefix("Not uploaded: ")
    assert upload_aborted(cause) == f"Upload aborted; the target may be incomplete: {why}"


@pytest.mark.parametrize("before", list(RunState))
def test_a_ready_kernel_begins_the_run(before: RunState) -> None:
    """STARTING becomes RUNNING; a run that is being killed says nothing; elsewhere it is a fault."""
    run = a_run(before)
    if before is S.STARTING:
        running = replace(run, state=S.RUNNING)
        assert react(run, KernelReady(), NOW) == (running, RunChanged(running))
    elif before is S.KILLING:
        assert react(run, KernelReady(), NOW) == (run, None)
    else:
        with pytest.raises(IllegalTransitionError):
            react(run, KernelReady(), NOW)


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("before", list(RunState))
def test_cells_leave_the_state_as_it_is(before: RunState, told: ExecutionEvent) -> None:
    """Whatever a cell does is told as it is, and the run stays in its state."""
    after, body = react(a_run(before), told, NOW)
    assert after.state is before
    assert body == told


@pytest.mark.parametrize("before", list(RunState))
def test_segments_are_not_told(before: RunState) -> None:
    """A segment of the notebook is for the store and no event of the log."""
    run = a_run(before)
    assert react(run, SegmentChunk(0, b"data", last=True), NOW) == (run, None)


@pytest.mark.parametrize("before", GOING_ON)
def test_the_end_is_told_with_the_run(before: RunState) -> None:
    """The run is in its terminal state, with why its notebook is not at its URI; `Ended` is no event."""
    run = a_run(before)
    assert react(run, Ended(Failure(Cause.KILL_REQUESTED, "why"), 3), NOW) == (run, None)
    assert end(run, Failure(Cause.KILL_REQUESTED, "why"), NOW).state is S.KILLED
    asked = a_run(before, output_uri="s3://bucket/a.ipynb")
    assert end(asked, None, NOW).output_error == ""
    assert end(asked, None, NOW, "Refused.").output_error == "Refused."


@pytest.mark.parametrize("before", TERMINAL)
def test_an_end_is_final(before: RunState) -> None:
    """A second end is a fault."""
    with pytest.raises(IllegalTransitionError):
        end(a_run(before), None, NOW)


@pytest.mark.parametrize(
    ("outcome", "completed"),
    [
        (CellOutcome.SUCCEEDED, 2),
        (CellOutcome.ERROR_ALLOWED, 2),
        (CellOutcome.FAILED, 1),
        (CellOutcome.STOPPED, 1),
    ],
)
def test_cells_completed_counts_those_that_need_nothing_more(outcome: CellOutcome, completed: int) -> None:
    """A started cell completes the ones above it; its own end completes it only when it went well."""
    started, _ = react(a_run(S.RUNNING), CellStarted(1, "id", "line"), NOW)
    finished, _ = react(started, CellFinished(1, "id", 1, 0.0, outcome), NOW)
    assert (started.cells_completed, started.current_cell) == (1, 1)
    assert (finished.cells_completed, finished.current_cell) == (completed, None)


steps = st.one_of(
    cell_events,
    st.just(KernelReady()),
    st.builds(SegmentChunk, st.integers(-1, 5), st.binary(max_size=3), st.booleans()),
    st.builds(Ended, st.none() | st.sampled_from(Cause).map(lambda cause: Failure(cause, "why"))),
    st.sampled_from(RunState),
)


def taken(run: Run, step: ExecutionEvent | RunState) -> Run:
    """The run after a step, or as it was where the step is a fault."""
    try:
        if isinstance(step, Ended):
            return end(run, step.failure, NOW)
        return move(run, step, NOW) if isinstance(step, RunState) else react(run, step, NOW)[0]
    except IllegalTransitionError:
        return run


@given(st.sampled_from(GOING_ON), st.lists(steps, max_size=20))
def test_no_sequence_of_events_goes_backwards(first: RunState, path: list[ExecutionEvent | RunState]) -> None:
    """Whatever is told in whatever order: states only go forwards, and an end stays the end it is."""
    run = a_run(first)
    for step in path:
        after = taken(run, step)
        assert rank(after.state) >= rank(run.state)
        if run.state in TERMINAL:
            assert (after.state, after.failure, after.end_time) == (run.state, run.failure, run.end_time)
        if after.state in TERMINAL:
            assert after.end_time == NOW
        run = after
