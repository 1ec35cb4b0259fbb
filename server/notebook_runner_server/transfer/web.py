"""Reads and writes notebooks over http and https, and posts webhooks; runs in the helper process only.

Redirects are not followed: their targets would have to be allowed as well, and callers can use them directly.
Addresses are checked when connecting, so that DNS rebinding has no effect.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, BinaryIO

import aiohttp
from yarl import URL

from notebook_runner_server.transfer.interface import (
    MissingError,
    RefusedError,
    TransferTooLargeError,
    UnreachableError,
)
from notebook_runner_server.transfer.policy import BLOCKED, is_blocked

MEDIA_TYPE = "application/x-ipynb+json"

_NOT_NOW = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)


async def read(uri: str, limit: int, *, any_address: bool) -> bytes:
    """GET a notebook.

    Args:
        uri: The URI.
        limit: Maximum size in bytes.
        any_address: Disable the SSRF guard.

    Raises:
        TransferError: It cannot be read.
    """
    content = bytearray()
    async with _answer("GET", uri, any_address=any_address) as response:
        async for piece in response.content.iter_chunked(1024 * 1024):
            content += piece
            if len(content) > limit:
                raise TransferTooLargeError("the notebook is too large")
    return bytes(content)


async def write(uri: str, notebook: BinaryIO, *, any_address: bool) -> None:
    """PUT a notebook.

    Raises:
        TransferError: It cannot be written.
    """
    headers = {"Content-Type": MEDIA_TYPE}
    async with _answer("PUT", uri, any_address=any_address, data=notebook, headers=headers) as response:
        await response.release()


async def post(uri: str, content: bytes, headers: Mapping[str, str], *, any_address: bool) -> None:
    """POST a webhook. Of the response only the status is read.

    Raises:
        TransferError: It was not accepted.
    """
    options: dict[str, Any] = {"data": content, "headers": headers}
    async with _answer("POST", uri, any_address=any_address, check=_check_accepted, **options):
        pass


def _check_status(status: int) -> None:
    if status < HTTPStatus.MULTIPLE_CHOICES:
        return
    if status < HTTPStatus.BAD_REQUEST:
        raise RefusedError("the service redirects to another URI, which is not followed; use that URI")
    if status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in _NOT_NOW:
        raise MissingError(f"the service answered {status}: no such notebook, or access denied")
    raise UnreachableError(f"the service answered {status}")


def _check_accepted(status: int) -> None:
    if status >= HTTPStatus.MULTIPLE_CHOICES:
        is_redirect = status < HTTPStatus.BAD_REQUEST
        raise UnreachableError(
            f"the receiver answered {status}{'; redirects are not followed' if is_redirect else ''}"
        )


@asynccontextmanager
async def _answer(
    method: str, uri: str, *, any_address: bool, check: Callable[[int], None] = _check_status, **more: Any
) -> AsyncIterator[aiohttp.ClientResponse]:
    blocked: list[str] = []

    def connect(about: Any) -> socket.socket:
        family, kind, protocol, _, address = about
        if not any_address and is_blocked(address[0]):
            blocked.append(address[0])
            raise OSError("blocked address")
        return socket.socket(family, kind, protocol)

    # The caller limits the total time.
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(socket_factory=connect),
        timeout=aiohttp.ClientTimeout(total=None),
        cookie_jar=aiohttp.DummyCookieJar(),
    )
    async with session:
        try:
            # Unchanged: a signature covers exactly these characters.
            target = URL(uri, encoded=True)
            async with session.request(method, target, allow_redirects=False, **more) as response:
                check(response.status)
                yield response
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if blocked:
                raise RefusedError(BLOCKED) from error
            raise UnreachableError(_why(error)) from error


def _why(error: Exception) -> str:
    """Describe an error without the URI, which aiohttp's own texts may contain."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "the service's TLS certificate is not trusted"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the host name cannot be resolved"
    if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno:
        return f"cannot connect to the service: {os.strerror(error.os_error.errno)}"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the service's response ended early"
    return f"cannot connect to the service ({type(error).__name__})"
