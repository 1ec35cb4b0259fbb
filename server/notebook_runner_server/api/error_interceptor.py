"""Stands around every call: what cannot be served or goes wrong becomes a status with details."""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.api.errors import CANCELLED, INTERNAL_ERROR, UNKNOWN_METHOD, abort, abort_with
from notebook_runner_server.errors import (
    DamagedRunError,
    InvalidFieldError,
    NotebookTooLargeError,
    RequestTooLargeError,
    RunnerError,
)

_logger = logging.getLogger(__name__)


METHODS = ", ".join(method.name for method in pb.DESCRIPTOR.services_by_name["NotebookRunner"].methods)
"""The methods of the contract, for who asks for another one."""

_START = "Start"


@dataclass(frozen=True)
class _Refused:
    """Stands for a request that is refused without being a message."""

    error: RunnerError


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns errors into statuses of the contract.

    Args:
        max_bytes: The largest message that is accepted. gRPC has a limit as well, whose status has no
            details: it must be above this one.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._known_damaged: set[str] = set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of a call (called by grpc)."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return grpc.stream_stream_rpc_method_handler(_refuse_unknown)
        call: Any = handler.unary_unary or handler.unary_stream or handler.stream_stream
        # Channelz answers by plain functions, which gRPC runs on threads.
        if not (iscoroutinefunction(call) or isasyncgenfunction(call)):
            return handler
        name = handler_call_details.method.rpartition("/")[2]
        parse = self._lenient(name, handler.request_deserializer)
        wrap = self._unary if iscoroutinefunction(call) else self._stream
        wrapped = wrap(name, call, has_one=not handler.request_streaming)
        # A call that ends without its one message grpc.aio never answers, unless it is taken for a stream.
        kind: Any = grpc.stream_unary_rpc_method_handler
        if handler.response_streaming:
            kind = grpc.stream_stream_rpc_method_handler
        made: grpc.RpcMethodHandler[Any, Any] = kind(wrapped, parse, handler.response_serializer)
        return made

    def _lenient(self, name: str, parse: Any) -> Callable[[bytes], Any]:
        """Return what parses a request; gRPC would answer an error of it by a status without details."""

        def deserialize(data: bytes) -> Any:
            if len(data) > self._max_bytes:
                return _Refused(_too_large(name, len(data), self._max_bytes))
            try:
                return parse(data)
            except DecodeError:
                message = "The request is not a message of this call's type, or is nested too deep."
                return _Refused(InvalidFieldError(message))

        return deserialize

    def _unary(self, name: str, call: Any, *, has_one: bool) -> Any:
        @functools.wraps(call)
        async def guarded(requests: Any, context: Any) -> Any:
            try:
                return await call(await _request(requests, has_one=has_one), context)
            except BaseException as error:  # noqa: BLE001 - each is answered, none escapes
                await self._answer(name, context, error)

        return guarded

    def _stream(self, name: str, call: Any, *, has_one: bool) -> Any:
        @functools.wraps(call)
        async def guarded(requests: Any, context: Any) -> AsyncIterator[Any]:
            try:
                async for message in call(await _request(requests, has_one=has_one), context):
                    yield message
            except GeneratorExit:
                raise
            except BaseException as error:  # noqa: BLE001 - each is answered, none escapes
                await self._answer(name, context, error)

        return guarded

    async def _answer(self, name: str, context: Any, error: BaseException) -> None:
        if isinstance(error, DamagedRunError):
            self._log_damage(error)
        if isinstance(error, RunnerError):
            await abort(context, error)
        if isinstance(error, (grpc.aio.AbortError, grpc.aio.UsageError)):
            raise error
        if isinstance(error, asyncio.CancelledError):
            # The caller has gone, or the server has stopped: were it raised here, a caller that is still
            # there would wait for ever.
            await abort_with(context, grpc.StatusCode.CANCELLED, "The call was cancelled.", CANCELLED, {})
        error_id = secrets.token_hex(8)
        _logger.error("internal error", exc_info=error, extra={"error_id": error_id, "rpc": name})
        message = f"The server failed; its log says more under error id {error_id}."
        await abort_with(context, grpc.StatusCode.INTERNAL, message, INTERNAL_ERROR, {"error_id": error_id})

    def _log_damage(self, error: DamagedRunError) -> None:
        """Tell the operator of each run once; callers may ask again and again."""
        run_id = error.metadata["run_id"]
        if run_id not in self._known_damaged:
            self._known_damaged.add(run_id)
            _logger.error("run_damaged", extra={"run_id": run_id, "why": error.message})


def _too_large(name: str, size: int, limit: int) -> RunnerError:
    values = {"bytes": str(size), "limit_bytes": str(limit)}
    message = f"The request has {size} bytes; this server accepts {limit}"
    if name == _START:
        # With anything else of a Start there is not room for so much beside a notebook.
        return NotebookTooLargeError(f"{message} (--max-notebook-bytes and 1 MiB).", **values)
    return RequestTooLargeError(f"{message}.", **values)


async def _refuse_unknown(_requests: Any, context: Any) -> AsyncIterator[Any]:
    """Refuse a method that does not exist: as a stream, which answers without waiting for a request."""
    answers: tuple[Any, ...] = ()
    for one in answers:
        yield one
    message = f"This server has no such method. NotebookRunner has: {METHODS}."
    await abort_with(context, grpc.StatusCode.UNIMPLEMENTED, message, UNKNOWN_METHOD, {})


async def _request(requests: AsyncIterator[Any], *, has_one: bool) -> Any:
    """Return the one request of a call, or its requests.

    Raises:
        RunnerError: There is no message, it is too large, or is not of its type.
    """
    if not has_one:
        return (_checked(one) async for one in requests)
    async for request in requests:
        return _checked(request)
    raise InvalidFieldError("The call ended without its request: send one message, which may be empty.")


def _checked(request: Any) -> Any:
    if isinstance(request, _Refused):
        raise request.error
    return request
