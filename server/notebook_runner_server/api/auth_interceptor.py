"""Authenticates and authorizes each call before the server reads any of it."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from contextvars import Context
from dataclasses import dataclass
from inspect import isasyncgenfunction
from typing import Any, NoReturn

import grpc
from structlog.contextvars import bind_contextvars

from notebook_runner_server.api.errors import BAD_TOKEN, MISSING_TOKEN, abort_with
from notebook_runner_server.api.interceptor import Continuation, Handler, Interceptor, function_of, rebuild
from notebook_runner_server.api.tokens import Scope, TokenEntry, Tokens

_logger = logging.getLogger(__name__)

_HEALTH = "/grpc.health.v1.Health/"
_RUNNER = "/notebook_runner.v1.NotebookRunner/"

PUBLIC_METHODS = frozenset(_HEALTH + name for name in ("Check", "List", "Watch"))
"""Methods that need no token: probes have none."""

READ_METHODS = frozenset(
    [
        *(_RUNNER + name for name in ("Progress", "Output", "List", "Get", "Info")),
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ]
)
"""Methods that need the scope `read`. All others, unknown ones included, need `run`."""

REPORT_SECONDS = 1.0
"""Interval of the log lines that summarize refused calls, so that a flood cannot fill the disk."""

_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9._~+/-]{1,1024}=*)")


@dataclass(frozen=True)
class _Refusal:
    code: grpc.StatusCode
    reason: str
    message: str


_MISSING = _Refusal(
    grpc.StatusCode.UNAUTHENTICATED,
    MISSING_TOKEN,
    "Missing token. Send the header `authorization: Bearer TOKEN`.",
)
_MALFORMED = _Refusal(
    grpc.StatusCode.UNAUTHENTICATED,
    BAD_TOKEN,
    "Malformed authorization header. Send it once, as `authorization: Bearer TOKEN`.",
)
_INVALID = _Refusal(grpc.StatusCode.UNAUTHENTICATED, BAD_TOKEN, "Invalid or revoked token.")
_FORBIDDEN = _Refusal(
    grpc.StatusCode.PERMISSION_DENIED,
    BAD_TOKEN,
    "This call needs a token with the scope run (the token's scope is read).",
)


class AuthInterceptor(Interceptor):
    """Refuses calls without a valid token of the required scope.

    A token is checked when a call begins, and again with each message of a stream: if the token is removed
    from the file, the stream ends with its next message, which is a heartbeat at the latest.

    Args:
        tokens: The valid tokens; None: no authentication.
    """

    def __init__(self, tokens: Tokens | None) -> None:
        self._tokens = tokens
        # Since the last log line.
        self._refused = 0
        self._latest: dict[str, str] = {}
        self._report_is_scheduled = False

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Check a call (called by grpc)."""
        method = handler_call_details.method
        if self._tokens is None or method in PUBLIC_METHODS:
            return await continuation(handler_call_details)
        checked = _authorize(self._tokens, method, handler_call_details.invocation_metadata)
        if isinstance(checked, _Refusal):
            return self._refusing(method, checked)
        bind_contextvars(caller=checked.name)
        handler = await continuation(handler_call_details)
        if handler is None or not isasyncgenfunction(call := function_of(handler)):
            return handler
        return rebuild(handler, self._while_valid(self._tokens, checked, method, call))

    def _refusing(self, method: str, refusal: _Refusal) -> Handler:
        async def refuse(_requests: Any, context: Any) -> None:
            await self._refuse(context, method, refusal)

        # A stream for every method, because it is answered without waiting for a request.
        return grpc.stream_stream_rpc_method_handler(refuse)

    def _while_valid(self, tokens: Tokens, entry: TokenEntry, method: str, call: Any) -> Any:
        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            async with aclosing(call(request, context)) as messages:
                async for message in messages:
                    if not tokens.holds(entry):
                        await self._refuse(context, method, _INVALID)
                    yield message

        return stream

    async def _refuse(self, context: Any, method: str, refusal: _Refusal) -> NoReturn:
        self._refused += 1
        self._latest = {"rpc": method[:100], "peer": context.peer(), "reason": refusal.reason}
        if not self._report_is_scheduled:
            self._report()
        await abort_with(context, refusal.code, refusal.message, refusal.reason, {})

    def _report(self) -> None:
        """Log refused calls, and again after each interval until there are no new ones."""
        self._report_is_scheduled = self._refused > 0
        if self._report_is_scheduled:
            _logger.warning("calls_refused", extra={"count": self._refused, **self._latest})
            self._refused = 0
            # In an empty context, without the ids of this call.
            asyncio.get_running_loop().call_later(REPORT_SECONDS, self._report, context=Context())


def _authorize(tokens: Tokens, method: str, metadata: Any) -> TokenEntry | _Refusal:
    values = [value for key, value in metadata or () if key == "authorization"]
    if not values:
        return _MISSING
    match = _BEARER.fullmatch(values[0]) if len(values) == 1 and isinstance(values[0], str) else None
    if match is None:
        return _MALFORMED
    entry = tokens.find(match[1])
    if entry is None:
        return _INVALID
    if entry.scope < (Scope.READ if method in READ_METHODS else Scope.RUN):
        return _FORBIDDEN
    return entry
