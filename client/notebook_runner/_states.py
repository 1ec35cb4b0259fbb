"""The names of states and causes, as people write them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .v1 import notebook_runner_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.descriptor import EnumDescriptor

__all__ = ["ACTIVE", "cause_name", "is_terminal", "newest", "parse_state", "state_name", "to_kill"]

# The states of runs that have not ended, and of those that a worker has.
_WITH_WORKER = (pb.RUN_STATE_STARTING, pb.RUN_STATE_RUNNING, pb.RUN_STATE_KILLING)
ACTIVE = (pb.RUN_STATE_QUEUED, *_WITH_WORKER)

_STATE_PREFIX = "RUN_STATE_"
_CAUSE_PREFIX = "FAILURE_CAUSE_"
_TERMINAL = frozenset(
    {
        pb.RUN_STATE_SUCCEEDED,
        pb.RUN_STATE_FAILED,
        pb.RUN_STATE_TIMED_OUT,
        pb.RUN_STATE_KILLED,
        pb.RUN_STATE_CRASHED,
        pb.RUN_STATE_INTERRUPTED,
    }
)


def is_terminal(state: pb.RunState.ValueType) -> bool:
    """Return whether a state is terminal."""
    return state in _TERMINAL


def to_kill(active: Iterable[pb.Run]) -> pb.Run | None:
    """Return the run that a Kill without an id refers to; `None`: no run is active.

    Args:
        active: The runs in one of the states of `ACTIVE`, newest first.
    """
    queued = None
    for run in active:
        if run.state in _WITH_WORKER:
            return run
        queued = queued or run
    return queued


def newest(page: pb.ListResponse) -> str:
    """Return the id of the newest run of a page with one run, even if damaged; empty: there is none."""
    return next((run.run_id for run in page.runs), next(iter(page.damaged_run_ids), ""))


def state_name(state: pb.RunState.ValueType) -> str:
    """Name a state as people write it: `timed out` for RUN_STATE_TIMED_OUT."""
    return _name(pb.RunState.DESCRIPTOR, state, _STATE_PREFIX)


def cause_name(cause: pb.FailureCause.ValueType) -> str:
    """Name a cause as people write it: `out of memory` for FAILURE_CAUSE_OUT_OF_MEMORY."""
    return _name(pb.FailureCause.DESCRIPTOR, cause, _CAUSE_PREFIX)


def parse_state(state: str | pb.RunState.ValueType) -> pb.RunState.ValueType:
    """Parse a state, given as its number or name: `running`, `timed-out`, `RUN_STATE_TIMED_OUT`.

    Raises:
        ValueError: Unknown state; the message lists the states.
    """
    if isinstance(state, int):
        return state
    name = state.upper().replace("-", "_").replace(" ", "_").removeprefix(_STATE_PREFIX)
    known = [key.removeprefix(_STATE_PREFIX) for key in pb.RunState.keys() if pb.RunState.Value(key)]  # noqa: SIM118 - an enum wrapper is no dict
    if name not in known:
        raise ValueError(f"Unknown state {state!r}. Available: {', '.join(known).lower()}.")
    return pb.RunState.Value(_STATE_PREFIX + name)


def _name(descriptor: EnumDescriptor, number: int, prefix: str) -> str:
    # A newer server may know values that this client does not.
    value = descriptor.values_by_number.get(number)
    return value.name.removeprefix(prefix).lower().replace("_", " ") if value else f"unknown ({number})"
