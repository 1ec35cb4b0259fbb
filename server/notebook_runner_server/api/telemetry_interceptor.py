"""Stands around every call, outermost: gives it an id, and tells observers how it went."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from contextvars import Context, copy_context
from dataclasses import dataclass
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any, Protocol

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from structlog.contextvars import bind_contextvars, get_contextvars

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.runs.model import TraceContext

REQUEST_ID = "x-request-id"
"""The header in which a caller may say what the log is to call its call."""

OTHER = "other"
"""The name of every method beside those of the contract, health and reflection: callers choose such names."""

_FILES = (pb.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
_NAMES = {
    f"/{service.full_name}/{method.name}": f"{service.name}/{method.name}"
    for file in _FILES
    for service in file.services_by_name.values()
    for method in service.methods
}
# The two versions of reflection are one.
_NAMES["/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"] = "ServerReflection/ServerReflectionInfo"

METHODS = (*dict.fromkeys(_NAMES.values()), OTHER)
"""The names of methods, as observers are told them."""

CODES = {code.value[0]: code.name for code in grpc.StatusCode}
"""The name of each status."""

_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,127}")
# W3C Trace Context, version 00; later versions begin in the same way.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")


@dataclass(frozen=True, slots=True)
class Call:
    """A call that has ended.

    Attributes:
        method: One of `METHODS`.
        code: The name of its status.
        reason: Of the contract's reasons; empty: none.
        seconds: How long it took from when its request was there, by a monotonic clock.
        messages: How many it answered, where it is a stream.
        peer: Where it came from, as gRPC writes it; empty: not known.
    """

    method: str
    code: str
    reason: str
    seconds: float
    messages: int
    peer: str


class CallObserver(Protocol):
    """Watches calls."""

    def call_started(self, method: str) -> None:
        """Take note of a call; answer at once."""

    def call_ended(self, call: Call) -> None:
        """Take note of the end of a call, within what is bound for the log; answer at once."""


class TelemetryInterceptor(grpc.aio.ServerInterceptor):
    """Binds each call's id for the log, and tells observers of it.

    Args:
        observers: Who watches.
    """

    def __init__(self, observers: Iterable[CallObserver]) -> None:
        self._observers = tuple(observers)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of a call (called by grpc)."""
        asked = _header(handler_call_details.invocation_metadata, REQUEST_ID, _SANE_ID)
        bind_contextvars(request_id=asked or secrets.token_hex(8))
        method = _NAMES.get(handler_call_details.method, OTHER)
        handler = await continuation(handler_call_details)
        # An inner interceptor answers for a method that does not exist.
        return handler and self._watched(method, handler)

    def _watched(
        self, method: str, handler: grpc.RpcMethodHandler[Any, Any]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        kinds: dict[tuple[bool, bool], tuple[Any, Any]] = {
            (False, False): (handler.unary_unary, grpc.unary_unary_rpc_method_handler),
            (False, True): (handler.unary_stream, grpc.unary_stream_rpc_method_handler),
            (True, False): (handler.stream_unary, grpc.stream_unary_rpc_method_handler),
            (True, True): (handler.stream_stream, grpc.stream_stream_rpc_method_handler),
        }
        call, make = kinds[bool(handler.request_streaming), bool(handler.response_streaming)]
        if isasyncgenfunction(call):
            watched: Any = self._stream(method, call)
        elif iscoroutinefunction(call):
            watched = self._coroutine(method, call)
        else:
            # Channelz answers by plain functions, which gRPC runs on threads.
            return handler
        made: grpc.RpcMethodHandler[Any, Any] = make(
            watched, handler.request_deserializer, handler.response_serializer
        )
        return made

    def _coroutine(self, method: str, call: Any) -> Any:
        async def watched(request: Any, context: Any) -> Any:
            watch = _Watch(self._observers, method, context.peer())
            try:
                return await call(request, context)
            finally:
                watch.ended(_code(context))

        return watched

    def _stream(self, method: str, call: Any) -> Any:
        async def watched(request: Any, context: Any) -> AsyncIterator[Any]:
            watch = _Watch(self._observers, method, context.peer())
            try:
                async with aclosing(call(request, context)) as messages:
                    async for message in messages:
                        watch.sent()
                        yield message
            except GeneratorExit:
                watch.abandoned()
                raise
            except BaseException:
                watch.ended(_code(context))
                raise
            watch.ended(_code(context))

        return watched


class _Watch:
    """A call that goes on."""

    def __init__(self, observers: Iterable[CallObserver], method: str, peer: str) -> None:
        self._observers = observers
        self._method = method
        self._peer = peer
        self._begin = time.monotonic()
        self._messages = 0
        self._context: Context | None = None
        for one in observers:
            one.call_started(method)

    def sent(self) -> None:
        """Take note of a message of a stream."""
        self._messages += 1
        self._context = copy_context()

    def abandoned(self) -> None:
        """Tell that its peer went away while a message was on its way to it.

        That is found out wherever the stream is cleared away, so with what was bound before.
        """
        assert self._context is not None  # noqa: S101 - a message was sent
        self._context.run(self.ended, grpc.StatusCode.CANCELLED.name)

    def ended(self, code: str) -> None:
        """Tell that it has ended."""
        seconds = time.monotonic() - self._begin
        reason = get_contextvars().get("reason", "")
        call = Call(self._method, code, reason, seconds, self._messages, self._peer)
        for one in self._observers:
            one.call_ended(call)


def _code(context: Any) -> str:
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code.name
    return CODES.get(code or 0, grpc.StatusCode.UNKNOWN.name)


def origin(metadata: Any) -> TraceContext:
    """Return where the call comes from that is answered just now.

    Args:
        metadata: The headers of the call. A place in a trace that is none is left out.
    """
    traceparent = _header(metadata, "traceparent", _TRACEPARENT)
    return TraceContext(
        call_id=get_contextvars().get("request_id", ""),
        traceparent=traceparent,
        tracestate=_header(metadata, "tracestate", _TRACESTATE) if traceparent else "",
    )


def _header(metadata: Any, name: str, form: re.Pattern[str]) -> str:
    """Return the value of a header that is there once and has this form; empty: it is not, or has not."""
    values = [value for key, value in metadata or () if key == name]
    sane = len(values) == 1 and isinstance(values[0], str) and form.fullmatch(values[0])
    return values[0] if sane else ""
