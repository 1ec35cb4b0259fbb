"""The exceptions of the client.

::

    NotebookRunnerError
    ├── RpcFailed             the server answered a call with a status other than OK
    │   ├── InvalidRequest    the request is invalid; the message says what to change
    │   │   └── CursorExpired the server no longer knows all changes after the cursor
    │   ├── RunNotFound       there is no such run
    │   │   └── RunExpired    retention deleted the run, for its age or the size of the history
    │   ├── RunnerBusy        all workers are busy; try again after `retry_after` seconds
    │   ├── QuotaExceeded     one's own share of the server is used up; `quota` says of what
    │   ├── AccessDenied      the token is missing or invalid, or does not allow this call
    │   │   └── NotOwner      the run belongs to another owner, and may only be read
    │   └── Unavailable       the server cannot be reached, is not ready, is shutting down, or timed out
    ├── LoginFailed           a login, or the refresh of its tokens, failed
    └── RunFailed             the run ended in another state than SUCCEEDED

Only `run` and `raise_for_state` raise `RunFailed`; every other call returns a failed run as data. Arguments
that cannot be translated into a request raise Python's own `TypeError`, `ValueError` and `OSError` before
any call.
All of these can be pickled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._states import advice_of, reason_of, state_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import grpc

    from ._snapshot import RunSnapshot

__all__ = [
    "AccessDenied",
    "CursorExpired",
    "FieldViolation",
    "InvalidRequest",
    "LoginFailed",
    "NotOwner",
    "NotebookRunnerError",
    "QuotaExceeded",
    "RpcFailed",
    "RunExpired",
    "RunFailed",
    "RunNotFound",
    "RunnerBusy",
    "Unavailable",
]


class NotebookRunnerError(Exception):
    """Base class of all exceptions of the client."""


class LoginFailed(NotebookRunnerError):  # noqa: N818 - as `RpcFailed`
    """A login failed, or has expired and cannot be refreshed; the message says what to do."""


@dataclass(frozen=True)
class FieldViolation:
    """A field of the request that the server rejected.

    Attributes:
        field: The field's path in the request, for example `cell_timeout`.
        description: Why the server rejected it, as a sentence.
    """

    field: str
    description: str


class RpcFailed(NotebookRunnerError):  # noqa: N818 - says what happened, as the reasons of the contract do
    """The server answered a call with a status other than OK, or could not answer it.

    Attributes:
        message: What happened and what to do about it, for a person to read.
        code: The gRPC status code.
        reason: The reason in UPPER_SNAKE that the contract lists for each call, for example
            `UNKNOWN_PARAMETER`. Empty if the status does not come from the server itself, but from gRPC or
            a proxy.
        metadata: The variable parts of the reason, by name.
        retry_after: Seconds to wait before trying again; `None` if the server sets none.
        violations: The fields of the request that the server rejected.
    """

    def __init__(
        self,
        message: str,
        code: grpc.StatusCode,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        violations: Sequence[FieldViolation] = (),
    ) -> None:
        # All go to `args`, which pickle needs.
        super().__init__(message, code, reason, metadata, retry_after, violations)
        self.message = message
        self.code = code
        self.reason = reason
        self.metadata: dict[str, str] = dict(metadata or {})
        self.retry_after = retry_after
        self.violations: tuple[FieldViolation, ...] = tuple(violations)

    def __str__(self) -> str:
        fields = [
            violation.field
            for violation in self.violations
            if violation.description == self.message and violation.field not in self.message
        ]
        about = f" ({', '.join(fields)})" if fields else ""
        others = [f"{v.field}: {v.description}" for v in self.violations if v.description != self.message]
        return "\n  ".join([f"{self.reason or self.code.name}: {self.message}{about}", *others])


class InvalidRequest(RpcFailed):
    """The request is invalid; repeating it will not help."""


class CursorExpired(InvalidRequest):
    """The server no longer knows all changes after the cursor: watch again without one."""


class RunNotFound(RpcFailed):
    """No run has this id, or there are no runs yet."""


class RunExpired(RunNotFound):
    """Retention has deleted the run: because of its age, or of the number or size of all runs."""


class RunnerBusy(RpcFailed):
    """All workers are busy and the queue is full. No run was started."""

    @property
    def run_id(self) -> str:
        """The run that occupies the server; empty if the server names none."""
        return self.metadata.get("run_id", "")


class QuotaExceeded(RpcFailed):
    """The caller's own share of the server is used up. No run was started."""

    @property
    def quota(self) -> str:
        """What is used up: `queued`, the number of queued runs, or `history`, the size of all ended runs.

        The first frees up when a queued run starts; the second when ended runs are deleted.
        """
        return self.metadata.get("quota", "")

    @property
    def limit(self) -> int | None:
        """The maximum, as a number of runs or of bytes; None if the server does not say."""
        text = self.metadata.get("limit", "")
        return int(text) if text.isdecimal() else None


class AccessDenied(RpcFailed):
    """The token is missing or invalid, or does not allow this call."""


class NotOwner(AccessDenied):
    """The run belongs to another owner: the caller may read it, but not kill or delete it."""

    @property
    def owner(self) -> str:
        """The owner of the run; empty if the server does not say, or if it has none."""
        return self.metadata.get("owner", "")


class Unavailable(RpcFailed):
    """The server cannot be reached, is not ready, is shutting down, or did not answer in time.

    Every call may be repeated; repeat `start` with the same `request_id`.
    """


class RunFailed(NotebookRunnerError):  # noqa: N818 - named like the state
    """The run ended in a state other than SUCCEEDED.

    Attributes:
        run: The ended run: a `Run` of a `Client`, or an `AsyncRun` of an `AsyncClient`. `run.state` and
            `run.cause` say how it ended.
        cell_index: The cell that was executing when the run ended, from 0; `None` if there was none.
        exception_name: The exception's class, if a cell raised one; empty otherwise.
        exception_message: The exception's message, if a cell raised one; empty otherwise.
        traceback: The traceback as plain text, if a cell raised an exception; empty otherwise.
    """

    def __init__(self, run: RunSnapshot) -> None:
        super().__init__(run)
        failure = run.pb.failure
        self.run = run
        self.cell_index: int | None = failure.cell_index if failure.HasField("cell_index") else None
        self.exception_name: str = failure.exception_name
        self.exception_message: str = failure.exception_message
        self.traceback: str = failure.traceback

    def __str__(self) -> str:
        run = self.run.pb
        # People count from 1.
        where = "" if self.cell_index is None else f" in cell {self.cell_index + 1} of {run.cells_total}"
        text = f"run {run.run_id} {state_name(run.state)}{where}: {reason_of(run.failure)}"
        advice = advice_of(run.failure)
        return f"{text}. {advice}" if advice else text
