"""Calls the gRPC server over its private socket, on behalf of the callers of the HTTP listener."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from starlette.requests import ClientDisconnect, Request

from notebook_runner_server.api import peers
from notebook_runner_server.api.limits import LARGEST_MESSAGE
from notebook_runner_server.api.server import METADATA_BYTES
from notebook_runner_server.api.telemetry_interceptor import REQUEST_ID, SANE_ID
from notebook_runner_server.errors import InvalidFieldError, RequestTooLargeError, RunnerError
from notebook_runner_server.http_api.bindings import Binding
from notebook_runner_server.http_api.transcoding import max_values, read_json, read_query, request_from_json
from notebook_runner_server.run_in_subprocess import SubprocessOptions, start_in_subprocess

BODY_SECONDS = 300.0
"""Maximum time that the body of a request may take to arrive."""

LARGE_JSON = 2 * 1024 * 1024
"""Size of a body in JSON above which it is parsed in a process of its own, to not delay other calls."""

MANY_VALUES = 10_000
"""Number of values in a body in JSON above which it is parsed in such a process."""

MAX_VALUES = 4_000_000
"""Number of values above which a body is refused, because that process would need too much memory. Texts of
the size that fields may have, full of commas, have fewer."""

MAX_PARSERS = 2
"""Maximum number of such processes."""

HEALTH_SECONDS = 5.0
"""Maximum time of a health check."""

_HANDED_ON = ("authorization", "traceparent", "tracestate")
_NOT_ASCII = re.compile(r"[^\x20-\x7e]")
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    # A stream whose caller does not read holds no more than the protocol's smallest window.
    ("grpc.http2.bdp_probe", 0),
]
_REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


class Gateway:
    """The client of the gRPC server.

    Args:
        socket: The server's private socket.
        max_bytes: Maximum size of a request.
    """

    def __init__(self, socket: Path, max_bytes: int) -> None:
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", _OPTIONS)
        self._max_bytes = max_bytes
        self._parsers = asyncio.Semaphore(MAX_PARSERS)

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def unary(self, binding: Binding, request: Request) -> bytes:
        """Make the call that an HTTP request asks for, and return the serialized response.

        Raises:
            grpc.aio.AioRpcError: The call failed.
            RunnerError: The request is malformed.
            ClientDisconnect: The caller has disconnected.
        """
        return await self._call(binding, request, self._read(binding, request))

    async def call(self, binding: Binding, request: Request, message: Any) -> bytes:
        """Make a call with a message, and return the serialized response.

        Raises:
            grpc.aio.AioRpcError: The call failed.
            ClientDisconnect: The caller has disconnected.
        """
        return await self._call(binding, request, _serialized(message))

    def stream(
        self, binding: Binding, request: Request, message: Any
    ) -> grpc.aio.UnaryStreamCall[bytes, bytes]:
        """Make a call with a stream of responses, which are serialized."""
        method: Any = self._channel.unary_stream(binding.grpc_path)
        found: grpc.aio.UnaryStreamCall[bytes, bytes] = method(
            message.SerializeToString(), metadata=_metadata(request)
        )
        return found

    async def health(self, service: str, request: Request) -> health_pb2.HealthCheckResponse:
        """Return the health of a service, with the names of gRPC's health protocol.

        Raises:
            grpc.aio.AioRpcError: The server did not answer in time.
        """
        stub: Any = health_pb2_grpc.HealthStub(self._channel)
        found: health_pb2.HealthCheckResponse = await stub.Check(
            health_pb2.HealthCheckRequest(service=service),
            metadata=_metadata(request),
            timeout=HEALTH_SECONDS,
        )
        return found

    async def _call(self, binding: Binding, request: Request, message: Coroutine[Any, Any, bytes]) -> bytes:
        # As a stream of requests, which is the same in the protocol: the server has the headers, and can
        # refuse the call, before the body is here.
        reading = asyncio.ensure_future(message)
        method: Any = self._channel.stream_unary(binding.grpc_path)
        tasks: list[asyncio.Future[Any]] = [reading]
        try:
            call = method(metadata=_metadata(request))
            answer = asyncio.ensure_future(_answer(call))
            tasks.append(answer)
            await asyncio.wait(tasks, timeout=BODY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                await _send(call, reading, answer)
                gone = asyncio.ensure_future(_disconnected(request))
                tasks.append(gone)
                await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ClientDisconnect
            return answer.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, binding: Binding, request: Request) -> bytes:
        """Read the message for a call from a request.

        Raises:
            RunnerError: The request is malformed.
        """
        message, parsed = binding.request(), b""
        body = await self._body(request) if binding.has_body else b""
        is_notebook = binding.name == "Start" and not _is_json(request)
        if binding.has_body and not is_notebook and request.query_params:
            raise InvalidFieldError(
                "This call takes no query parameters: give the fields in the body, as JSON."
            )
        if body and is_notebook:
            read_query(request.query_params.multi_items(), message)
            message.notebook_content = body
        elif body:
            parsed = await self._read_json(body, message)
        else:
            read_query(request.query_params.multi_items(), message)
        for name, value in request.path_params.items():
            setattr(message, name, value)
        # Serialized messages one after the other are one message, whose later fields count.
        return parsed + await _serialized(message)

    async def _read_json(self, body: bytes, message: Any) -> bytes:
        """Merge JSON into a message, or return it serialized if it is large.

        A large one is parsed in a process that ends with the call.

        Raises:
            RunnerError: It is malformed.
        """
        values = max_values(body)
        if values > MAX_VALUES:
            raise InvalidFieldError(f"The body has too many values ({values}; the maximum is {MAX_VALUES}).")
        if values <= MANY_VALUES and len(body) <= LARGE_JSON:
            read_json(body, message)
            return b""
        async with self._parsers:
            name = message.DESCRIPTOR.name
            return await start_in_subprocess(SubprocessOptions(), request_from_json, name, body)

    async def _body(self, request: Request) -> bytes:
        # Base64 makes three bytes four.
        most = self._max_bytes * 4 // 3 if _is_json(request) else self._max_bytes
        chunks, size = [], 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > min(most, LARGEST_MESSAGE):
                raise RequestTooLargeError(
                    f"The body is larger than {most} bytes, the maximum of this server.", limit=str(most)
                )
            chunks.append(chunk)
        return b"".join(chunks)


async def _answer(call: Any) -> bytes:
    # Whoever cancels this cancels the call.
    answer: bytes = await call
    return answer


async def _send(call: Any, reading: asyncio.Future[bytes], answer: asyncio.Future[bytes]) -> None:
    """Send the request of a call.

    Raises:
        RunnerError: The HTTP request is malformed, and the caller may make the call.
    """
    error: BaseException | None = None
    if not reading.done():
        error = InvalidFieldError(f"The body must arrive within {BODY_SECONDS:.0f} seconds.")
    elif reading.exception() is not None:
        error = reading.exception()
    # The server may have refused the call meanwhile.
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        if error is None:
            await call.write(reading.result())
        await call.done_writing()
    if error is None:
        return
    if isinstance(error, RunnerError):
        await asyncio.wait({answer})
        refused = answer.exception()
        if isinstance(refused, grpc.aio.AioRpcError) and refused.code() in _REFUSED:
            raise refused
    raise error


async def _serialized(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _is_json(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


def request_id(request: Request) -> str:
    """Return the id of a request in the log: the caller's, or a new one."""
    if not hasattr(request.state, "request_id"):
        sent = request.headers.getlist(REQUEST_ID)
        request.state.request_id = (
            sent[0] if len(sent) == 1 and SANE_ID.fullmatch(sent[0]) else secrets.token_hex(8)
        )
    found: str = request.state.request_id
    return found


def _metadata(request: Request) -> list[tuple[str, str]]:
    """Return the headers of a call: those of the caller that the server needs, and its address.

    Raises:
        RequestTooLargeError: They are larger than the server accepts.
    """
    host, port = request.client or ("", 0)
    address = f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
    found = [(REQUEST_ID, request_id(request)), peers.header(address)]
    # What gRPC does not accept as a header is malformed for the server as well.
    found += [
        (name, _NOT_ASCII.sub("?", value)) for name in _HANDED_ON for value in request.headers.getlist(name)
    ]
    size = sum(len(name) + len(value) for name, value in found)
    if size > METADATA_BYTES // 2:
        raise RequestTooLargeError(f"The headers {', '.join(_HANDED_ON)} are larger than the server accepts.")
    return found
