"""Stands around every call: what cannot be parsed or goes wrong becomes a status, and nothing leaks."""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from notebook_runner_server.api.errors import abort, abort_with
from notebook_runner_server.runs.errors import InvalidFieldError, RunnerError

_logger = logging.getLogger(__name__)

_OWN = "/notebook_runner.v1."


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
        if handler is None or not handler_call_details.method.startswith(_OWN):
            return handler
        name = handler_call_details.method.rpartition("/")[2]
        parse = _lenient(handler.request_deserializer)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _stream(name, handler.unary_stream), parse, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            _unary(name, handler.unary_unary), parse, handler.response_serializer
        )


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
            _check(request)
            return await call(request, context)
        except BaseException as error:  # noqa: BLE001 - each is answered, none escapes
            await _answer(name, context, error)

    return guarded


def _stream(name: str, call: Any) -> Any:
    @functools.wraps(call)
    async def guarded(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            _check(request)
            async for message in call(request, context):
                yield message
        except GeneratorExit:
            raise
        except BaseException as error:  # noqa: BLE001 - each is answered, none escapes
            await _answer(name, context, error)

    return guarded


def _check(request: Any) -> None:
    if isinstance(request, _Unreadable):
        raise InvalidFieldError("The request is not a message of this call's type, or is nested too deep.")


async def _answer(name: str, context: Any, error: BaseException) -> None:
    if isinstance(error, RunnerError):
        await abort(context, error)
    if isinstance(error, (grpc.aio.AbortError, grpc.aio.UsageError)):
        raise error
    if isinstance(error, asyncio.CancelledError):
        # The caller has gone, or the server has stopped: were it raised here, a caller that is still
        # there would wait for ever.
        await abort_with(context, grpc.StatusCode.CANCELLED, "The call was cancelled.", "CANCELLED", {})
    error_id = secrets.token_hex(8)
    _logger.error("internal error", exc_info=error, extra={"error_id": error_id, "rpc": name})
    message = f"The server failed; its log says more under error id {error_id}."
    await abort_with(context, grpc.StatusCode.INTERNAL, message, "INTERNAL_ERROR", {"error_id": error_id})
