"""Turns what goes wrong in a call into a status with details."""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.api import wire
from notebook_runner_server.api.errors import CANCELLED, INTERNAL_ERROR, UNKNOWN_METHOD, abort, abort_with
from notebook_runner_server.api.interceptor import Continuation, Handler, Interceptor, function_of, rebuild
from notebook_runner_server.api.limits import SMALL_MESSAGE
from notebook_runner_server.errors import (
    DamagedRunError,
    InvalidFieldError,
    NotebookTooLargeError,
    RequestTooLargeError,
    RunnerError,
)

_logger = logging.getLogger(__name__)

_METHODS = ", ".join(method.name for method in pb.DESCRIPTOR.services_by_name["NotebookRunner"].methods)
_START = "Start"


@dataclass(frozen=True)
class _Refused:
    """Stands for a request that could not be parsed."""

    error: RunnerError


class ErrorInterceptor(Interceptor):
    """Turns errors into statuses of the contract.

    Args:
        max_bytes: The maximum size of a Start; that of other requests is `SMALL_MESSAGE`. gRPC has a limit as
            well, whose status has no details; it must be higher.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._known_damaged: set[str] = set()

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Wrap the handler of a call (called by grpc)."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return grpc.stream_stream_rpc_method_handler(_refuse_unknown)
        call = function_of(handler)
        name = handler_call_details.method.rpartition("/")[2]
        if isasyncgenfunction(call):
            wrapped = self._stream(name, call, has_one=not handler.request_streaming)
        elif iscoroutinefunction(call):
            wrapped = self._unary(name, call, has_one=not handler.request_streaming)
        else:
            # Channelz answers with plain functions, which gRPC runs on threads.
            return handler
        parse = self._lenient(name, handler.request_deserializer)
        # Without its one request, grpc.aio would never answer a call of a method that takes one.
        return rebuild(handler, wrapped, parse=parse, request_streaming=True)

    def _lenient(self, name: str, parse: Any) -> Callable[[bytes], Any]:
        """Return a parser that does not raise, because gRPC would answer its errors without details."""
        most = self._max_bytes if name == _START else min(self._max_bytes, SMALL_MESSAGE)

        def deserialize(data: bytes) -> Any:
            if len(data) > most:
                return _Refused(_too_large(name, len(data), most))
            try:
                if name == _START and len(data) > SMALL_MESSAGE and wire.is_costly(data):
                    return _Refused(_too_costly())
                return parse(data)
            except (DecodeError, ValueError):
                message = "Malformed request: not a message of this call's type, or nested too deep."
                return _Refused(InvalidFieldError(message))

        return deserialize

    def _unary(self, name: str, call: Any, *, has_one: bool) -> Any:
        @functools.wraps(call)
        async def guarded(requests: Any, context: Any) -> Any:
            try:
                return await call(await _request(requests, has_one=has_one), context)
            except BaseException as error:  # noqa: BLE001 - every error becomes a status
                await self._answer(name, context, error)

        return guarded

    def _stream(self, name: str, call: Any, *, has_one: bool) -> Any:
        @functools.wraps(call)
        async def guarded(requests: Any, context: Any) -> AsyncIterator[Any]:
            try:
                async for message in call(await _request(requests, has_one=has_one), context):
                    yield message
            except GeneratorExit:
                raise
            except BaseException as error:  # noqa: BLE001 - every error becomes a status
                await self._answer(name, context, error)

        return guarded

    async def _answer(self, name: str, context: Any, error: BaseException) -> None:
        if isinstance(error, DamagedRunError):
            self._log_damage(error)
        if isinstance(error, RunnerError):
            await abort(context, error)
        if isinstance(error, (grpc.aio.AbortError, grpc.aio.UsageError)):
            raise error
        if isinstance(error, asyncio.CancelledError):
            # The caller has gone, or the server is stopping. If this were raised, a caller that is still
            # connected would wait forever.
            await abort_with(context, grpc.StatusCode.CANCELLED, "The call was cancelled.", CANCELLED, {})
        error_id = secrets.token_hex(8)
        _logger.error("internal_error", exc_info=error, extra={"error_id": error_id, "rpc": name})
        message = f"Internal error {error_id}. See the server's log."
        await abort_with(context, grpc.StatusCode.INTERNAL, message, INTERNAL_ERROR, {"error_id": error_id})

    def _log_damage(self, error: DamagedRunError) -> None:
        """Log each damaged run once, because callers may repeat their calls."""
        run_id = error.metadata["run_id"]
        if run_id not in self._known_damaged:
            self._known_damaged.add(run_id)
            _logger.error("run_damaged", extra={"run_id": run_id, "why": error.message})


def _too_large(name: str, size: int, limit: int) -> RunnerError:
    values = {"bytes": str(size), "limit_bytes": str(limit)}
    message = f"The request is {size} bytes long, but this server accepts {limit}"
    if name == _START:
        # The notebook or its files must be the cause: the other fields of a Start fit into the overhead.
        return NotebookTooLargeError(
            f"{message} (--max-notebook-bytes and --max-input-files-bytes plus 1 MiB).", **values
        )
    return RequestTooLargeError(f"{message}.", **values)


def _too_costly() -> RunnerError:
    return RequestTooLargeError(
        f"The request has more than {wire.MAX_FIELDS} labels, variables and files, or more than "
        f"{wire.MAX_SMALL_BYTES} bytes without its notebook and files. Put large data into a file."
    )


async def _refuse_unknown(_requests: Any, context: Any) -> None:
    """Refuse a method that does not exist, as a stream, which answers without waiting for a request."""
    message = f"Unknown method. NotebookRunner has: {_METHODS}."
    await abort_with(context, grpc.StatusCode.UNIMPLEMENTED, message, UNKNOWN_METHOD, {})


async def _request(requests: AsyncIterator[Any], *, has_one: bool) -> Any:
    """Return the one request of a call, or its requests.

    Raises:
        RunnerError: The request is missing, too large or malformed.
    """
    if not has_one:
        return (_checked(one) async for one in requests)
    async for request in requests:
        return _checked(request)
    raise InvalidFieldError("The call ended without its request. Send one message, which may be empty.")


def _checked(request: Any) -> Any:
    if isinstance(request, _Refused):
        raise request.error
    return request
