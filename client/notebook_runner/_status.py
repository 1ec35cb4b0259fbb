"""Translates gRPC statuses into the client's exceptions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from .errors import (
    AccessDenied,
    CursorExpired,
    FieldViolation,
    InvalidRequest,
    NotOwner,
    QuotaExceeded,
    RpcFailed,
    RunExpired,
    RunnerBusy,
    RunNotFound,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["CLOSED", "NOT_GRPC", "REFUSED", "Problem", "problem_of", "to_error"]

_DOMAIN = "notebook-runner"
_DETAILS_KEY = "grpc-status-details-bin"

_BY_REASON: dict[str, type[RpcFailed]] = {
    "RUNNER_BUSY": RunnerBusy,
    "QUOTA_EXCEEDED": QuotaExceeded,
    "NOT_OWNER": NotOwner,
    "RUN_NOT_FOUND": RunNotFound,
    "RUN_EXPIRED": RunExpired,
    "CURSOR_EXPIRED": CursorExpired,
    # RESOURCE_EXHAUSTED like a busy runner, but repeating it will not help.
    "NOTEBOOK_TOO_LARGE": InvalidRequest,
    "REQUEST_TOO_LARGE": InvalidRequest,
}
_BY_CODE: dict[grpc.StatusCode, type[RpcFailed]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: InvalidRequest,
    grpc.StatusCode.ALREADY_EXISTS: InvalidRequest,
    grpc.StatusCode.UNAUTHENTICATED: AccessDenied,
    grpc.StatusCode.PERMISSION_DENIED: AccessDenied,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: Unavailable,
}

_TOO_LARGE = "Received message larger than max"


@dataclass(frozen=True)
class Problem:
    """A reason why a server cannot be reached, which a caller can solve.

    Attributes:
        marks: Words in gRPC's message, any of which identifies the problem.
        check: What it concerns: connection, TLS or protocol.
        text: The problem.
        advice: What to do about it on the command line.
    """

    marks: tuple[str, ...]
    check: str
    text: str
    advice: str


REFUSED = Problem(
    ("Connection refused",), "connection", "connection refused", "Start the server or set --target."
)
NOT_GRPC = Problem(
    ("Failed parsing HTTP/2", "http1.x server"),
    "protocol",
    "it does not speak gRPC",
    "Another service uses this port. Check --target.",
)
CLOSED = Problem(
    ("Socket closed", "Connection reset", "Broken pipe"),
    "TLS",
    "the server closed the connection; it may require TLS (tls_ca) or a client certificate (tls_cert)",
    "Set --tls-ca, or --tls-cert and --tls-key.",
)
PROBLEMS = (
    REFUSED,
    Problem(
        ("errors resolving", "DNS resolution failed", "Domain name not found"),
        "connection",
        "unknown host name",
        "Check --target.",
    ),
    Problem(
        ("certificate has expired",),
        "TLS",
        "the server's certificate has expired",
        "Ask the operator to renew it.",
    ),
    Problem(
        ("CERTIFICATE_VERIFY_FAILED",),
        "TLS",
        "the server's certificate is not signed by a CA in tls_ca",
        "Set --tls-ca to a file that contains the CA that signed it; ask the operator.",
    ),
    Problem(
        ("Hostname Verification Check failed",),
        "TLS",
        "the server's certificate is for another host name",
        "Set --target to a name that is in the certificate.",
    ),
    Problem(
        ("WRONG_VERSION_NUMBER",),
        "TLS",
        "the server does not use TLS",
        "Omit --tls-ca and --tls-cert, or ask the operator to enable TLS.",
    ),
    NOT_GRPC,
    CLOSED,
)
"""The problems that gRPC's message identifies, for `doctor` and for the errors of all calls."""


def problem_of(error: RpcFailed) -> Problem | None:
    """Return the problem that an error's message names."""
    return next((one for one in PROBLEMS if f": {one.text}" in error.message), None)


def to_error(error: grpc.RpcError, target: str = "the server", timeout: float | None = None) -> RpcFailed:
    """Translate an error of gRPC, including the details of its status.

    Args:
        error: The error.
        target: The server's address.
        timeout: The deadline of the call, in seconds; None: it had none.
    """
    # Both of gRPC's Python stacks raise an object that is both the error and the ended call.
    call = cast("grpc.Call", error)
    code, message = call.code(), call.details() or ""
    info, retry_after, violations = _details(call.trailing_metadata() or ())
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and not info.reason and timeout is not None:
        message = f"No answer from {target} within {timeout:g} s."
    elif code is grpc.StatusCode.UNAVAILABLE and not info.reason and message:
        message = f"Cannot reach {target}: {_describe(message)}"
    elif code is grpc.StatusCode.RESOURCE_EXHAUSTED and not info.reason and _is_too_large(message):
        # Far above the server's limit gRPC itself refuses a message, before the server can give a reason.
        advice = "Send a smaller notebook, name one by path or URI, or ask the operator to raise"
        message = f"The request is too large for the server. {advice} --max-notebook-bytes ({message})."
        return InvalidRequest(message, code)
    kind = _BY_REASON.get(info.reason) or _BY_CODE.get(code, RpcFailed)
    return kind(message, code, info.reason, dict(info.metadata), retry_after, violations)


def _describe(message: str) -> str:
    problem = next((one for one in PROBLEMS if any(mark in message for mark in one.marks)), None)
    cause = message.rpartition("last error: ")[2]
    if problem is None:
        return cause
    return f"{problem.text}." if problem is REFUSED else f"{problem.text} ({cause})."


def _is_too_large(message: str) -> bool:
    # gRPC uses the same words for a response that is too large for this client.
    return _TOO_LARGE in message and not message.startswith("CLIENT:")


def _details(metadata: Iterable[Any]) -> tuple[Any, float | None, list[FieldViolation]]:
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    bad_request = error_details_pb2.BadRequest()
    for detail in _packed_details(metadata):
        # Unpack leaves its target alone when the detail is of another type.
        found = error_details_pb2.ErrorInfo()
        if detail.Unpack(found) and found.domain == _DOMAIN:
            info = found
        detail.Unpack(retry)
        detail.Unpack(bad_request)
    retry_after = retry.retry_delay.ToTimedelta().total_seconds() if retry.HasField("retry_delay") else None
    violations = [FieldViolation(field.field, field.description) for field in bad_request.field_violations]
    return info, retry_after, violations


def _packed_details(metadata: Iterable[Any]) -> list[Any]:
    for key, value in metadata:
        if key == _DETAILS_KEY:
            try:
                return list(status_pb2.Status.FromString(value).details)
            except DecodeError:
                # A proxy may have cut the trailers; the code and the message are still valid.
                return []
    return []
