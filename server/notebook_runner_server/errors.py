"""The errors that a caller can get, in one tree; every package of the server may raise them.

::

    RunnerError
    ├── InvalidRequestError       the request is wrong: the same request fails again
    │   ├── InvalidFieldError       INVALID_FIELD
    │   ├── InvalidNotebookError    INVALID_NOTEBOOK
    │   ├── UnknownParameterError   UNKNOWN_PARAMETER
    │   ├── UnknownKernelError      UNKNOWN_KERNEL
    │   ├── UnknownFormatError      UNKNOWN_FORMAT
    │   ├── AmbiguousRunIdError     AMBIGUOUS_RUN_ID
    │   ├── PathOutsideRootError    PATH_OUTSIDE_ROOT
    │   └── UriNotAllowedError      URI_NOT_ALLOWED
    ├── NotFoundError
    │   ├── RunNotFoundError        RUN_NOT_FOUND
    │   ├── RunExpiredError         RUN_EXPIRED
    │   └── NotebookNotFoundError   NOTEBOOK_NOT_FOUND
    ├── RequestIdReusedError      REQUEST_ID_REUSED
    ├── RunActiveError            RUN_ACTIVE
    ├── NotOwnerError             NOT_OWNER
    ├── ExhaustedError            a limit of the server is reached
    │   ├── RunnerBusyError         RUNNER_BUSY
    │   ├── QuotaExceededError      QUOTA_EXCEEDED
    │   ├── TooManyStreamsError     TOO_MANY_STREAMS
    │   ├── NotebookTooLargeError   NOTEBOOK_TOO_LARGE
    │   ├── RequestTooLargeError    REQUEST_TOO_LARGE
    │   └── StorageFullError        STORAGE_FULL
    ├── OutOfRangeError           the history or artefact does not reach there
    │   ├── OffsetPastEndError      OFFSET_PAST_END
    │   ├── SequenceAheadError      SEQUENCE_AHEAD
    │   └── CursorExpiredError      CURSOR_EXPIRED
    ├── ExportFailedError         EXPORT_FAILED
    ├── DamagedRunError           RUN_DAMAGED
    └── UnavailableError          the same request may succeed later
        ├── ShuttingDownError       SHUTTING_DOWN
        ├── NotReadyError           NOT_READY
        └── NotebookUnreachableError NOTEBOOK_UNREACHABLE

Each class names its reason of the contract; `api.errors` maps each branch to a gRPC status code, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class RunnerError(Exception):
    """Base of all errors that a caller can get.

    Attributes:
        reason: The reason's name in the contract.
        message: For the caller: what was given, what is wrong, and what to do.
        metadata: The variable parts of the message, by name.
        field: The invalid field of the request; empty: no field is at fault.
        retry_after: Seconds after which a retry may succeed; 0: unknown.
    """

    reason: ClassVar[str]
    retry_after: float = 0.0

    def __init__(self, message: str, *, field: str = "", **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.metadata = metadata


class InvalidRequestError(RunnerError):
    """The request is wrong, and fails again when it is repeated."""


class InvalidFieldError(InvalidRequestError):
    """A field has an invalid value."""

    reason = "INVALID_FIELD"


class InvalidNotebookError(InvalidRequestError):
    """The content is not a notebook that can be executed."""

    reason = "INVALID_NOTEBOOK"


class UnknownParameterError(InvalidRequestError):
    """The notebook's `parameters` cell does not assign one of the given parameters."""

    reason = "UNKNOWN_PARAMETER"


def unknown_parameters(unknown: Sequence[str], known: Sequence[str]) -> UnknownParameterError:
    """Return the error for parameters that the notebook does not have."""
    quoted = ", ".join(map(repr, unknown))
    message = f"Unknown parameter {quoted}. The notebook's parameters: {', '.join(known) or 'none'}."
    return UnknownParameterError(
        message, field="parameters", unknown=",".join(unknown), known=",".join(known)
    )


class UnknownKernelError(InvalidRequestError):
    """The kernelspec is not installed."""

    reason = "UNKNOWN_KERNEL"


class UnknownFormatError(InvalidRequestError):
    """The format does not exist, or the operator has not enabled it."""

    reason = "UNKNOWN_FORMAT"


class AmbiguousRunIdError(InvalidRequestError):
    """Several runs have an id with this part."""

    reason = "AMBIGUOUS_RUN_ID"


def ambiguous(part: str, run_ids: Sequence[str]) -> AmbiguousRunIdError:
    """Return the error for a part that several ids have; `run_ids` are some of them."""
    message = (
        f"Several runs have an id with {part!r}, such as {', '.join(run_ids[:3])}. "
        "Give more characters, or the whole id."
    )
    return AmbiguousRunIdError(message, field="run_id", run_id=part, run_ids=",".join(run_ids))


class PathOutsideRootError(InvalidRequestError):
    """The path leads outside the notebook root."""

    reason = "PATH_OUTSIDE_ROOT"


class UriNotAllowedError(InvalidRequestError):
    """The server's URI policy forbids the URI."""

    reason = "URI_NOT_ALLOWED"


class NotFoundError(RunnerError):
    """The named thing does not exist."""


class RunNotFoundError(NotFoundError):
    """The run does not exist."""

    reason = "RUN_NOT_FOUND"


def not_found(run_id: str) -> RunNotFoundError:
    """Return the error for an unknown run; an empty id asks for the newest one."""
    message = f"Unknown run {run_id[:100]!r}." if run_id else "No run has been started yet."
    return RunNotFoundError(message, field="run_id", run_id=run_id[:100])


class RunExpiredError(NotFoundError):
    """Retention has deleted the run."""

    reason = "RUN_EXPIRED"


def expired(run_id: str) -> RunExpiredError:
    """Return the error for a run that retention has deleted."""
    # Which of them it was is not recorded.
    message = (
        f"Run {run_id[:100]} has expired: the server deleted it at the end of its retention, or because the "
        "history exceeded the number or size of runs that the operator allows."
    )
    return RunExpiredError(message, field="run_id", run_id=run_id[:100])


class NotebookNotFoundError(NotFoundError):
    """The notebook does not exist, or the server cannot read it."""

    reason = "NOTEBOOK_NOT_FOUND"


class RequestIdReusedError(RunnerError):
    """The request id was used before, with a different request."""

    reason = "REQUEST_ID_REUSED"


class RunActiveError(RunnerError):
    """The run has not ended."""

    reason = "RUN_ACTIVE"


class NotOwnerError(RunnerError):
    """The run belongs to another owner, and the caller may only see it."""

    reason = "NOT_OWNER"


class ExhaustedError(RunnerError):
    """A limit of the server is reached."""


class RunnerBusyError(ExhaustedError):
    """All workers are busy and the queue is full."""

    reason = "RUNNER_BUSY"
    retry_after = 1.0


class QuotaExceededError(ExhaustedError):
    """The caller has used up a part of its share of the server."""

    reason = "QUOTA_EXCEEDED"


def quota_exceeded(message: str, quota: str, limit: int, *, retry_after: float = 0.0) -> QuotaExceededError:
    """Return the error for a quota that is used up; `retry_after` as in `RunnerError`."""
    error = QuotaExceededError(message, quota=quota, limit=str(limit))
    error.retry_after = retry_after
    return error


class TooManyStreamsError(ExhaustedError):
    """The limit of open streams is reached."""

    reason = "TOO_MANY_STREAMS"


class NotebookTooLargeError(ExhaustedError):
    """The notebook exceeds the server's size limit."""

    reason = "NOTEBOOK_TOO_LARGE"


class RequestTooLargeError(ExhaustedError):
    """The request message exceeds the server's size limit."""

    reason = "REQUEST_TOO_LARGE"


class StorageFullError(ExhaustedError):
    """The state folder cannot be written."""

    reason = "STORAGE_FULL"


class OutOfRangeError(RunnerError):
    """The history or the artefact does not reach to what was asked for."""


class OffsetPastEndError(OutOfRangeError):
    """The offset is past the end of the artefact."""

    reason = "OFFSET_PAST_END"


class SequenceAheadError(OutOfRangeError):
    """The run has no event with this sequence number."""

    reason = "SEQUENCE_AHEAD"


class CursorExpiredError(OutOfRangeError):
    """Some changes after the cursor of a watcher are not known."""

    reason = "CURSOR_EXPIRED"


class ExportFailedError(RunnerError):
    """The notebook could not be converted to the format."""

    reason = "EXPORT_FAILED"


class DamagedRunError(RunnerError):
    """The stored data of the run is damaged."""

    reason = "RUN_DAMAGED"


def damaged(run_id: str, why: object) -> DamagedRunError:
    """Return the error for a run whose stored data is damaged; an empty id: which run is unknown."""
    name = f"Run {run_id[:100]}" if run_id else "A run"
    message = f"{name} is damaged in the state folder: {why}. See the server log."
    return DamagedRunError(message, run_id=run_id[:100])


class UnavailableError(RunnerError):
    """The server cannot serve the call now."""


class ShuttingDownError(UnavailableError):
    """The server is shutting down."""

    reason = "SHUTTING_DOWN"


class NotReadyError(UnavailableError):
    """The server cannot start runs, or verify tokens, at the moment."""

    reason = "NOT_READY"
    retry_after = 1.0


class NotebookUnreachableError(UnavailableError):
    """The notebook's host does not answer."""

    reason = "NOTEBOOK_UNREACHABLE"


def reasons(kind: type[RunnerError] = RunnerError) -> list[str]:
    """Return the reasons of all errors of a branch of the tree."""
    own = [kind.reason] if hasattr(kind, "reason") else []
    return own + [reason for below in kind.__subclasses__() for reason in reasons(below)]
