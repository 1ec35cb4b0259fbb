"""Stands around every call: what cannot be parsed or goes wrong becomes a status, and nothing leaks."""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from notebook_runner_server.api.errors import CANCELLED, INTERNAL_ERROR, abort, abort_with
from notebook_runner_server.runs.errors import InvalidFieldError, RunnerError

_logger = logging.getLogger(__name__)


class _Unreadable:
    """Stands for a request that is no message of its type."""


class Guard(grpc.aio.ServerInterceptor):
    """Turns errors into statuses of the contract."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of a call (called by grpc)."""
        handler = await continuation(handler_call_details)
        call: Any = handler and (handler.unary_unary or handler.unary_stream or handler.stream_stream)
        # Channelz answers by plain functions, which gRPC runs on threads.
        if handler is None or not (iscoroutinefunction(call) or isasyncgenfunction(call)):
            return handler
        name = handler_call_details.method.rpartition("/")[2]
        parse = _lenient(handler.request_deserializer)
        wrapped = (_unary if iscoroutinefunction(call) else _stream)(name, call)
        kind: Any = grpc.unary_unary_rpc_method_handler
        if handler.response_streaming:
            kind = grpc.unary_stream_rpc_method_handler
        if handler.request_streaming:
            kind = grpc.stream_stream_rpc_method_handler
        made: grpc.RpcMethodHandler[Any, Any] = kind(wrapped, parse, handler.response_serializer)
        return made


def _lenient(parse: Any) -> Callable[[bytes], Any]:
    def deserialize(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return _Unreadable()

    return deserialize


def _unary(name: str, call: Any) -> Any:
    @functools.wraps(call)
    async def guarded(request: Any, context: Any) -> Any:
        try:
            return await call(_checked(request), context)
        except BaseException as error:  # noqa: BLE001 - each is answered, none escapes
            await _answer(name, context, error)

    return guarded


def _stream(name: str, call: Any) -> Any:
    @functools.wraps(call)
    async def guarded(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for message in call(_checked(request), context):
                yield message
        except GeneratorExit:
            raise
        except BaseException as error:  # noqa: BLE001 - each is answered, none escapes
            await _answer(name, context, error)

    return guarded


def _checked(request: Any) -> Any:
    """Return a request, or requests, that can be read.

    Raises:
        InvalidFieldError: It is no message of its type.
    """
    if isinstance(request, _Unreadable):
        raise InvalidFieldError("The request is not a message of this call's type, or is nested too deep.")
    if isinstance(request, AsyncIterator):
        return (_checked(one) async for one in request)
    return request


async def _answer(name: str, context: Any, error: BaseException) -> None:
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
