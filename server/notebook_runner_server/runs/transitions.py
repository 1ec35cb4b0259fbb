"""The state machine of a run: pure functions from a run and what happened to the run after it."""

from __future__ import annotations

from dataclasses import replace

from notebook_runner_server.execution.interface import (
    Cause,
    CellChunk,
    CellFinished,
    CellOutcome,
    CellStarted,
    Ended,
    ExecutionEvent,
    Failure,
    FileEvent,
    KernelReady,
    ReplayMark,
)
from notebook_runner_server.runs.model import Body, Run, RunChanged, RunState

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
