"""Who may call what: every call passes here before anything of it is read."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from contextvars import Context
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from structlog.contextvars import bind_contextvars

from notebook_runner_server.api.errors import BAD_TOKEN, MISSING_TOKEN, abort_with
from notebook_runner_server.api.tokens import Scope, TokenEntry, Tokens

_logger = logging.getLogger(__name__)

_HEALTH = "/grpc.health.v1.Health/"
_RUNNER = "/notebook_runner.v1.NotebookRunner/"

OPEN = frozenset(_HEALTH + name for name in ("Check", "List", "Watch"))
"""What anybody may call: a probe has no token."""

READ = frozenset(
    [
        *(_RUNNER + name for name in ("Progress", "Output", "List", "Info")),
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ]
)
"""What the scope `read` is enough for. Whatever is neither here nor in `OPEN` needs `run`, known or not."""

REPORT_SECONDS = 1.0
"""Refused calls are told in the log once in so many seconds, with their number: a flood fills no disk."""

_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9._~+/-]{1,1024}=*)")


@dataclass(frozen=True)
class _Refusal:
    code: grpc.StatusCode
    reason: str
    message: str


_MISSING = _Refusal(
    grpc.StatusCode.UNAUTHENTICATED,
    MISSING_TOKEN,
    "This call needs the header authorization: Bearer TOKEN.",
)
_MALFORMED = _Refusal(
    grpc.StatusCode.UNAUTHENTICATED,
    BAD_TOKEN,
    "The header authorization has to be there once, as Bearer TOKEN.",
)
_UNKNOWN = _Refusal(grpc.StatusCode.UNAUTHENTICATED, BAD_TOKEN, "The token is not valid, or no longer.")
_TOO_LITTLE = _Refusal(
    grpc.StatusCode.PERMISSION_DENIED, BAD_TOKEN, "The token's scope is read, and this call needs run."
)


class AuthInterceptor(grpc.aio.ServerInterceptor):
    """Lets a call through, or answers why not.

    A token is looked up when a call begins, and again with each message of a stream: a stream whose token
    was removed from the file ends instead of its next message, which is a heartbeat at the latest.

    Args:
        tokens: The valid ones; None: callers need none.
    """

    def __init__(self, tokens: Tokens | None) -> None:
        self._tokens = tokens
        # Since the last line of the log that told of some, which was a moment ago or not.
        self._refused = 0
        self._told = False
        self._latest: dict[str, str] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Judge a call (called by grpc)."""
        method = handler_call_details.method
        if self._tokens is None or method in OPEN:
            return await continuation(handler_call_details)
        verdict = _judge(self._tokens, method, handler_call_details.invocation_metadata)
        if isinstance(verdict, _Refusal):
            return self._refusing(method, verdict)
        bind_contextvars(caller=verdict.name)
        handler = await continuation(handler_call_details)
        if handler is None or not handler.response_streaming:
            return handler
        return self._while_valid(self._tokens, verdict, method, handler)

    def _refusing(self, method: str, refusal: _Refusal) -> grpc.RpcMethodHandler[Any, Any]:
        async def refuse(_requests: Any, context: Any) -> None:
            await self._refuse(context, method, refusal)

        # Of this kind whatever the method is: it answers without waiting for a request.
        return grpc.stream_stream_rpc_method_handler(refuse)

    def _while_valid(
        self, tokens: Tokens, entry: TokenEntry, method: str, handler: grpc.RpcMethodHandler[Any, Any]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        call: Any = handler.stream_stream or handler.unary_stream

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            async with aclosing(call(request, context)) as messages:
                async for message in messages:
                    if not tokens.holds(entry):
                        await self._refuse(context, method, _UNKNOWN)
                    yield message

        kind = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )
        return kind(stream, handler.request_deserializer, handler.response_serializer)

    async def _refuse(self, context: Any, method: str, refusal: _Refusal) -> NoReturn:
        self._report(context.peer(), method, refusal)
        await abort_with(context, refusal.code, refusal.message, refusal.reason, {})

    def _report(self, peer: str, method: str, refusal: _Refusal) -> None:
        self._refused += 1
        self._latest = {"rpc": method[:100], "peer": peer, "reason": refusal.reason}
        if not self._told:
            self._tell()

    def _tell(self) -> None:
        """Tell of calls that nobody has been told of, and again after a while, until there are none."""
        self._told = self._refused > 0
        if self._told:
            _logger.warning("calls refused", extra={"count": self._refused, **self._latest})
            self._refused = 0
            # Without what is bound for the call that is answered just now.
            asyncio.get_running_loop().call_later(REPORT_SECONDS, self._tell, context=Context())


def _judge(tokens: Tokens, method: str, metadata: Any) -> TokenEntry | _Refusal:
    values = [value for key, value in metadata or () if key == "authorization"]
    if not values:
        return _MISSING
    match = _BEARER.fullmatch(values[0]) if len(values) == 1 and isinstance(values[0], str) else None
    if match is None:
        return _MALFORMED
    entry = tokens.find(match[1])
    if entry is None:
        return _UNKNOWN
    if entry.scope < (Scope.READ if method in READ else Scope.RUN):
        return _TOO_LITTLE
    return entry
