"""The client for code on asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar, Unpack, cast

import grpc
import grpc.aio

from ._connection import DEFAULT_TIMEOUT, KILL_TIMEOUT, Connection
from ._follow import RECONNECT_TIMEOUT, Follower
from ._pages import OutputFile, Pages, open_output
from ._requests import Notebook, Seconds, StartOptions, kill_request, list_request, seconds, start_request
from ._status import to_error
from .errors import NotebookRunnerError, RpcFailed, RunFailed
from .results import AsyncRunResult
from .v1 import notebook_runner_pb2 as pb
from .v1.notebook_runner_pb2_grpc import NotebookRunnerStub

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
    from types import TracebackType
    from typing import Self

    from .v1.notebook_runner_pb2_grpc import NotebookRunnerAsyncStub

__all__ = ["AsyncClient"]

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


class AsyncClient:
    """Talks to one server from one event loop: `Client` with the same names, awaited.

    Takes the arguments of `Client`, raises what it raises, and may be made before the loop runs. A
    cancelled call raises `asyncio.CancelledError`, as everywhere; the run that it started goes on.

    Args:
        target: The server's address, `HOST:PORT` or another gRPC target; else NOTEBOOK_RUNNER_TARGET,
            else 127.0.0.1:50051.
        token: A bearer token, sent with every call.
        token_file: A file with the bearer token, read at every call; else NOTEBOOK_RUNNER_TOKEN_FILE.
        tls_ca: The certificates to trust, PEM; else NOTEBOOK_RUNNER_TLS_CA. Without this and
            `tls_cert` the connection is not encrypted.
        tls_cert: The client's own certificate chain, PEM; else NOTEBOOK_RUNNER_TLS_CERT.
        tls_key: The key of `tls_cert`, PEM; else NOTEBOOK_RUNNER_TLS_KEY.
        timeout: How long one call may take, with its retries, in seconds. `kill` may take at least
            60 s, and `progress` any time.

    Raises:
        ValueError: Two settings contradict each other, or the token has characters that no header can carry.
        OSError: The token file cannot be read; a certificate or key is read with the first call.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        tls_ca: str | os.PathLike[str] | None = None,
        tls_cert: str | os.PathLike[str] | None = None,
        tls_key: str | os.PathLike[str] | None = None,
        timeout: Seconds = DEFAULT_TIMEOUT,
    ) -> None:
        self._connection = Connection.resolve(
            target, token=token, token_file=token_file, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key
        )
        self._connection.metadata()  # so that a token that cannot be sent is told here
        self._timeout = seconds(timeout)
        self._reached = False
        self._closed = False

    @property
    def target(self) -> str:
        """The server's address."""
        return self._connection.target

    async def close(self) -> None:
        """Close the connection. Calls that are under way end with `RpcFailed`; runs go on."""
        self._closed = True
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self, notebook: Notebook | None = None, **options: Unpack[StartOptions]) -> pb.Run:
        """Start a run and answer it as admitted; arguments and errors are those of `Client.start`."""
        request = await asyncio.to_thread(start_request, notebook, options)
        return (await self._call(self._stub.Start, request)).run

    async def run(self, notebook: Notebook | None = None, **options: Unpack[StartOptions]) -> AsyncRunResult:
        """Start a run, follow it to its end, and answer the result.

        Arguments are those of `Client.run`. A cancellation leaves the run running.

        Raises:
            RunFailed: The run ended in another state than SUCCEEDED. Its output is there all the same.
            RpcFailed: As for `start` and `progress`. The run may go on.
        """
        run = await self.wait((await self.start(notebook, **options)).run_id)
        if run.state != pb.RUN_STATE_SUCCEEDED:
            raise RunFailed(run)
        return AsyncRunResult(run, self)

    async def wait(self, run_id: str = "", *, reconnect_timeout: Seconds = RECONNECT_TIMEOUT) -> pb.Run:
        """Wait until the run has ended, and answer it as it ended.

        Args:
            run_id: The run; empty for the newest.
            reconnect_timeout: As for `progress`, in seconds.
        """
        run = None
        events = self.progress(run_id, omit_cell_output=True, reconnect_timeout=reconnect_timeout)
        async with contextlib.aclosing(events):
            async for event in events:
                run = event.run_changed if event.HasField("run_changed") else run
        if run is None:
            raise NotebookRunnerError(f"the server told nothing of run {run_id}")
        return run

    async def progress(
        self,
        run_id: str = "",
        *,
        after_sequence: int = 0,
        omit_cell_output: bool = False,
        snapshot_only: bool = False,
        reconnect_timeout: Seconds = RECONNECT_TIMEOUT,
    ) -> AsyncGenerator[pb.ProgressResponse, None]:
        """Iterate over the events of a run: those that were, then live until the run has ended.

        Each event comes once and in order, over as many connections as it takes. Arguments and errors
        are those of `Client.progress`. Leave early by `contextlib.aclosing`, and the stream is closed
        at once.
        """
        request = pb.ProgressRequest(
            run_id=run_id or await self._newest(),
            after_sequence=after_sequence,
            omit_cell_output=omit_cell_output,
            snapshot_only=snapshot_only,
        )
        follower = Follower(request, seconds(reconnect_timeout), reached=self._reached)
        while not follower.ended:
            try:
                async with contextlib.aclosing(self._read(follower)) as events:
                    async for event in events:
                        yield event
            except RpcFailed as error:
                if self._closed:
                    raise
                await asyncio.sleep(follower.pause_after(error))
            else:
                return

    async def output(self, run_id: str = "", *, format: str = "notebook") -> bytes:  # noqa: A002 - the contract's name
        """Read an artefact of a run into memory; arguments and errors are those of `Client.output`."""
        return b"".join([content async for content in self._pages(run_id, format)])

    async def save_output(self, file: OutputFile, run_id: str = "", *, format: str = "notebook") -> None:  # noqa: A002 - as above
        """Write an artefact of a run to a file, page by page, beside the event loop.

        Arguments and errors are those of `Client.save_output`.
        """
        with open_output(file) as stream:
            async for content in self._pages(run_id, format):
                await asyncio.to_thread(stream.write, content)

    async def kill(self, run_id: str = "", *, grace_period: Seconds = 0) -> pb.KillResponse:
        """End a run, and come back when every process of it is gone. A run that has ended stays as it is.

        Args:
            run_id: The run; empty for the newest.
            grace_period: How long the notebook may take to clean up after an interrupt, in seconds.
                Zero: end it now.

        Raises:
            RunNotFound: There is no such run.
        """
        request = kill_request(run_id or await self._newest(), grace_period)
        timeout = max(self._timeout, KILL_TIMEOUT) + seconds(grace_period)
        return await self._call(self._stub.Kill, request, timeout)

    async def list(
        self,
        *,
        states: Iterable[str | pb.RunState.ValueType] = (),
        labels: Mapping[str, str] | None = None,
        page_size: int = 0,
    ) -> AsyncGenerator[pb.Run, None]:
        """Iterate over runs, newest first; arguments and errors are those of `Client.list`."""
        request = list_request(states, labels, page_size)
        while True:
            response = await self._call(self._stub.List, request)
            for run in response.runs:
                yield run
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        # A channel belongs to the loop that runs when it is made, so it waits for the first call.
        return self._connection.aio_channel()

    @cached_property
    def _stub(self) -> NotebookRunnerAsyncStub:
        # The generated stub serves both of gRPC's stacks; only its types are two.
        return cast("NotebookRunnerAsyncStub", NotebookRunnerStub(self._channel))

    async def _newest(self) -> str:
        # A later connection, page or attempt must not meet another run that has become the newest one.
        response = await self._call(self._stub.List, pb.ListRequest(page_size=1))
        return response.runs[0].run_id if response.runs else ""

    async def _read(self, follower: Follower) -> AsyncGenerator[pb.ProgressResponse, None]:
        call = self._stub.Progress(follower.request, metadata=self._connection.metadata())
        try:
            with self._errors_translated():
                async for event in call:
                    self._reached = True
                    if follower.accept(event):
                        yield event
        finally:
            call.cancel()

    async def _pages(self, run_id: str, artefact_format: str) -> AsyncGenerator[bytes, None]:
        pages = Pages(run_id, artefact_format)
        while not pages.complete:
            yield pages.accept(await self._call(self._stub.Output, pages.request))

    async def _call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT],
        request: RequestT,
        deadline: float | None = None,
    ) -> ResponseT:
        with self._errors_translated():
            response = await method(
                request, timeout=deadline or self._timeout, metadata=self._connection.metadata()
            )
        self._reached = True
        return response

    @contextlib.contextmanager
    def _errors_translated(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise to_error(error) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._closed or task is None or task.cancelling():
                raise
            # Nobody cancelled the caller: gRPC tells of a closed channel in this way.
            raise RpcFailed("the client was closed", grpc.StatusCode.CANCELLED) from None
