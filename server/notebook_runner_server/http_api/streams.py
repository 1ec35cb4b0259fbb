"""Streams of the contract as server-sent events, or as JSON lines."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from notebook_runner_server.errors import InvalidFieldError
from notebook_runner_server.http_api import statuses
from notebook_runner_server.http_api.bindings import Binding, bindings
from notebook_runner_server.http_api.gateway import Gateway
from notebook_runner_server.http_api.transcoding import read_query, to_json

FIRST_SECONDS = 1.0
"""How long a response waits for the first message, or for the refusal of the call, before it begins."""

JSON_LINES = "application/x-ndjson"
EVENT_STREAM = "text/event-stream"

MAX_CACHED = 256
"""Maximum number of translated messages that are kept, because all readers of a run get the same ones."""

MAX_CACHED_BYTES = 16 * 1024
"""Maximum size of such a message."""

MAX_LARGE_CACHED = 4
"""Maximum number of larger messages that are kept; all readers of a stream get the same ones."""

MAX_LARGE_CACHED_BYTES = 2 * 1024 * 1024
"""Maximum size of those."""


@dataclass(frozen=True)
class Resumption:
    """Where a stream can be continued.

    Attributes:
        message_field: The field of its messages that becomes the id of an event.
        request_field: The field of its request that takes the id of the last event.
    """

    message_field: str
    request_field: str


RESUMPTIONS = {"Progress": Resumption("sequence", "after_sequence"), "Watch": Resumption("cursor", "cursor")}
"""Where each stream of the contract can be continued."""

_SEQUENCE = re.compile(r"[0-9]{1,19}")

# nginx, and proxies that follow it, then send each message on when it arrives.
_UNBUFFERED = {"X-Accel-Buffering": "no"}

_BINDINGS = {one.grpc_path: one for one in bindings()}


async def stream(gateway: Gateway, binding: Binding, request: Request) -> Response:
    """Answer a request for a stream.

    Raises:
        grpc.aio.AioRpcError: The call failed before its first message.
        InvalidFieldError: The request is malformed.
    """
    if request.method == "HEAD":
        raise HTTPException(405, headers={"Allow": "GET"})
    message = binding.request()
    read_query(request.query_params.multi_items(), message)
    for name, value in request.path_params.items():
        setattr(message, name, value)
    last_id = request.headers.get("last-event-id")
    if last_id:
        _continue_after(message, RESUMPTIONS[binding.name].request_field, last_id)
    call = gateway.stream(binding, request, message)
    messages = call.__aiter__()
    first = asyncio.ensure_future(anext(messages, None))
    try:
        done, _ = await asyncio.wait({first}, timeout=FIRST_SECONDS)
        if done and first.result() is None and last_id:
            # The run has ended, and the caller has every event. An EventSource does not ask again after this.
            return Response(status_code=204)
    except BaseException:
        first.cancel()
        call.cancel()
        raise
    lines = JSON_LINES in request.headers.get("accept", "")
    return StreamedResponse(
        _texts(binding, first, messages, lines=lines),
        JSON_LINES if lines else EVENT_STREAM,
        headers=_UNBUFFERED,
        on_end=lambda: (first.cancel(), call.cancel()),
    )


def _continue_after(message: Any, field_name: str, last_id: str) -> None:
    field = message.DESCRIPTOR.fields_by_name[field_name]
    if field.type == FieldDescriptor.TYPE_STRING:
        setattr(message, field_name, last_id)
        return
    # The number of digits comes first: Python refuses to read thousands of them.
    if not _SEQUENCE.fullmatch(last_id) or int(last_id) >= 2**63:
        raise InvalidFieldError(
            f"Last-Event-ID must be the id of an event of this stream (got {last_id[:100]!r}).",
            field=field_name,
        )
    setattr(message, field_name, int(last_id))


async def _texts(
    binding: Binding,
    first: asyncio.Future[bytes | None],
    messages: AsyncIterator[bytes],
    *,
    lines: bool,
) -> AsyncGenerator[bytes, None]:
    try:
        data = await first
        while data is not None:
            yield translated(binding.grpc_path, data, lines)
            data = await anext(messages, None)
    except grpc.aio.AioRpcError as error:
        status = json.dumps(statuses.as_json(statuses.of_call(error)), ensure_ascii=False)
        yield (f'{{"error":{status}}}\n' if lines else f"event: status\ndata: {status}\n\n").encode()


def _text(path: str, data: bytes, lines: bool) -> bytes:
    binding = _BINDINGS[path]
    message = binding.response(data)
    text = to_json(message)
    if lines:
        return f"{text}\n".encode()
    number = getattr(message, RESUMPTIONS[binding.name].message_field)
    return f"id: {number}\ndata: {text}\n\n".encode()


_cached = lru_cache(MAX_CACHED)(_text)
_large_cached = lru_cache(MAX_LARGE_CACHED)(_text)


def translated(path: str, data: bytes, lines: bool) -> bytes:
    """Return a serialized message of a stream as a JSON line or an event, translated once for all readers.

    Args:
        path: The path of the call in gRPC.
        data: The message.
        lines: Whether to return a JSON line.
    """
    if len(data) <= MAX_CACHED_BYTES:
        return _cached(path, data, lines)
    return (_large_cached if len(data) <= MAX_LARGE_CACHED_BYTES else _text)(path, data, lines)


class StreamedResponse(Response):
    """A response whose content is sent as it comes, until it ends or the caller disconnects.

    If the content fails, the connection is cut, so that no caller takes a part for the whole.

    Args:
        content: The content.
        media_type: Its type.
        status_code: The HTTP status.
        headers: Further headers.
        on_end: Called at the end, however it comes.
    """

    def __init__(
        self,
        content: AsyncGenerator[bytes, None],
        media_type: str,
        status_code: int = 200,
        headers: dict[str, str] | None = None,
        on_end: Callable[[], object] = lambda: None,
    ) -> None:
        self._content = content
        self._on_end = on_end
        self.media_type = media_type
        self.status_code = status_code
        self.background = None
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response (called by Starlette)."""
        sending = asyncio.ensure_future(self._send(scope, send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sending.cancel()
            gone.cancel()
            outcome, _ = await asyncio.gather(sending, gone, return_exceptions=True)
            await self._content.aclose()
            self._on_end()
        if isinstance(outcome, Exception):
            raise outcome

    async def _send(self, scope: Scope, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if scope["method"] != "HEAD":
            # Without its end, uvicorn cuts the connection.
            with suppress(grpc.aio.AioRpcError):
                async for chunk in self._content:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "http.response.body", "body": b""})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
