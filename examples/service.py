"""Run a notebook for browsers, and stream its progress to them: a web service.

    python examples/service.py [PORT]

- `POST /runs` starts quickstart.ipynb with the parameters in its body (JSON), and returns the run's address.
- `GET /runs/ID` streams the run's events (server-sent events). Each event's id is its sequence number. A
  browser that lost its connection sends the last id as Last-Event-ID and gets the events after it: none is
  lost or repeated, whichever of the two connections broke.
- `DELETE /runs/ID` kills the run.
- `GET /` is a page to try the service.

The notebook server is at NOTEBOOK_RUNNER_TARGET, by default 127.0.0.1:50051.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from google.protobuf.json_format import MessageToJson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from notebook_runner import AsyncClient, Event, InvalidRequest, RpcFailed, RunnerBusy, RunNotFound

EXAMPLES = Path(__file__).parent

STATUSES: dict[type[RpcFailed], int] = {RunnerBusy: 503, RunNotFound: 404, InvalidRequest: 400}
"""The HTTP status for each refused call; every other error is a bad gateway."""


@contextlib.asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, AsyncClient]]:
    """Keep one client for all requests."""
    async with AsyncClient() as client:
        yield {"client": client}


async def page(_request: Request) -> Response:
    """Serve the page."""
    return FileResponse(EXAMPLES / "service.html")


async def start(request: Request) -> Response:
    """Start a run."""
    parameters = await request.json() if await request.body() else {}
    if not isinstance(parameters, dict):
        raise TypeError("the parameters must be a JSON object")
    run = await request.state.client.start(EXAMPLES / "quickstart.ipynb", parameters=parameters)
    return JSONResponse({"run_id": run.id}, 201, {"Location": f"/runs/{run.id}"})


async def events(request: Request) -> Response:
    """Stream a run's events after the last one that this browser has seen."""
    seen = int(request.headers.get("Last-Event-ID") or 0)
    stream = request.state.client.progress(request.path_params["run_id"], after_sequence=seen)
    first = await anext(stream, None)
    if first is None:
        # The browser has every event. This answer keeps it from asking again.
        return Response(status_code=204)
    headers = {"Cache-Control": "no-store"}
    return StreamingResponse(_stream(first, stream), media_type="text/event-stream", headers=headers)


async def kill(request: Request) -> Response:
    """Kill a run."""
    killed = await request.state.client.kill(request.path_params["run_id"])
    return JSONResponse({"processes_ended": killed.processes_ended})


async def _stream(first: Event, rest: AsyncIterator[Event]) -> AsyncIterator[str]:
    yield _text(first)
    async for event in rest:
        yield _text(event)


def _text(event: Event) -> str:
    """Return an event as a server-sent event: JSON on one line, with its kind and sequence number."""
    data = MessageToJson(event.pb, indent=None)
    return f"id: {event.sequence}\nevent: {event.pb.WhichOneof('event')}\ndata: {data}\n\n"


async def refused(_request: Request, error: Exception) -> Response:
    """Translate a refused call into an HTTP response."""
    if not isinstance(error, RpcFailed):
        return JSONResponse({"message": str(error)}, 400)
    status = next((status for kind, status in STATUSES.items() if isinstance(error, kind)), 502)
    headers = {"Retry-After": str(math.ceil(error.retry_after))} if error.retry_after else {}
    return JSONResponse({"reason": error.reason, "message": error.message}, status, headers)


app = Starlette(
    routes=[
        Route("/", page),
        Route("/runs", start, methods=["POST"]),
        Route("/runs/{run_id}", events),
        Route("/runs/{run_id}", kill, methods=["DELETE"]),
    ],
    exception_handlers={RpcFailed: refused, ValueError: refused, TypeError: refused},
    lifespan=lifespan,
)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]) if sys.argv[1:] else 8000)
