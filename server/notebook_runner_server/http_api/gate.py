"""Refuses requests that a web page makes a browser send, and marks all responses."""

from __future__ import annotations

import ipaddress
import logging
from urllib.parse import urlsplit

import grpc
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from notebook_runner_server.api import errors
from notebook_runner_server.api.telemetry_interceptor import REQUEST_ID
from notebook_runner_server.errors import InvalidFieldError, RequestTooLargeError, RunnerError
from notebook_runner_server.http_api import statuses
from notebook_runner_server.http_api.gateway import request_id

ORIGIN_NOT_ALLOWED = "ORIGIN_NOT_ALLOWED"
"""The reason of a refused request of a web page; only the HTTP listener has it."""

HEADER_BYTES = 16 * 1024
"""Maximum size of the headers of a request."""

# The colon, the space and the end of the line.
_AROUND = 4
_HEADERS_TOO_LARGE = 431
_CLOSE = {"Connection": "close"}

_logger = logging.getLogger(__name__)


class RequestGate:
    """The outermost part of the HTTP application.

    A browser sends requests of any page to any address. A server that asks for no credentials must not run
    what such a page asks for, so pages of other origins are refused, and so are names that could be a page's
    own: a name that its owner lets point to this machine makes the page one of this origin.

    Args:
        app: The application.
        origins: The origins whose pages may call the server.
        any_host: Whether callers may use any name of this server.
    """

    def __init__(self, app: ASGIApp, origins: frozenset[str], *, any_host: bool) -> None:
        self._app = app
        self._origins = origins
        self._any_host = any_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request (called by uvicorn)."""
        request = Request(scope, receive)

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id(request)
                headers["X-Content-Type-Options"] = "nosniff"
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refused = _malformed(request.headers) or self._refusal(request.headers)
        try:
            await (refused or self._app)(scope, receive, marked)
        except Exception:
            _logger.exception("http_request_failed", extra={"error_id": request_id(request)})
            raise

    def _refusal(self, headers: Headers) -> Response | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        code = grpc.StatusCode.PERMISSION_DENIED
        if origin is not None and origin not in self._origins and _authority(origin) != host:
            message = (
                f"Pages of {origin[:100]!r} may not call this server. Allow them with --http-cors-origins."
            )
            return statuses.refusal(code, message, ORIGIN_NOT_ALLOWED)
        if not self._any_host and not _is_address(host):
            message = (
                "A server without authentication answers to IP addresses and localhost only "
                f"(got {host[:100]!r}). Use its address, or start it with --tokens-file or --oidc-issuer."
            )
            return statuses.refusal(code, message, ORIGIN_NOT_ALLOWED)
        return None


def _malformed(headers: Headers) -> Response | None:
    """Return the refusal of headers that are too large, or that two programs could read as two requests."""
    size = sum(len(name) + len(value) + _AROUND for name, value in headers.raw)
    if size > HEADER_BYTES:
        error: RunnerError = RequestTooLargeError(
            f"The headers are larger than {HEADER_BYTES} bytes (got {size}).", limit=str(HEADER_BYTES)
        )
        return statuses.response(errors.status_of(error), _HEADERS_TOO_LARGE, _CLOSE)
    if "transfer-encoding" in headers and "content-length" in headers:
        error = InvalidFieldError(
            "The request has both Transfer-Encoding and Content-Length. Send one of them."
        )
        return statuses.response(errors.status_of(error), headers=_CLOSE)
    return None


def _authority(origin: str) -> str | None:
    """Return the host and port of an Origin header; None: it has none."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None


def _is_address(host: str) -> bool:
    """Return whether a Host header has an IP address, or the one name that no other machine can have."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False
