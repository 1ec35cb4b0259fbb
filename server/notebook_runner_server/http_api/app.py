"""The HTTP application: the calls of the contract, their description, the pages, and health."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import PurePath
from typing import TypeAlias

import grpc
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from notebook_runner_server.api import errors
from notebook_runner_server.api.telemetry_interceptor import REQUEST_ID
from notebook_runner_server.errors import RequestTooLargeError, RunnerError
from notebook_runner_server.http_api import statuses
from notebook_runner_server.http_api.bindings import Binding, bindings
from notebook_runner_server.http_api.gate import RequestGate
from notebook_runner_server.http_api.gateway import Gateway, request_id
from notebook_runner_server.http_api.health import HEALTH_SERVICES, health
from notebook_runner_server.http_api.output import output
from notebook_runner_server.http_api.streams import RESUMPTIONS, stream
from notebook_runner_server.http_api.transcoding import to_json

LARGE_RESPONSE = 64 * 1024
"""Size of a message above which it is translated on a thread, to not delay other calls."""

_JSON = "application/json"
_TOO_LARGE = 413
_GONE = 499
_UNHEALTHY = 503

_VIEWER = {
    "/docs": ("index.html", "text/html"),
    "/docs/init.js": ("init.js", "text/javascript"),
    "/docs/swagger-ui-bundle.js": ("swagger-ui-bundle.js", "text/javascript"),
    "/docs/swagger-ui.css": ("swagger-ui.css", "text/css"),
}
_VIEWER_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_PAGE_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_PAGE_POLICY = (
    # Inline styles are for the frame with the executed notebook, which inherits this policy.
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE_PATHS = ("/", "/start", "/runs/{run_id}")
"""The paths of the page; it shows what the path names."""

_Endpoint: TypeAlias = Callable[[Gateway, Binding, Request], Awaitable[Response]]


def create(gateway: Gateway, origins: list[str], *, any_host: bool, with_page: bool) -> ASGIApp:
    """Create the application.

    Args:
        gateway: Calls the gRPC server.
        origins: The origins whose pages may call the server.
        any_host: Whether callers may use any name of this server.
        with_page: Whether to serve the page on which people follow and start runs.
    """
    routes = [_route(gateway, one) for one in bindings()]
    routes += [
        *(_health_route(gateway, path) for path in HEALTH_SERVICES),
        Route("/openapi.json", _file("openapi.json", _JSON)),
        *(
            Route(path, _file(f"viewer/{name}", kind, _VIEWER_POLICY))
            for path, (name, kind) in _VIEWER.items()
        ),
    ]
    if with_page:
        routes += _page_routes()
    app: ASGIApp = Starlette(routes=routes, exception_handlers={HTTPException: _refuse, Exception: _fail})
    app = RequestGate(app, frozenset(origins), any_host=any_host)
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["authorization", "content-type", "last-event-id", "range", "traceparent", REQUEST_ID],
        expose_headers=["etag", "content-range", "retry-after", REQUEST_ID],
    )


def _page_routes() -> list[Route]:
    """Return the routes of the page, and of the modules and styles that it loads."""
    page = _file("page/index.html", "text/html", _PAGE_POLICY)
    names = [one.name for one in files(__package__).joinpath("page").iterdir()]
    kinds = {name: _PAGE_TYPES.get(PurePath(name).suffix) for name in sorted(names)}
    return [
        *(Route(path, page) for path in _PAGE_PATHS),
        *(Route(f"/page/{name}", _file(f"page/{name}", kind)) for name, kind in kinds.items() if kind),
    ]


def _route(gateway: Gateway, binding: Binding) -> Route:
    endpoint: _Endpoint = _unary
    if binding.name in RESUMPTIONS:
        endpoint = stream
    elif binding.name == "Output":
        endpoint = _output

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(gateway, binding, request)
        except grpc.aio.AioRpcError as error:
            return statuses.response(statuses.of_call(error))
        except RunnerError as error:
            number = _TOO_LARGE if isinstance(error, RequestTooLargeError) else 0
            # The rest of the body is not read.
            return statuses.response(errors.status_of(error), number, {"Connection": "close"})
        except ClientDisconnect:
            return Response(status_code=_GONE)

    return Route(binding.path, answer, methods=[binding.verb])


def _health_route(gateway: Gateway, path: str) -> Route:
    async def answer(request: Request) -> Response:
        try:
            return await health(gateway, request)
        except grpc.aio.AioRpcError as error:
            return statuses.response(statuses.of_call(error), _UNHEALTHY)
        except RequestTooLargeError as error:
            return statuses.response(errors.status_of(error), _TOO_LARGE)

    return Route(path, answer, methods=["GET"])


async def _unary(gateway: Gateway, binding: Binding, request: Request) -> Response:
    """Answer a request for a call with one response."""
    message = binding.response(await gateway.unary(binding, request))
    if message.ByteSize() > LARGE_RESPONSE:
        text = await asyncio.to_thread(to_json, message)
    else:
        text = to_json(message)
    return Response(text, media_type=_JSON)


async def _output(gateway: Gateway, binding: Binding, request: Request) -> Response:
    """Answer a request for an artefact: as a page in JSON if the caller accepts JSON, or else its bytes."""
    wants_json = _JSON in [
        one.partition(";")[0].strip().lower() for one in request.headers.get("accept", "").split(",")
    ]
    return await (_unary if wants_json else output)(gateway, binding, request)


def _file(name: str, media_type: str, policy: str = "default-src 'none'") -> Callable[[Request], Response]:
    content = files(__package__).joinpath(name).read_bytes()
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}
    return lambda _request: Response(content, media_type=media_type, headers=headers)


def _fail(request: Request, _error: Exception) -> Response:
    """Answer a request that failed by a mistake in this package; `gate` logs the exception."""
    return statuses.internal_error(request_id(request))


def _refuse(request: Request, error: Exception) -> Response:
    """Answer a request for a path or a method that does not exist."""
    if not isinstance(error, HTTPException):
        raise error
    message = f"{request.method} {request.url.path[:100]} does not exist. /openapi.json lists what does."
    code = grpc.StatusCode.NOT_FOUND
    answer = statuses.refusal(code, message, errors.UNKNOWN_METHOD, error.status_code)
    answer.headers.update(error.headers or {})
    return answer
