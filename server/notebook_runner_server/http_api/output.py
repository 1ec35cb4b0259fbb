"""The artefacts of a run as files: whole or in ranges, with the hash of their content as entity tag."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from notebook_runner_server.errors import InvalidFieldError
from notebook_runner_server.http_api.bindings import Binding
from notebook_runner_server.http_api.gateway import Gateway
from notebook_runner_server.http_api.streams import StreamedResponse
from notebook_runner_server.http_api.transcoding import read_query

PAGE_BYTES = 256 * 1024
"""Size of the pieces of an artefact, one of which each caller has in memory."""

PAGE_POLICY = "sandbox allow-scripts"
"""The content security policy of pages, in addition to their own: they do not belong to this origin, so that
scripts in a page (`html-interactive`, `slides`) cannot call this server as its own page."""

_RANGE = re.compile(r"bytes=(\d{1,18})?-(\d{1,18})?")


async def output(gateway: Gateway, binding: Binding, request: Request) -> Response:
    """Answer a request for an artefact.

    Raises:
        grpc.aio.AioRpcError: The call failed.
        InvalidFieldError: The request is malformed.
    """
    message = binding.request()
    read_query(request.query_params.multi_items(), message)
    if message.offset or message.max_bytes:
        raise InvalidFieldError(
            "offset and max_bytes apply to Accept: application/json only. To get a part of the bytes, "
            "send the header Range.",
            field="offset",
        )
    for name, value in request.path_params.items():
        setattr(message, name, value)
    asked = _RANGE.fullmatch(request.headers.get("range", ""))
    known = request.headers.get("if-none-match", "")
    fixed = bool(message.as_of_sequence)
    message.max_bytes = 1 if asked or known or request.method == "HEAD" else PAGE_BYTES
    first: Any = binding.response(await gateway.call(binding, request, message))
    total, tag = first.total_bytes, f'"{first.sha256}"' if first.sha256 else ""
    headers = _headers(first, tag)
    if tag and tag in [one.strip().removeprefix("W/") for one in known.split(",")]:
        return Response(status_code=304, headers=headers)
    begin, end, number = 0, total, 200
    # Without a tag, the next request may get another artefact, unless it asks for this one.
    if asked and (tag or fixed) and request.headers.get("if-range", tag) == tag:
        begin, end = _bounds(asked, total)
        if begin >= end:
            return Response(status_code=416, headers={"Content-Range": f"bytes */{total}"})
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{total}"
        number = 206
    headers["Content-Length"] = str(end - begin)
    message.as_of_sequence = first.as_of_sequence
    pages = _pages(gateway, binding, request, message, begin, end, first)
    return StreamedResponse(pages, _media_type(first.media_type), number, headers)


def _bounds(asked: re.Match[str], total: int) -> tuple[int, int]:
    """Return the bounds of a range; empty if it cannot be satisfied."""
    first, last = asked[1], asked[2]
    if first is None:
        return (max(total - int(last), 0), total) if last and int(last) else (0, 0)
    begin = int(first)
    return begin, min(int(last) + 1, total) if last else total


async def _pages(
    gateway: Gateway, binding: Binding, request: Request, message: Any, begin: int, end: int, page: Any
) -> AsyncGenerator[bytes, None]:
    offset = begin
    if offset == 0:
        yield page.content[:end]
        offset = len(page.content)
    while offset < end:
        message.offset, message.max_bytes = offset, min(PAGE_BYTES, end - offset)
        page = binding.response(await gateway.call(binding, request, message))
        yield page.content
        offset = page.next_offset


def _media_type(name: str) -> str:
    return f"{name}; charset=utf-8" if name.startswith("text/") and "charset" not in name else name


def _headers(page: Any, tag: str) -> dict[str, str]:
    kind = page.media_type.partition(";")[0]
    extension = mimetypes.guess_extension(kind) or ".ipynb"
    headers = {
        "Content-Disposition": f'inline; filename="{page.run.run_id}{extension}"',
        "Cache-Control": "private, no-cache",
    }
    if tag:
        headers |= {"ETag": tag, "Accept-Ranges": "bytes"}
    if kind == "text/html":
        headers["Content-Security-Policy"] = PAGE_POLICY
    return headers
