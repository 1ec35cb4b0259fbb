"""The base of the interceptors: wraps the function that answers a call, whatever its kind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any, TypeAlias

import grpc

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"

_FACTORIES: dict[tuple[bool, bool], Callable[..., Handler]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps the functions that answer calls with `wrap_unary` and `wrap_stream`."""

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Wrap the handler of a call (called by grpc)."""
        handler = await continuation(handler_call_details)
        return handler and self.wrap(handler_call_details.method, handler)

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Return a handler that answers with the wrapped function."""
        call = function_of(handler)
        if isasyncgenfunction(call):
            return rebuild(handler, self.wrap_stream(method, call))
        if iscoroutinefunction(call):
            return rebuild(handler, self.wrap_unary(method, call))
        # Channelz answers with plain functions, which gRPC runs on threads.
        return handler

    def wrap_unary(self, method: str, call: Any) -> Any:  # noqa: ARG002 - for subclasses
        """Wrap a coroutine function."""
        return call

    def wrap_stream(self, method: str, call: Any) -> Any:  # noqa: ARG002 - for subclasses
        """Wrap an async generator function."""
        return call


def function_of(handler: Handler) -> Any:
    """Return the function of a handler."""
    return handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream


def rebuild(
    handler: Handler,
    call: Any,
    *,
    parse: Callable[[bytes], Any] | None = None,
    request_streaming: bool = False,
) -> Handler:
    """Return a handler with another function.

    Args:
        handler: The handler.
        call: The new function.
        parse: Parses a request; None: as the handler does.
        request_streaming: The new function takes a stream of requests, even if the handler takes one.
    """
    make = _FACTORIES[request_streaming or bool(handler.request_streaming), bool(handler.response_streaming)]
    return make(call, parse or handler.request_deserializer, handler.response_serializer)
