"""Authenticates and authorizes each call before the server reads any of it."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from inspect import isasyncgenfunction
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from structlog.contextvars import bind_contextvars

from notebook_runner_server.api.errors import BAD_TOKEN, MISSING_TOKEN, abort, abort_with
from notebook_runner_server.api.interceptor import Continuation, Handler, Interceptor, function_of, rebuild
from notebook_runner_server.api.oidc_options import MAX_NAME_CHARACTERS, RefusedTokenError, is_jwt
from notebook_runner_server.api.peers import peer_of
from notebook_runner_server.api.tokens import Tokens
from notebook_runner_server.errors import NotReadyError
from notebook_runner_server.runs.call_target import current_target
from notebook_runner_server.runs.caller import ANONYMOUS, Caller, Scope, set_caller

if TYPE_CHECKING:
    from notebook_runner_server.api.oidc import JwtVerifier

_logger = logging.getLogger(__name__)

_HEALTH = "/grpc.health.v1.Health/"
_RUNNER = "/notebook_runner.v1.NotebookRunner/"

PUBLIC_METHODS = frozenset(_HEALTH + name for name in ("Check", "List", "Watch"))
"""Methods that need no token: probes have none."""

READ_METHODS = frozenset(
    [
        *(_RUNNER + name for name in ("Progress", "Output", "List", "Watch", "Get", "Info")),
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ]
)
"""Methods that need the scope `read`. All others, unknown ones included, need `run`."""

REPORT_SECONDS = 1.0
"""Interval of the log lines that summarize refused calls, so that a flood cannot fill the disk."""

# gRPC limits the size of all headers together (`api.server.METADATA_BYTES`).
_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9._~+/-]+=*)")


@dataclass(frozen=True)
class _Refusal:
    code: grpc.StatusCode
    reason: str
    message: str


@dataclass(frozen=True)
class _Grant:
    """The caller of a call, and whether its credentials are still valid."""

    caller: Caller
    holds: Callable[[], bool]


_MISSING = _Refusal(
    grpc.StatusCode.UNAUTHENTICATED,
    MISSING_TOKEN,
    "Missing token. Send the header `authorization: Bearer TOKEN`.",
)
_UNCERTIFIED = _Refusal(
    grpc.StatusCode.UNAUTHENTICATED, MISSING_TOKEN, "Missing certificate. Connect with a client certificate."
)
_MALFORMED = _Refusal(
    grpc.StatusCode.UNAUTHENTICATED,
    BAD_TOKEN,
    "Malformed authorization header. Send it once, as `authorization: Bearer TOKEN`.",
)
_INVALID = _Refusal(grpc.StatusCode.UNAUTHENTICATED, BAD_TOKEN, "Invalid or revoked token.")
_ENDED = _Refusal(
    grpc.StatusCode.UNAUTHENTICATED,
    BAD_TOKEN,
    "The token of this stream has expired or was revoked. Continue with a new token.",
)


class AuthInterceptor(Interceptor):
    """Refuses calls without valid credentials of the required scope, and sets the caller of the others.

    Credentials are checked when a call begins, and again with each message of a stream: if the token is
    removed from the file or expires, the stream ends with its next message, which is a heartbeat at the
    latest.

    Args:
        tokens: The valid tokens; None: there are none.
        jwts: Verifies JWTs; None: they are not accepted.
        are_certified: Whether each caller has a certificate. If there are neither tokens nor JWTs, the name
            in the certificate is the caller's.
    """

    def __init__(self, tokens: Tokens | None, jwts: JwtVerifier | None, *, are_certified: bool) -> None:
        self._tokens = tokens
        self._jwts = jwts
        self._are_certified = are_certified
        # Since the last log line.
        self._refused = 0
        self._latest: dict[str, str] = {}
        self._report_is_scheduled = False

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Check a call (called by grpc)."""
        method = handler_call_details.method
        if method in PUBLIC_METHODS:
            return await continuation(handler_call_details)
        if self._tokens is None and self._jwts is None:
            if self._are_certified:
                return await super().intercept_service(continuation, handler_call_details)
            return await continuation(handler_call_details)
        checked = await self._authorize(method, handler_call_details.invocation_metadata)
        if not isinstance(checked, _Grant):
            return self._refusing(method, checked)
        handler = await continuation(handler_call_details)
        if handler is None or not isasyncgenfunction(call := function_of(handler)):
            return handler
        return rebuild(handler, self._while_valid(checked, method, call))

    def wrap_unary(self, method: str, call: Any) -> Any:
        """Set the caller of a call with one response to the name in its certificate."""

        async def entered(request: Any, context: Any) -> Any:
            await self._enter_certified(method, context)
            return await call(request, context)

        return entered

    def wrap_stream(self, method: str, call: Any) -> Any:
        """Set the caller of a call with a stream of responses to the name in its certificate."""

        async def entered(request: Any, context: Any) -> AsyncIterator[Any]:
            await self._enter_certified(method, context)
            async with aclosing(call(request, context)) as messages:
                async for message in messages:
                    yield message

        return entered

    async def _enter_certified(self, method: str, context: Any) -> None:
        properties = context.auth_context()
        if not properties.get("x509_pem_cert"):
            # gRPC accepts no such connection; but a mistake here would allow everything to everyone.
            await self._refuse(context, method, _UNCERTIFIED)
        _enter(certified_caller(properties))

    async def _authorize(self, method: str, metadata: Any) -> _Grant | _Refusal | NotReadyError:
        values = [value for key, value in metadata or () if key == "authorization"]
        if not values:
            return _MISSING
        match = _BEARER.fullmatch(values[0]) if len(values) == 1 and isinstance(values[0], str) else None
        if match is None:
            return _MALFORMED
        try:
            grant = await self._authenticate(match[1])
        except RefusedTokenError as error:
            return _Refusal(grpc.StatusCode.UNAUTHENTICATED, BAD_TOKEN, str(error))
        except NotReadyError as error:
            return error
        if grant is None:
            return _INVALID
        # Also of a call that is refused for its scope.
        _enter(grant.caller)
        needed = Scope.READ if method in READ_METHODS else Scope.RUN
        return grant if needed in grant.caller.scopes else _forbidden(grant.caller, needed)

    async def _authenticate(self, token: str) -> _Grant | None:
        if self._tokens is not None and (entry := self._tokens.find(token)) is not None:
            return _Grant(entry.caller, partial(self._tokens.holds, entry))
        if self._jwts is not None and is_jwt(token):
            verified = await self._jwts.verify(token)
            return _Grant(verified.caller, partial(self._jwts.holds, verified))
        return None

    def _refusing(self, method: str, refusal: _Refusal | NotReadyError) -> Handler:
        async def refuse(_requests: Any, context: Any) -> None:
            await self._refuse(context, method, refusal)

        # A stream for every method, because it is answered without waiting for a request.
        return grpc.stream_stream_rpc_method_handler(refuse)

    def _while_valid(self, grant: _Grant, method: str, call: Any) -> Any:
        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            async with aclosing(call(request, context)) as messages:
                async for message in messages:
                    if not grant.holds():
                        await self._refuse(context, method, _ENDED)
                    yield message

        return stream

    async def _refuse(self, context: Any, method: str, refusal: _Refusal | NotReadyError) -> NoReturn:
        current_target().is_refused = True
        self._refused += 1
        self._latest = {"rpc": method[:100], "peer": peer_of(context), "reason": refusal.reason}
        if not self._report_is_scheduled:
            self._report()
        if isinstance(refusal, NotReadyError):
            await abort(context, refusal)
        await abort_with(context, refusal.code, refusal.message, refusal.reason, {})

    def _report(self) -> None:
        """Log refused calls, and again after each interval until there are no new ones."""
        self._report_is_scheduled = self._refused > 0
        if self._report_is_scheduled:
            _logger.warning("calls_refused", extra={"count": self._refused, **self._latest})
            self._refused = 0
            # In an empty context, without the ids of this call.
            asyncio.get_running_loop().call_later(REPORT_SECONDS, self._report, context=Context())


def certified_caller(properties: Mapping[str, Iterable[bytes]]) -> Caller:
    """Return the caller that a connection's certificate names, who may do everything.

    Args:
        properties: gRPC's properties of a connection with a certificate.
    """
    (pem,) = properties["x509_pem_cert"]
    for name in ("x509_common_name", "x509_subject_alternative_name"):
        for value in properties.get(name, ()):
            text = value.decode(errors="replace")
            if text.isprintable() and 0 < len(text) <= MAX_NAME_CHARACTERS:
                return Caller(text, ANONYMOUS.scopes)
    # Unlike a name that cannot be logged, it is nobody else's.
    return Caller(
        f"sha256:{hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode())).hexdigest()}", ANONYMOUS.scopes
    )


def _enter(caller: Caller) -> None:
    set_caller(caller)
    if caller.name:
        bind_contextvars(caller=caller.name)


def _forbidden(caller: Caller, needed: Scope) -> _Refusal:
    if caller.scopes:
        *others, last = sorted(caller.scopes)
        scopes = f"scopes are {', '.join(others)} and {last}" if others else f"only scope is {last}"
        has = f"the caller's {scopes}"
    else:
        has = "the server's scopes file names neither the caller nor its groups"
    message = f"This call needs a token with the scope {needed} ({has})."
    return _Refusal(grpc.StatusCode.PERMISSION_DENIED, BAD_TOKEN, message)
