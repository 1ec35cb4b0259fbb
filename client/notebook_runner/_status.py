"""From a gRPC status to the client's exceptions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from .errors import (
    AccessDenied,
    FieldViolation,
    InvalidRequest,
    RpcFailed,
    RunnerBusy,
    RunNotFound,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["REFUSED", "to_error"]

_DOMAIN = "notebook-runner"
_DETAILS_KEY = "grpc-status-details-bin"

_BY_REASON: dict[str, type[RpcFailed]] = {
    "RUNNER_BUSY": RunnerBusy,
    "RUN_NOT_FOUND": RunNotFound,
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

_NO_CONNECTION = "failed to connect to all addresses"
_TOO_LARGE = "Received message larger than max"
REFUSED = "connection refused."
"""How the message ends where nothing listens at the target."""
# What gRPC's words for problems that a caller can solve mean.
_HINTS = (
    ("CERTIFICATE_VERIFY_FAILED", "the server's certificate is not signed by a CA in tls_ca"),
    ("Hostname Verification Check failed", "the server's certificate is for another host name"),
    ("WRONG_VERSION_NUMBER", "the server does not use TLS"),
    (
        "Socket closed",
        "the server closed the connection; it may require TLS (tls_ca) or a client certificate (tls_cert)",
    ),
)


def to_error(error: grpc.RpcError, target: str = "the server", timeout: float | None = None) -> RpcFailed:
    """Translate what gRPC raised, with all that the server said in the status's details.

    Args:
        error: What gRPC raised.
        target: The server's address, which gRPC does not name.
        timeout: The call's deadline, in seconds; None: it had none.
    """
    # Both of gRPC's Python stacks raise an object that is the error and the ended call at once.
    call = cast("grpc.Call", error)
    code, message = call.code(), call.details() or ""
    info, retry_after, violations = _details(call.trailing_metadata() or ())
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and not info.reason and timeout is not None:
        message = f"No answer from {target} within {timeout:g} s."
    elif code is grpc.StatusCode.UNAVAILABLE and not info.reason and message:
        message = f"Cannot reach {target}: {_problem(message)}"
    elif code is grpc.StatusCode.RESOURCE_EXHAUSTED and not info.reason and _is_too_large(message):
        # Far above the server's limit gRPC itself refuses a message, before the server can give a reason.
        advice = "Send a smaller notebook, name one by path or URI, or ask the operator to raise"
        message = f"The request is too large for the server. {advice} --max-notebook-bytes ({message})."
        return InvalidRequest(message, code)
    kind = _BY_REASON.get(info.reason) or _BY_CODE.get(code, RpcFailed)
    return kind(message, code, info.reason, dict(info.metadata), retry_after, violations)


def _problem(message: str) -> str:
    if not message.startswith(_NO_CONNECTION):
        return message
    if "Connection refused" in message:
        return REFUSED
    cause = message.rpartition("last error: ")[2]
    return next((f"{problem} ({cause})." for mark, problem in _HINTS if mark in cause), cause)


def _is_too_large(message: str) -> bool:
    # gRPC says the same of an answer that is too large for this client.
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
                # A proxy may have cut the trailers; the code and the message are still good.
                return []
    return []
