"""How calls are made: the channel, each call's deadline and credentials, and errors of the client's own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import TYPE_CHECKING, TypeVar, cast

import grpc
import grpc.aio

from ._retry import Retries
from ._status import to_error
from .errors import RpcFailed
from .v1.notebook_runner_pb2_grpc import NotebookRunnerStub

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from ._connection import Connection
    from ._retry import ProgressReader
    from .v1 import notebook_runner_pb2 as pb
    from .v1.notebook_runner_pb2_grpc import NotebookRunnerAsyncStub

__all__ = ["AsyncTransport", "Transport"]

CLOSE_SECONDS = 5.0
"""How long a channel may take to end its calls."""

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


class Transport:
    """Makes calls that block, over one channel.

    Args:
        connection: Where the server is and how to be let in.
        timeout: How long one call may take, with its retries, in seconds.
    """

    def __init__(self, connection: Connection, timeout: float) -> None:
        self.connection = connection
        self.timeout = timeout
        self.reached = False
        self.closed = False
        self._channel = connection.channel()
        self.stub = NotebookRunnerStub(self._channel)

    def close(self) -> None:
        """Close the channel, which ends the calls that are under way."""
        self.closed = True
        # Ctrl-C in the moment in which a stream begins leaves one to gRPC that no thread looks after, and its
        # `close` would wait for that for ever.
        closing = threading.Thread(target=self._channel.close, name="notebook-runner-close", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)

    def call(
        self,
        method: grpc.UnaryUnaryMultiCallable[RequestT, ResponseT],
        request: RequestT,
        timeout: float | None = None,
    ) -> ResponseT:
        """Make one call, again where it was cut on its way, and answer its response.

        Raises:
            RpcFailed: There is none.
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

    def follow(self, follower: ProgressReader, timeout: float | None = None) -> Iterator[pb.ProgressResponse]:
        """Read Progress to its end, over as many streams as it takes, and give each event once.

        Args:
            follower: What to ask for.
            timeout: How long each stream may take, in seconds; None: any time.

        Raises:
            RpcFailed: The follower sees no sense in another stream.
        """
        while not follower.ended:
            try:
                yield from self._read(follower, timeout)
            except RpcFailed as error:
                if self.closed:
                    raise
                time.sleep(follower.pause_after(error))
            else:
                return

    def _read(self, follower: ProgressReader, timeout: float | None) -> Iterator[pb.ProgressResponse]:
        metadata = self.connection.metadata()
        with self._errors_translated(timeout):
            call = self.stub.Progress(follower.request, timeout=timeout, metadata=metadata)
            try:
                for event in call:
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
        except ValueError:
            if not self.closed:
                raise
            # gRPC tells of a closed channel in this way.
            raise _closed() from None


class AsyncTransport:
    """Makes calls that are awaited, over one channel of the event loop that the first call runs in.

    Args:
        connection: Where the server is and how to be let in.
        timeout: How long one call may take, with its retries, in seconds.
    """

    def __init__(self, connection: Connection, timeout: float) -> None:
        self.connection = connection
        self.timeout = timeout
        self.reached = False
        self.closed = False
        self._channel: grpc.aio.Channel | None = None

    @property
    def stub(self) -> NotebookRunnerAsyncStub:
        """The methods of the server.

        Raises:
            RpcFailed: The channel was closed.
            RuntimeError: The channel belongs to another event loop.
        """
        if self.closed:
            raise _closed()
        loop = asyncio.get_running_loop()
        if self._channel is None:
            # A channel belongs to the loop that runs when it is made, so it waits for the first call.
            self._channel, self._loop = self.connection.aio_channel(), loop
            # The generated stub serves both of gRPC's stacks; only its types are two.
            self._stub = cast("NotebookRunnerAsyncStub", NotebookRunnerStub(self._channel))
        if loop is not self._loop:
            raise RuntimeError(
                "An AsyncClient belongs to the event loop of its first call. Create one for each event loop."
            )
        return self._stub

    async def close(self) -> None:
        """Close the channel, which ends the calls that are under way."""
        self.closed = True
        if self._channel is not None:
            await self._channel.close()

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT],
        request: RequestT,
        deadline: float | None = None,
    ) -> ResponseT:
        """Make one call, again where it was cut on its way, and answer its response.

        Raises:
            RpcFailed: There is none.
        """
        deadline = deadline or self.timeout
        retries = Retries(deadline)
        while True:
            metadata = self.connection.metadata()
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

    async def follow(self, follower: ProgressReader) -> AsyncGenerator[pb.ProgressResponse, None]:
        """Read Progress to its end, over as many streams as it takes, and give each event once.

        Raises:
            RpcFailed: The follower sees no sense in another stream.
        """
        while not follower.ended:
            try:
                async with contextlib.aclosing(self._read(follower)) as events:
                    async for event in events:
                        yield event
            except RpcFailed as error:
                if self.closed:
                    raise
                await asyncio.sleep(follower.pause_after(error))
            else:
                return

    async def _read(self, follower: ProgressReader) -> AsyncGenerator[pb.ProgressResponse, None]:
        metadata = self.connection.metadata()
        with self._errors_translated():
            call = self.stub.Progress(follower.request, metadata=metadata)
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
            # Nobody cancelled the caller: gRPC tells of a closed channel in this way.
            raise _closed() from None


def _closed() -> RpcFailed:
    return RpcFailed("The client is closed.", grpc.StatusCode.CANCELLED)
