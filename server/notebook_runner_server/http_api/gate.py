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

from notebook_runner_server.api.telemetry_interceptor import REQUEST_ID
from notebook_runner_server.http_api import statuses
from notebook_runner_server.http_api.gateway import request_id

ORIGIN_NOT_ALLOWED = "ORIGIN_NOT_ALLOWED"
"""The reason of a refused request of a web page; only the HTTP listener has it."""

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

        refused = self._refusal(request.headers)
        try:
            await (refused or self._app)(scope, receive, marked)
        except Exception:
            _logger.exception("http_request_failed", extra={"error_id": request_id(request)})
            raise

    def _refusal(self, headers: Headers) -> Response | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        code = grpc.StatusCode.PERMISSION_DENIED
        if origin is not None and origin not in self._origins and urlsplit(origin).netloc != host:
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


def _is_address(host: str) -> bool:
    """Return whether a Host header has an IP address, or the one name that no other machine can have."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False
