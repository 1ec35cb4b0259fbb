"""What the runs of both clients have in common, without I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._snapshot import RunSnapshot, RunT
from ._states import is_terminal
from .errors import NotebookRunnerError, QuotaExceeded, RunnerBusy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .v1 import notebook_runner_pb2 as pb

__all__ = ["checked", "is_temporary", "latest", "not_connected", "still_active"]


def latest(run_id: str, events: Iterable[pb.ProgressResponse]) -> pb.Run:
    """Return the run as its events describe it.

    Raises:
        NotebookRunnerError: No event has a state.
    """
    run, last = None, None
    for last in events:
        run = last.run_changed if last.HasField("run_changed") else run
    if run is None or last is None:
        raise NotebookRunnerError(f"The server sent no events for run {run_id}.")
    if not is_terminal(run.state):
        # Later events have counted on.
        run.cells_completed, run.cells_total = last.cells_completed, last.cells_total or run.cells_total
    return run


def checked(run: RunT) -> RunT:
    """Return a run if it has ended.

    Raises:
        TimeoutError: It has not.
    """
    if not run.is_terminal:
        raise still_active(run.id, 0)
    return run


def still_active(run_id: str, timeout: float) -> TimeoutError:
    """Return the error of a wait that was too short."""
    return TimeoutError(f"Run {run_id} has not ended within {timeout:g} s. It continues.")


def is_temporary(error: NotebookRunnerError) -> bool:
    """Return whether a Start was refused only until a place in a queue is free."""
    return isinstance(error, RunnerBusy) or (isinstance(error, QuotaExceeded) and error.quota == "queued")


def not_connected(run: RunSnapshot) -> NotebookRunnerError:
    """Return the error of a run that has no client."""
    return NotebookRunnerError(
        f"Run {run.id} has no client, because it was pickled. Use client.get({run.id!r})."
    )
