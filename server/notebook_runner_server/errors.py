"""Why a call cannot be served.

::

    RunnerError
    ├── InvalidRequestError       the request itself is wrong
    │   ├── InvalidFieldError       INVALID_FIELD
    │   ├── InvalidNotebookError    INVALID_NOTEBOOK
    │   ├── UnknownParameterError   UNKNOWN_PARAMETER
    │   ├── UnknownKernelError      UNKNOWN_KERNEL
    │   ├── UnknownFormatError      UNKNOWN_FORMAT
    │   ├── PathOutsideRootError    PATH_OUTSIDE_ROOT
    │   └── UriNotAllowedError      URI_NOT_ALLOWED
    ├── NotFoundError
    │   ├── RunNotFoundError        RUN_NOT_FOUND
    │   └── NotebookNotFoundError   NOTEBOOK_NOT_FOUND
    ├── RequestIdReusedError      REQUEST_ID_REUSED
    ├── ExhaustedError            a limit of the server is reached
    │   ├── RunnerBusyError         RUNNER_BUSY
    │   ├── TooManyStreamsError     TOO_MANY_STREAMS
    │   ├── NotebookTooLargeError   NOTEBOOK_TOO_LARGE
    │   ├── RequestTooLargeError    REQUEST_TOO_LARGE
    │   └── StorageFullError        STORAGE_FULL
    ├── OffsetPastEndError        OFFSET_PAST_END
    ├── ExportFailedError         EXPORT_FAILED
    ├── DamagedRunError           RUN_DAMAGED
    └── UnavailableError          try again later, perhaps elsewhere
        ├── ShuttingDownError       SHUTTING_DOWN
        ├── NotReadyError           NOT_READY
        └── NotebookUnreachableError NOTEBOOK_UNREACHABLE

Each names its reason; `api.errors` maps each branch to a status code, once.
"""

from __future__ import annotations

from typing import ClassVar


class RunnerError(Exception):
    """A call cannot be served.

    Attributes:
        reason: The contract's name for why.
        message: One sentence for the caller, that says what to do.
        metadata: The variable parts, by name.
        field: The field of the request that is wrong; empty where none is.
        retry_after: Seconds after which the same call may be served; 0: nobody knows.
    """

    reason: ClassVar[str]
    retry_after: ClassVar[float] = 0.0

    def __init__(self, message: str, *, field: str = "", **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.metadata = metadata


class InvalidRequestError(RunnerError):
    """The request itself is wrong; the same request will not do."""


class InvalidFieldError(InvalidRequestError):
    """A field has a value that it cannot have."""

    reason = "INVALID_FIELD"


class InvalidNotebookError(InvalidRequestError):
    """What was given is not a notebook that can be executed."""

    reason = "INVALID_NOTEBOOK"


class UnknownParameterError(InvalidRequestError):
    """The notebook's `parameters` cell does not assign a parameter that was given."""

    reason = "UNKNOWN_PARAMETER"


class UnknownKernelError(InvalidRequestError):
    """There is no such kernelspec."""

    reason = "UNKNOWN_KERNEL"


class UnknownFormatError(InvalidRequestError):
    """There is no such format, or the operator did not allow it."""

    reason = "UNKNOWN_FORMAT"


class PathOutsideRootError(InvalidRequestError):
    """The path leads out of the notebook root."""

    reason = "PATH_OUTSIDE_ROOT"


class UriNotAllowedError(InvalidRequestError):
    """The operator does not allow the URI."""

    reason = "URI_NOT_ALLOWED"


class NotFoundError(RunnerError):
    """What was named is not there."""


class RunNotFoundError(NotFoundError):
    """There is no such run, or none at all."""

    reason = "RUN_NOT_FOUND"


def not_found(run_id: str) -> RunNotFoundError:
    """Return the error for a run that is not there; an empty id: there is none at all."""
    message = f"There is no run {run_id[:100]!r}." if run_id else "There is no run yet."
    return RunNotFoundError(message, field="run_id", run_id=run_id[:100])


class NotebookNotFoundError(NotFoundError):
    """There is no such notebook, or not for this server."""

    reason = "NOTEBOOK_NOT_FOUND"


class RequestIdReusedError(RunnerError):
    """The request id was used with another payload."""

    reason = "REQUEST_ID_REUSED"


class ExhaustedError(RunnerError):
    """A limit of the server is reached."""


class RunnerBusyError(ExhaustedError):
    """All workers and all places in the queue are taken."""

    reason = "RUNNER_BUSY"
    retry_after = 1.0


class TooManyStreamsError(ExhaustedError):
    """As many Progress streams are open as the server allows."""

    reason = "TOO_MANY_STREAMS"


class NotebookTooLargeError(ExhaustedError):
    """The notebook is larger than the server allows."""

    reason = "NOTEBOOK_TOO_LARGE"


class RequestTooLargeError(ExhaustedError):
    """The message of a call is larger than the server accepts."""

    reason = "REQUEST_TOO_LARGE"


class StorageFullError(ExhaustedError):
    """The state folder cannot be written."""

    reason = "STORAGE_FULL"


class OffsetPastEndError(RunnerError):
    """The artefact ends before the offset."""

    reason = "OFFSET_PAST_END"


class ExportFailedError(RunnerError):
    """The notebook could not be converted to the format."""

    reason = "EXPORT_FAILED"


class DamagedRunError(RunnerError):
    """What the server has of a run is damaged, and cannot be answered."""

    reason = "RUN_DAMAGED"


def damaged(run_id: str, why: object) -> DamagedRunError:
    """Return the error for a run of which something is damaged; an empty id: nobody can tell which."""
    name = f"Run {run_id[:100]}" if run_id else "A run"
    message = f"{name} is damaged in the state folder: {why}. See the server log."
    return DamagedRunError(message, run_id=run_id[:100])


class UnavailableError(RunnerError):
    """Not now."""


class ShuttingDownError(UnavailableError):
    """The server was asked to stop."""

    reason = "SHUTTING_DOWN"


class NotReadyError(UnavailableError):
    """The server is not ready yet."""

    reason = "NOT_READY"
    retry_after = 1.0


class NotebookUnreachableError(UnavailableError):
    """Whoever holds the notebook does not answer."""

    reason = "NOTEBOOK_UNREACHABLE"


def reasons(kind: type[RunnerError] = RunnerError) -> list[str]:
    """Return the reason of every error of a branch of the tree."""
    own = [kind.reason] if hasattr(kind, "reason") else []
    return own + [reason for below in kind.__subclasses__() for reason in reasons(below)]
