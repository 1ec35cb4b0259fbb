"""Maps the errors of the runs to gRPC statuses with the details that the contract promises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from structlog.contextvars import bind_contextvars

from notebook_runner_server.errors import (
    DamagedRunError,
    ExhaustedError,
    ExportFailedError,
    InvalidRequestError,
    NotFoundError,
    NotOwnerError,
    OutOfRangeError,
    RequestIdReusedError,
    RunActiveError,
    RunnerError,
    UnavailableError,
)

DOMAIN = "notebook-runner"
DETAILS_KEY = "grpc-status-details-bin"

OWN_REASONS = MISSING_TOKEN, BAD_TOKEN, CANCELLED, INTERNAL_ERROR, UNKNOWN_METHOD, UNKNOWN_SERVICE = (
    "MISSING_TOKEN",
    "BAD_TOKEN",
    "CANCELLED",
    "INTERNAL_ERROR",
    "UNKNOWN_METHOD",
    "UNKNOWN_SERVICE",
)
"""Reasons in addition to those of `notebook_runner_server.errors`, which are not about calls."""

# In bytes of UTF-8. Trailers have a hard limit, and contain the message three times, once percent-encoded.
_MAX_MESSAGE = 512
_MAX_VALUE = 128
_MAX_VALUES = 8

_CODES: dict[type[RunnerError], grpc.StatusCode] = {
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    RequestIdReusedError: grpc.StatusCode.ALREADY_EXISTS,
    RunActiveError: grpc.StatusCode.FAILED_PRECONDITION,
    NotOwnerError: grpc.StatusCode.PERMISSION_DENIED,
    ExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    OutOfRangeError: grpc.StatusCode.OUT_OF_RANGE,
    ExportFailedError: grpc.StatusCode.FAILED_PRECONDITION,
    DamagedRunError: grpc.StatusCode.DATA_LOSS,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
}


async def abort(context: grpc.aio.ServicerContext, error: RunnerError) -> NoReturn:  # type: ignore[type-arg] # its parameters are the messages'
    """End the call with the status of an error."""
    await _abort(context, status_of(error))


def status_of(error: RunnerError) -> status_pb2.Status:
    """Return the status of an error."""
    code = next(code for kind, code in _CODES.items() if isinstance(error, kind))
    details: list[any_pb2.Any] = []
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=_text(error.message, _MAX_MESSAGE)
        )
        details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    if error.retry_after:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after * 1000))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status(code, error.message, error.reason, error.metadata, details)


async def abort_with(
    context: grpc.aio.ServicerContext,  # type: ignore[type-arg] # its parameters are the messages'
    code: grpc.StatusCode,
    message: str,
    reason: str,
    metadata: Mapping[str, str],
    details: list[any_pb2.Any] | None = None,
) -> NoReturn:
    """End the call with a status that has an ErrorInfo."""
    await _abort(context, status(code, message, reason, metadata, details))


def status(
    code: grpc.StatusCode,
    message: str,
    reason: str,
    metadata: Mapping[str, str],
    details: list[any_pb2.Any] | None = None,
) -> status_pb2.Status:
    """Return a status that has an ErrorInfo."""
    text = _text(message, _MAX_MESSAGE)
    values = {name: _text(value, _MAX_VALUE) for name, value in list(metadata.items())[:_MAX_VALUES]}
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=values)
    return status_pb2.Status(code=code.value[0], message=text, details=[_packed(info), *(details or [])])


def reason_of(answer: status_pb2.Status) -> str:
    """Return the reason in the ErrorInfo of a status; empty: it has none."""
    info = error_details_pb2.ErrorInfo()
    return next((info.reason for detail in answer.details if detail.Unpack(info)), "")


async def _abort(context: grpc.aio.ServicerContext, answer: status_pb2.Status) -> NoReturn:  # type: ignore[type-arg] # as above
    bind_contextvars(reason=reason_of(answer))
    code = next(code for code in grpc.StatusCode if code.value[0] == answer.code)
    await context.abort(code, answer.message, ((DETAILS_KEY, answer.SerializeToString()),))
    raise AssertionError("abort returned")


def _packed(
    message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _text(value: str, size: int) -> str:
    return value.encode(errors="replace")[:size].decode(errors="ignore")
