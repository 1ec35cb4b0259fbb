"""Makes calls: channel, deadlines, credentials, retries and translation of errors."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar, cast

import grpc
import grpc.aio

from ._retry import Retries, is_unauthenticated
from ._status import to_error
from .errors import RpcFailed
from .v1.notebook_runner_pb2_grpc import NotebookRunnerStub

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterator

    from ._connection import Connection
    from ._retry import StreamReader
    from .v1.notebook_runner_pb2_grpc import NotebookRunnerAsyncStub

__all__ = ["AsyncTransport", "Transport"]

CLOSE_SECONDS = 5.0
"""Maximum time that a channel may take to end its calls, in seconds."""

MESSAGES_AHEAD = 8
"""How many messages of a stream are received before the caller asks for them."""

Metadata: TypeAlias = "tuple[tuple[str, str], ...]"
RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


class Transport:
    """Makes blocking calls over one channel.

    Args:
        connection: The connection.
        timeout: Maximum duration of a call, including retries, in seconds.
    """

    def __init__(self, connection: Connection, timeout: float) -> None:
        self.connection = connection
        self.timeout = timeout
        self.reached = False
        self.closed = False
        self._channel = connection.channel()
        self.stub = NotebookRunnerStub(self._channel)
        # The pages of an artefact come from one server: another one may create it again, with other bytes.
        self._page_channel = (
            connection.channel(spreads=False) if connection.has_several_addresses else self._channel
        )
        self.page_stub = NotebookRunnerStub(self._page_channel)

    def close(self) -> None:
        """Close the channel, which ends active calls."""
        self.closed = True
        # If Ctrl-C hits while a stream starts, gRPC keeps a call that no thread serves, and `close` would
        # wait for it forever.
        closing = threading.Thread(target=self._close_channels, name="notebook-runner-close", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)

    def _close_channels(self) -> None:
        self._channel.close()
        self._page_channel.close()

    def call(
        self,
        method: grpc.UnaryUnaryMultiCallable[RequestT, ResponseT],
        request: RequestT,
        timeout: float | None = None,
    ) -> ResponseT:
        """Make a call, repeat it after network errors, and return the response.

        Raises:
            RpcFailed: The call failed.
        """
        timeout = timeout or self.timeout
        retries = Retries(timeout)
        while True:
            metadata = self.connection.metadata()
            try:
                with self._errors_translated(timeout):
                    response = method(request, timeout=retries.begin(), metadata=metadata)
            except RpcFailed as error:
                if self.closed:
                    raise
                time.sleep(retries.pause_after(error))
            else:
                self.reached = True
                return response

    def follow(
        self, follower: StreamReader[RequestT, ResponseT], timeout: float | None = None
    ) -> Generator[ResponseT, None, None]:
        """Read a stream to its end, over as many connections as it takes, and yield each message once.

        Args:
            follower: The reader.
            timeout: Maximum duration of all streams together, in seconds; None: unlimited.

        Raises:
            RpcFailed: Reconnecting would not help, or the time has run out (DEADLINE_EXCEEDED).
        """
        end = math.inf if timeout is None else time.monotonic() + timeout
        while not follower.ended:
            remaining = None if timeout is None else max(0.0, end - time.monotonic())
            metadata = self.connection.metadata()
            try:
                with self._errors_translated(timeout):
                    yield from self._read(follower, remaining, metadata)
            except RpcFailed as error:
                if self.closed:
                    raise
                has_new_token = is_unauthenticated(error) and self.connection.metadata() != metadata
                pause = follower.pause_after(error, has_new_token=has_new_token)
                time.sleep(min(pause, max(0.0, end - time.monotonic())))
            else:
                return

    def _read(
        self, follower: StreamReader[RequestT, ResponseT], timeout: float | None, metadata: Metadata
    ) -> Iterator[ResponseT]:
        method = getattr(self.stub, follower.method)
        stream: _Stream[ResponseT] = _Stream(
            lambda: method(follower.request, timeout=timeout, metadata=metadata)
        )
        try:
            for event in stream.messages():
                self.reached = True
                if follower.accept(event):
                    yield event
        finally:
            stream.cancel()

    @contextlib.contextmanager
    def _errors_translated(self, timeout: float | None = None) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise to_error(error, self.connection.target, timeout) from error
        except ValueError:
            if not self.closed:
                raise
            # gRPC reports a closed channel like this.
            raise _closed() from None


class _Stream(Generic[ResponseT]):
    """A stream that a thread of its own reads.

    Ctrl-C interrupts the main thread between any two steps. In gRPC's code for streams, it may leave a lock
    held or released twice: the reader would hang, or get another error. The queues here have no such steps.

    Args:
        begin: Begins the call.
    """

    def __init__(self, begin: Callable[[], grpc._CallIterator[ResponseT]]) -> None:
        self._begin = begin
        self._call: grpc._CallIterator[ResponseT] | None = None
        self._is_cancelled = False
        # Each message that may be received; False: no more.
        self._wanted: SimpleQueue[bool] = SimpleQueue()
        self._received: SimpleQueue[ResponseT | _End] = SimpleQueue()

    def messages(self) -> Iterator[ResponseT]:
        """Yield the messages of the stream as they come.

        Raises:
            grpc.RpcError: The call failed.
            ValueError: The channel is closed.
        """
        for _ in range(MESSAGES_AHEAD):
            self._wanted.put(True)
        threading.Thread(target=self._receive, name="notebook-runner-stream", daemon=True).start()
        while True:
            received = self._received.get()
            if isinstance(received, _End):
                if received.error is not None:
                    raise received.error
                return
            yield received
            self._wanted.put(True)

    def cancel(self) -> None:
        """End the call, if it has not ended."""
        self._is_cancelled = True
        self._wanted.put(False)
        if self._call is not None:
            self._call.cancel()

    def _receive(self) -> None:
        try:
            call = self._call = self._begin()
            # The call may have begun after `cancel`.
            if self._is_cancelled:
                call.cancel()
            while self._wanted.get():
                self._received.put(next(call))
        except StopIteration:
            self._received.put(_End())
        except BaseException as error:  # noqa: BLE001 - the reader gets it, whatever it is
            self._received.put(_End(error))


@dataclass(frozen=True)
class _End:
    """The end of a stream, and the error that ended it."""

    error: BaseException | None = None


class AsyncTransport:
    """Makes asyncio calls over one channel, which belongs to the event loop of the first call.

    Args:
        connection: The connection.
        timeout: Maximum duration of a call, including retries, in seconds.
    """

    def __init__(self, connection: Connection, timeout: float) -> None:
        self.connection = connection
        self.timeout = timeout
        self.reached = False
        self.closed = False
        self._channel: grpc.aio.Channel | None = None

    @property
    def stub(self) -> NotebookRunnerAsyncStub:
        """The stub of the service.

        Raises:
            RpcFailed: The channel was closed.
            RuntimeError: The channel belongs to another event loop.
        """
        if self.closed:
            raise _closed()
        loop = asyncio.get_running_loop()
        if self._channel is None:
            # Created with the first call, because a channel belongs to the running event loop.
            self._channel, self._loop = self.connection.aio_channel(), loop
            # As in `Transport`.
            spreads = self.connection.has_several_addresses
            self._page_channel = self.connection.aio_channel(spreads=False) if spreads else self._channel
            # The generated stub serves both of gRPC's stacks; only the types differ.
            self._stub = cast("NotebookRunnerAsyncStub", NotebookRunnerStub(self._channel))
            self._page_stub = cast("NotebookRunnerAsyncStub", NotebookRunnerStub(self._page_channel))
        if loop is not self._loop:
            raise RuntimeError(
                "An AsyncClient belongs to the event loop of its first call. Create one for each event loop."
            )
        return self._stub

    @property
    def page_stub(self) -> NotebookRunnerAsyncStub:
        """The stub for the pages of artefacts.

        Raises:
            RpcFailed: The channel was closed.
            RuntimeError: The channel belongs to another event loop.
        """
        _ = self.stub
        return self._page_stub

    async def close(self) -> None:
        """Close the channel, which ends active calls."""
        self.closed = True
        if self._channel is not None:
            await self._channel.close()
            if self._page_channel is not self._channel:
                await self._page_channel.close()

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT],
        request: RequestT,
        deadline: float | None = None,
    ) -> ResponseT:
        """Make a call, repeat it after network errors, and return the response.

        Raises:
            RpcFailed: The call failed.
        """
        deadline = deadline or self.timeout
        retries = Retries(deadline)
        while True:
            metadata = await self._metadata()
            try:
                with self._errors_translated(deadline):
                    response = await method(request, timeout=retries.begin(), metadata=metadata)
            except RpcFailed as error:
                if self.closed:
                    raise
                await asyncio.sleep(retries.pause_after(error))
            else:
                self.reached = True
                return response

    async def follow(self, follower: StreamReader[RequestT, ResponseT]) -> AsyncGenerator[ResponseT, None]:
        """Read a stream to its end, over as many connections as it takes, and yield each message once.

        Raises:
            RpcFailed: Reconnecting would not help.
        """
        while not follower.ended:
            metadata = await self._metadata()
            try:
                async with contextlib.aclosing(self._read(follower, metadata)) as events:
                    async for event in events:
                        yield event
            except RpcFailed as error:
                if self.closed:
                    raise
                has_new_token = is_unauthenticated(error) and await self._metadata() != metadata
                await asyncio.sleep(follower.pause_after(error, has_new_token=has_new_token))
            else:
                return

    async def _metadata(self) -> Metadata:
        if self.connection.login_file is None:
            return self.connection.metadata()
        # The issuer may take its time to refresh the token.
        return await asyncio.to_thread(self.connection.metadata)

    async def _read(
        self, follower: StreamReader[RequestT, ResponseT], metadata: Metadata
    ) -> AsyncGenerator[ResponseT, None]:
        with self._errors_translated():
            call = getattr(self.stub, follower.method)(follower.request, metadata=metadata)
            try:
                async for event in call:
                    self.reached = True
                    if follower.accept(event):
                        yield event
            finally:
                call.cancel()

    @contextlib.contextmanager
    def _errors_translated(self, timeout: float | None = None) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise to_error(error, self.connection.target, timeout) from error
        except grpc.aio.UsageError:
            if not self.closed:
                raise
            raise _closed() from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self.closed or task is None or task.cancelling():
                raise
            # The task was not cancelled: gRPC reports a closed channel like this.
            raise _closed() from None


def _closed() -> RpcFailed:
    return RpcFailed("The client is closed.", grpc.StatusCode.CANCELLED)
