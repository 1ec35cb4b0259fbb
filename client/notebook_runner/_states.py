"""States, causes and outcomes, and their names as people write them."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from .v1 import notebook_runner_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.descriptor import EnumDescriptor

__all__ = [
    "ACTIVE",
    "CellOutcome",
    "FailureCause",
    "RunState",
    "States",
    "advice_of",
    "cause_name",
    "cause_of",
    "is_terminal",
    "newest",
    "outcome_of",
    "parse_state",
    "parse_states",
    "reason_of",
    "state_name",
    "state_of",
    "to_kill",
]

NameT = TypeVar("NameT", bound=StrEnum)

State: TypeAlias = str | pb.RunState.ValueType
"""A state by name or number, or a `RunState`."""

States: TypeAlias = State | Iterable[State]
"""One state or several."""


class RunState(StrEnum):
    """The state of a run: `RunState.SUCCEEDED == "succeeded"`.

    The first four states are active, the others terminal.

    Attributes:
        QUEUED: The run waits for a worker.
        STARTING: A worker prepares the kernel.
        RUNNING: The kernel executes cells.
        KILLING: The run is being killed.
        SUCCEEDED: Every cell was executed, or the notebook ended itself with exit code 0.
        FAILED: A cell raised an exception.
        TIMED_OUT: The run exceeded a time limit.
        KILLED: `kill` ended the run.
        CRASHED: The kernel or the worker died.
        INTERRUPTED: The server stopped or died during the run.
        UNKNOWN: A state of a newer server, which this client does not know; `pb.state` has its number.
    """

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    KILLING = "killing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    KILLED = "killed"
    CRASHED = "crashed"
    INTERRUPTED = "interrupted"
    UNKNOWN = "unknown"


class FailureCause(StrEnum):
    """Why a run did not succeed: `FailureCause.CELL_ERROR == "cell_error"`.

    Attributes:
        CELL_ERROR: FAILED: a cell raised an exception.
        RUN_TIMEOUT: TIMED_OUT: the run exceeded `run_timeout`.
        CELL_TIMEOUT: TIMED_OUT: a cell exceeded `cell_timeout`.
        OUTPUT_TIMEOUT: TIMED_OUT: a cell had no output for longer than `output_timeout`.
        KILL_REQUESTED: KILLED: `kill` was called.
        KERNEL_SIGNALED: CRASHED: a signal ended the kernel.
        KERNEL_EXITED: CRASHED: the kernel exited.
        OUT_OF_MEMORY: CRASHED: the run exceeded its memory limit.
        KERNEL_NOT_READY: CRASHED: the kernel did not become ready.
        WORKER_DIED: CRASHED: the worker process died.
        STORAGE_FAILED: CRASHED: the state folder could not be written.
        SERVER_STOPPED: INTERRUPTED: the server was stopped, and the run did not end in time.
        SERVER_DIED: INTERRUPTED: the server died during the run.
        PROCESS_LIMIT: CRASHED: the run exceeded its process limit.
        UNKNOWN: A cause of a newer server, which this client does not know; `pb.cause` has its number.
    """

    CELL_ERROR = "cell_error"
    RUN_TIMEOUT = "run_timeout"
    CELL_TIMEOUT = "cell_timeout"
    OUTPUT_TIMEOUT = "output_timeout"
    KILL_REQUESTED = "kill_requested"
    KERNEL_SIGNALED = "kernel_signaled"
    KERNEL_EXITED = "kernel_exited"
    OUT_OF_MEMORY = "out_of_memory"
    KERNEL_NOT_READY = "kernel_not_ready"
    WORKER_DIED = "worker_died"
    STORAGE_FAILED = "storage_failed"
    SERVER_STOPPED = "server_stopped"
    SERVER_DIED = "server_died"
    PROCESS_LIMIT = "process_limit"
    UNKNOWN = "unknown"


class CellOutcome(StrEnum):
    """How a cell ended: `CellOutcome.SUCCEEDED == "succeeded"`.

    Attributes:
        SUCCEEDED: The cell completed, or ended the notebook with exit code 0.
        FAILED: The cell raised an exception, which ended the run.
        ERROR_ALLOWED: The cell raised an exception, and the run continued because of `allow_errors` or the
            tag `raises-exception`.
        STOPPED: The run ended while the cell was running.
        UNKNOWN: An outcome of a newer server, which this client does not know.
    """

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ERROR_ALLOWED = "error_allowed"
    STOPPED = "stopped"
    UNKNOWN = "unknown"


# The states of runs that have not ended, and of those that a worker has.
_WITH_WORKER = (pb.RUN_STATE_STARTING, pb.RUN_STATE_RUNNING, pb.RUN_STATE_KILLING)
ACTIVE = (pb.RUN_STATE_QUEUED, *_WITH_WORKER)

_STATE_PREFIX = "RUN_STATE_"
_CAUSE_PREFIX = "FAILURE_CAUSE_"
_OUTCOME_PREFIX = "CELL_OUTCOME_"
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


def state_of(number: pb.RunState.ValueType) -> RunState:
    """Return the state with a number of the contract."""
    return _member(RunState, pb.RunState.DESCRIPTOR, number, _STATE_PREFIX)


def cause_of(number: pb.FailureCause.ValueType) -> FailureCause:
    """Return the cause with a number of the contract."""
    return _member(FailureCause, pb.FailureCause.DESCRIPTOR, number, _CAUSE_PREFIX)


def outcome_of(number: pb.CellOutcome.ValueType) -> CellOutcome:
    """Return the outcome with a number of the contract."""
    return _member(CellOutcome, pb.CellOutcome.DESCRIPTOR, number, _OUTCOME_PREFIX)


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


def reason_of(failure: pb.Failure) -> str:
    """Return why a run did not succeed: the exception, or what the server says, or the cause."""
    if not failure.exception_name:
        return failure.message.strip() or cause_name(failure.cause)
    message = failure.exception_message.strip()
    return f"{failure.exception_name}: {message}" if message else failure.exception_name


def parse_states(states: States) -> list[pb.RunState.ValueType]:
    """Parse one state or several.

    Raises:
        ValueError: Unknown state; the message lists the states.
    """
    return [parse_state(state) for state in ([states] if isinstance(states, str | int) else states)]


def parse_state(state: State) -> pb.RunState.ValueType:
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


def _member(kind: type[NameT], descriptor: EnumDescriptor, number: int, prefix: str) -> NameT:
    value = descriptor.values_by_number.get(number)
    # The contract's zero is never sent, so it is unknown as well.
    return kind(value.name.removeprefix(prefix).lower() if value and number else "unknown")


def advice_of(failure: pb.Failure) -> str:
    """Return what the server adds to an exception: what to do; empty: nothing, or its traceback has it."""
    summary = f"The cell raised {failure.exception_name}: {failure.exception_message}. "
    _, found, advice = failure.message.partition(summary)
    return advice if found and advice not in failure.traceback else ""
