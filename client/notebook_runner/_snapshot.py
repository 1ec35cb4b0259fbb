"""What is known of a run at one moment, and what a kill did to it, as typed attributes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ._panel import Panel
from ._printable import one_line
from ._retry_policy import Retry
from ._states import FailureCause, RunState, cause_of, is_terminal, reason_of, state_of
from ._values import named_values, span, utc
from .v1 import notebook_runner_pb2 as contract

if TYPE_CHECKING:
    from datetime import datetime, timedelta

__all__ = ["Failure", "KillResult", "RunSnapshot", "RunT"]

RunT = TypeVar("RunT", bound="RunSnapshot")


@dataclass(frozen=True)
class Failure:
    """Why a run did not succeed.

    Attributes:
        cause: The cause.
        message: A sentence for people.
        cell_index: The cell that was being executed, from 0; None if there was none.
        cell_id: That cell's id in the notebook; empty if it has none.
        exception_name: The class of the exception, if the cell raised one; else empty.
        exception_message: The message of the exception, if the cell raised one; else empty.
        traceback: The traceback as plain text, if the cell failed or was interrupted; else empty.
        signal: The signal that ended the kernel or worker, such as `SIGSEGV`; empty if none did.
        exit_code: The exit code of the kernel or worker; None if a signal ended it, or if it did not end.
        pb: The message of the contract, `notebook_runner.v1.notebook_runner_pb2.Failure`.
    """

    cause: FailureCause
    message: str
    cell_index: int | None
    cell_id: str
    exception_name: str
    exception_message: str
    traceback: str = field(repr=False)
    signal: str
    exit_code: int | None
    pb: contract.Failure = field(repr=False, compare=False)

    def __str__(self) -> str:
        return one_line(reason_of(self.pb))


@dataclass(frozen=True, repr=False)
class RunSnapshot:
    """A run as it was when the server described it. It never changes: a later state is another object.

    Attributes:
        pb: The message of the contract, `notebook_runner.v1.notebook_runner_pb2.Run`.
    """

    pb: contract.Run

    def __repr__(self) -> str:
        return f"{type(self).__name__}(id={self.id!r}, name={self.name!r}, state={self.state.value!r})"

    def __str__(self) -> str:
        return one_line(Panel(self.pb).line())

    def __hash__(self) -> int:
        return hash(self.id)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: ARG002 - IPython's signature
        printer.text(str(self))

    def _repr_html_(self) -> str:
        return Panel(self.pb).html()

    @property
    def id(self) -> str:
        """The server's id for the run."""
        return self.pb.run_id

    @property
    def request_id(self) -> str:
        """The `request_id` that the run was started with."""
        return self.pb.request_id

    @property
    def name(self) -> str:
        """The name for people: as given, else that of the notebook's file; empty if there is neither."""
        return self.pb.name

    @property
    def owner(self) -> str:
        """The name of the caller that started the run; empty if the server asked for no credentials then."""
        return self.pb.owner

    @property
    def priority(self) -> int:
        """The order among the owner's queued runs: those with higher numbers start first."""
        return self.pb.priority

    @property
    def retry(self) -> Retry | None:
        """When the server repeats the run; None: never."""
        return Retry.of(self.pb.retry) if self.pb.HasField("retry") else None

    @property
    def attempt(self) -> int:
        """1 for the run of a `start`, 2 for its first repetition, and so on."""
        return self.pb.attempt or 1

    @property
    def retry_of(self) -> str:
        """The id of the run that this run repeats; empty if it repeats none."""
        return self.pb.retry_of

    @property
    def retried_by(self) -> str:
        """The id of the run that repeats this run; empty if there is none, and until this run has ended."""
        return self.pb.retried_by

    @property
    def not_before(self) -> datetime | None:
        """The earliest start of a repetition, in UTC; None for other runs."""
        return utc(self.pb.not_before) if self.pb.HasField("not_before") else None

    @property
    def state(self) -> RunState:
        """The state."""
        return state_of(self.pb.state)

    @property
    def is_terminal(self) -> bool:
        """Whether the run has ended."""
        return is_terminal(self.pb.state)

    @property
    def ok(self) -> bool:
        """Whether the run has succeeded."""
        return self.state is RunState.SUCCEEDED

    @property
    def failure(self) -> Failure | None:
        """Why the run did not succeed; None if it has succeeded or not ended."""
        if not self.pb.HasField("failure"):
            return None
        failure = self.pb.failure
        return Failure(
            cause_of(failure.cause),
            failure.message,
            failure.cell_index if failure.HasField("cell_index") else None,
            failure.cell_id,
            failure.exception_name,
            failure.exception_message,
            failure.traceback,
            failure.signal,
            failure.exit_code if failure.HasField("exit_code") else None,
            failure,
        )

    @property
    def cause(self) -> FailureCause | None:
        """The cause of the failure; None if there is none."""
        return cause_of(self.pb.failure.cause) if self.pb.HasField("failure") else None

    @property
    def created(self) -> datetime:
        """When the run was admitted, in UTC."""
        return utc(self.pb.create_time)

    @property
    def started(self) -> datetime | None:
        """When a worker took the run, in UTC; None before."""
        return utc(self.pb.start_time) if self.pb.HasField("start_time") else None

    @property
    def ended(self) -> datetime | None:
        """When the run ended, in UTC; None before."""
        return utc(self.pb.end_time) if self.pb.HasField("end_time") else None

    @property
    def duration(self) -> timedelta | None:
        """The time from `started` to `ended`; None until the run has ended, and if it never started."""
        return self.ended - self.started if self.started and self.ended else None

    @property
    def cells_total(self) -> int:
        """Number of cells in the notebook, including the injected one."""
        return self.pb.cells_total

    @property
    def cells_completed(self) -> int:
        """Number of cells, from the top of the notebook, that are done."""
        return self.pb.cells_completed

    @property
    def fraction_completed(self) -> float:
        """The share of the cells that are done, from 0 to 1."""
        return self.cells_completed / self.cells_total if self.cells_total else 0.0

    @property
    def current_cell(self) -> int | None:
        """The cell that is being executed, from 0; None if there is none."""
        return self.pb.current_cell if self.pb.HasField("current_cell") else None

    @property
    def queue_position(self) -> int | None:
        """Number of queued runs ahead of this one; None if the run is not queued."""
        return self.pb.queue_position if self.pb.HasField("queue_position") else None

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters by name, exactly as they were given."""
        return named_values(self.pb.parameters_json, self.pb.parameters)

    @property
    def values(self) -> dict[str, Any]:
        """The result values by name: what the notebook displayed as scrapbook's `glue` does.

        Of several values with one name, the last one. `pb.results_omitted` says how many names are left out,
        because their values are too large or too many.
        """
        return named_values(self.pb.results_json, self.pb.results)

    @property
    def labels(self) -> dict[str, str]:
        """The labels."""
        return dict(self.pb.labels)

    @property
    def kernel_name(self) -> str:
        """The resolved kernelspec."""
        return self.pb.kernel_name

    @property
    def notebook_path(self) -> str:
        """The notebook's path under the server's notebook root; empty if it was not named by a path."""
        return self.pb.notebook_path

    @property
    def notebook_uri(self) -> str:
        """The URI that the notebook was read from; empty if it was not named by a URI."""
        return self.pb.notebook_uri

    @property
    def notebook_sha256(self) -> str:
        """The SHA-256 hash of the given notebook, in hexadecimal; empty if the server sends none."""
        return self.pb.notebook_sha256

    @property
    def notebook_repairs(self) -> tuple[str, ...]:
        """What the server repaired in the notebook before the run, as sentences."""
        return tuple(self.pb.notebook_repairs)

    @property
    def output_uri(self) -> str:
        """The URI that the executed notebook is written to; empty if none was requested."""
        return self.pb.output_uri

    @property
    def output_error(self) -> str:
        """Why the executed notebook could not be written to `output_uri`; empty if it was, or not yet."""
        return self.pb.output_error

    @property
    def peak_memory(self) -> int | None:
        """The largest memory that all processes of the run had together, in bytes; None if not known."""
        return self.pb.peak_memory_bytes or None

    @property
    def cpu_time(self) -> timedelta | None:
        """The processor time of all processes of the run; None until it has ended, and if not known."""
        return span(self.pb.cpu_time) if self.pb.HasField("cpu_time") else None


@dataclass(frozen=True)
class KillResult(Generic[RunT]):
    """What `kill` did.

    Attributes:
        run: The run after its end.
        processes_ended: Number of killed processes. Zero if the run had already ended, or had not started.
        already_ended: Whether the run had ended before this call, which then changed nothing.
        pb: The message of the contract, `notebook_runner.v1.notebook_runner_pb2.KillResponse`.
    """

    run: RunT
    processes_ended: int
    already_ended: bool
    pb: contract.KillResponse = field(repr=False, compare=False)

    def __str__(self) -> str:
        if self.already_ended:
            return f"{self.run}; it had already ended"
        return f"{self.run}; {self.processes_ended} process{'es' * (self.processes_ended != 1)} killed"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: ARG002 - IPython's signature
        printer.text(str(self))
