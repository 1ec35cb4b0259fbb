"""Failed calls as HTTP responses: google.rpc.Status as JSON, with the HTTP status that means the same."""

from __future__ import annotations

import math
from typing import Any

import grpc
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2
from starlette.responses import Response

from notebook_runner_server.api import errors
from notebook_runner_server.http_api.transcoding import to_json

_HTTP = {
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DATA_LOSS: 500,
}
HTTP_STATUSES = {code.value[0]: number for code, number in _HTTP.items()}
"""The HTTP status of each gRPC code, as in google/rpc/code.proto, and so in proxies."""


def of_call(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """Return the status with which a call has failed."""
    for name, value in error.trailing_metadata() or ():
        if name == errors.DETAILS_KEY and isinstance(value, bytes):
            return status_pb2.Status.FromString(value)
    return status_pb2.Status(code=error.code().value[0], message=error.details() or "")


def response(status: status_pb2.Status, number: int = 0, headers: dict[str, str] | None = None) -> Response:
    """Return the response for a failed call.

    Args:
        status: The status.
        number: The HTTP status; 0: the one of the gRPC code.
        headers: Further headers.
    """
    number = number or HTTP_STATUSES.get(status.code, 500)
    found = dict(headers or {})
    retry = error_details_pb2.RetryInfo()
    if any(detail.Unpack(retry) for detail in status.details):
        found["Retry-After"] = str(math.ceil(retry.retry_delay.ToTimedelta().total_seconds()))
    if number == HTTP_STATUSES[grpc.StatusCode.UNAUTHENTICATED.value[0]]:
        found["WWW-Authenticate"] = "Bearer"
    return Response(to_json(status), number, found, "application/json")


def refusal(code: grpc.StatusCode, message: str, reason: str, number: int = 0, **headers: str) -> Response:
    """Return the response for a request that the listener itself refuses."""
    return response(errors.status(code, message, reason, {}), number, headers)


def internal_error(error_id: str) -> Response:
    """Return the response for an error that the log has, with its id."""
    message = f"Internal error {error_id}. See the server's log."
    code, values = grpc.StatusCode.INTERNAL, {"error_id": error_id}
    return response(errors.status(code, message, errors.INTERNAL_ERROR, values))


def as_json(status: status_pb2.Status) -> Any:
    """Return a status for a line of a stream."""
    return json_format.MessageToDict(status)
