"""Gives each call an id, and reports it to observers; the outermost interceptor."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from structlog.contextvars import bind_contextvars, get_contextvars

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.api.interceptor import Continuation, Handler, Interceptor
from notebook_runner_server.api.peers import peer_of
from notebook_runner_server.runs.model import TraceContext

REQUEST_ID = "x-request-id"
"""The header with which a caller sets the id of its call in the log."""

OTHER = "other"
"""Stands for all methods except those of the contract, health and reflection: callers choose their names."""

_FILES = (pb.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
_NAMES = {
    f"/{service.full_name}/{method.name}": f"{service.name}/{method.name}"
    for file in _FILES
    for service in file.services_by_name.values()
    for method in service.methods
}
# Observers see the two versions of reflection as one.
_NAMES["/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"] = "ServerReflection/ServerReflectionInfo"

METHODS = (*dict.fromkeys(_NAMES.values()), OTHER)
"""The names of methods that observers get."""

CODES = {code.value[0]: code.name for code in grpc.StatusCode}
"""The name of each status."""

SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,127}")
"""The form of a value of `REQUEST_ID`; others are replaced."""

# W3C Trace Context, version 00; later versions begin in the same way.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")


@dataclass(frozen=True, slots=True)
class Call:
    """A call that has ended.

    Attributes:
        method: One of `METHODS`.
        code: The name of its status.
        reason: One of the contract's reasons; empty: none.
        seconds: The time since its request was complete, by a monotonic clock.
        messages: The number of messages of a stream.
        peer: The address of the caller, as gRPC writes it; empty: unknown.
    """

    method: str
    code: str
    reason: str
    seconds: float
    messages: int
    peer: str


class CallObserver(Protocol):
    """Watches calls. Its methods run on the event loop and must return immediately."""

    def call_started(self, method: str) -> None:
        """Handle the start of a call."""

    def call_ended(self, call: Call) -> None:
        """Handle the end of a call, in its logging context."""


class TelemetryInterceptor(Interceptor):
    """Binds each call's id for the log, and reports the call to observers.

    Args:
        observers: The observers.
    """

    def __init__(self, observers: Iterable[CallObserver]) -> None:
        self._observers = tuple(observers)

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Bind the call's id, and wrap its handler (called by grpc)."""
        sent = _header(handler_call_details.invocation_metadata, REQUEST_ID, SANE_ID)
        bind_contextvars(request_id=sent or secrets.token_hex(8))
        return await super().intercept_service(continuation, handler_call_details)

    def wrap_unary(self, method: str, call: Any) -> Any:
        """Report a call with one response."""

        async def watched(request: Any, context: Any) -> Any:
            open_call = _OpenCall(self._observers, method, peer_of(context))
            try:
                return await call(request, context)
            finally:
                open_call.ended(_code(context))

        return watched

    def wrap_stream(self, method: str, call: Any) -> Any:
        """Report a call with a stream of responses."""

        async def watched(request: Any, context: Any) -> AsyncIterator[Any]:
            open_call = _OpenCall(self._observers, method, peer_of(context))
            try:
                async with aclosing(call(request, context)) as messages:
                    async for message in messages:
                        open_call.sent()
                        yield message
            except GeneratorExit:
                open_call.abandoned()
                raise
            except BaseException:
                open_call.ended(_code(context))
                raise
            open_call.ended(_code(context))

        return watched


class _OpenCall:
    """A call that has not ended."""

    def __init__(self, observers: Iterable[CallObserver], method: str, peer: str) -> None:
        self._observers = observers
        self._method = _NAMES.get(method, OTHER)
        self._peer = peer
        self._begin = time.monotonic()
        self._messages = 0
        self._context: Context | None = None
        for one in observers:
            one.call_started(self._method)

    def sent(self) -> None:
        """Count a message of a stream."""
        self._messages += 1
        if self._context is None:
            self._context = copy_context()

    def abandoned(self) -> None:
        """Report that the peer went away while a message was being sent.

        Python may finalize the stream in the context of another call, so this uses that of its first message.
        """
        assert self._context is not None  # noqa: S101 - streams end here only after a message
        self._context.run(self.ended, grpc.StatusCode.CANCELLED.name)

    def ended(self, code: str) -> None:
        """Report the end of the call."""
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


def trace_context(metadata: Any) -> TraceContext:
    """Return the trace context of the current call.

    Args:
        metadata: The headers of the call. A malformed trace context is ignored.
    """
    traceparent = _header(metadata, "traceparent", _TRACEPARENT)
    return TraceContext(
        call_id=get_contextvars().get("request_id", ""),
        traceparent=traceparent,
        tracestate=_header(metadata, "tracestate", _TRACESTATE) if traceparent else "",
    )


def _header(metadata: Any, name: str, form: re.Pattern[str]) -> str:
    """Return the value of a header; empty if it is missing, repeated or malformed."""
    values = [value for key, value in metadata or () if key == name]
    sane = len(values) == 1 and isinstance(values[0], str) and form.fullmatch(values[0])
    return values[0] if sane else ""
