"""The asyncio client."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

from ._connection import DEFAULT_TIMEOUT, KILL_TIMEOUT, Connection
from ._notebook import SHOWN_TIMEOUT, attach, shown
from ._output import OutputFile, Pages, node_reader, open_output
from ._requests import Notebook, Seconds, StartOptions, kill_request, list_request, seconds, start_request
from ._retry import RECONNECT_TIMEOUT, ProgressReader
from ._states import ACTIVE, newest, to_kill
from ._transport import AsyncTransport
from .errors import NotebookRunnerError, RunFailed
from .v1 import notebook_runner_pb2 as pb

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
    from types import TracebackType
    from typing import Self

    from nbformat import NotebookNode

__all__ = ["AsyncClient", "AsyncRunResult"]


class AsyncClient:
    """Talks to one server from one event loop: the asyncio version of `Client`.

    Takes the same arguments as `Client`, raises the same errors, and may be created before the loop runs. A
    cancelled call raises `asyncio.CancelledError`; the run that it started continues.

    Args:
        target: The server's address, `HOST:PORT` or another gRPC target; else NOTEBOOK_RUNNER_TARGET,
            else 127.0.0.1:50051.
        token: A bearer token, sent with every call.
        token_file: File with the bearer token, read for every call; else NOTEBOOK_RUNNER_TOKEN_FILE.
        tls_ca: PEM file of CA certificates to trust; else NOTEBOOK_RUNNER_TLS_CA. Without this and
            `tls_cert`, the connection is not encrypted, and neither is the token.
        tls_cert: PEM file with the client's certificate chain; else NOTEBOOK_RUNNER_TLS_CERT.
        tls_key: PEM file with the private key of `tls_cert`; else NOTEBOOK_RUNNER_TLS_KEY.
        timeout: Maximum duration of a call, including retries, in seconds. `kill` has at least 60 s,
            and `progress` no limit.

    Raises:
        ValueError: Two settings contradict each other, or the token, a certificate or a key is invalid.
        OSError: The token file cannot be read. Certificates and keys are read with the first call.
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
        connection = Connection.resolve(
            target, token=token, token_file=token_file, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key
        )
        connection.metadata()  # raises now if the token cannot be sent
        self._transport = AsyncTransport(connection, seconds(timeout))
        attach(connection)

    def __repr__(self) -> str:
        return f"AsyncClient({self.target!r})"

    @property
    def target(self) -> str:
        """The server's address."""
        return self._transport.connection.target

    async def close(self) -> None:
        """Close the connection. Active calls raise `RpcFailed`; runs continue."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self, notebook: Notebook | None = None, **options: Unpack[StartOptions]) -> pb.Run:
        """Start a run and return it; arguments and errors are those of `Client.start`."""
        request = await asyncio.to_thread(start_request, notebook, options)
        return (await self._transport.call(self._transport.stub.Start, request)).run

    async def run(self, notebook: Notebook | None = None, **options: Unpack[StartOptions]) -> AsyncRunResult:
        """Start a run, wait until it ends, and return the result.

        Arguments are those of `Client.run`. A cancellation leaves the run running.

        Raises:
            RunFailed: The run ended in a state other than SUCCEEDED. Its output is still available.
            RpcFailed: As for `start` and `progress`. The run may continue.
        """
        run = await self.wait((await self.start(notebook, **options)).run_id)
        if run.state != pb.RUN_STATE_SUCCEEDED:
            raise RunFailed(run)
        return AsyncRunResult(run, self)

    async def wait(self, run_id: str = "", *, reconnect_timeout: Seconds = RECONNECT_TIMEOUT) -> pb.Run:
        """Wait until the run ends, and return it.

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
            raise NotebookRunnerError(f"The server sent no events for run {run_id}.")
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
        """Iterate over the events of a run: past events first, then live events until the run ends.

        Each event comes once and in order, over as many connections as it takes. Arguments and errors
        are those of `Client.progress`. To leave early, use `contextlib.aclosing`, which closes the stream
        immediately.
        """
        request = pb.ProgressRequest(
            run_id=run_id or await self._newest(),
            after_sequence=after_sequence,
            omit_cell_output=omit_cell_output,
            snapshot_only=snapshot_only,
        )
        follower = ProgressReader(request, seconds(reconnect_timeout), reached=self._transport.reached)
        async with contextlib.aclosing(self._transport.follow(follower)) as events:
            async for event in events:
                yield event
        if follower.ended and (end := shown(request.run_id)):
            # The view in a notebook must be complete before the cell that waits for the run ends.
            await asyncio.to_thread(end.wait, SHOWN_TIMEOUT)

    async def output(self, run_id: str = "", *, format: str = "notebook", omit_input: bool = False) -> bytes:  # noqa: A002 - the contract's name
        """Read an artefact of a run into memory; arguments and errors are those of `Client.output`."""
        pages = self._pages(run_id, format, omit_input=omit_input)
        return b"".join([content async for content in pages])

    async def save_output(
        self,
        file: OutputFile,
        run_id: str = "",
        *,
        format: str = "notebook",  # noqa: A002 - the contract's name
        omit_input: bool = False,
    ) -> None:
        """Write an artefact of a run to a file, page by page, without blocking the event loop.

        Arguments and errors are those of `Client.save_output`.
        """
        with open_output(file) as stream:
            async for content in self._pages(run_id, format, omit_input=omit_input):
                await asyncio.to_thread(stream.write, content)

    async def notebook(self, run_id: str = "") -> NotebookNode:
        """Read the executed notebook as a NotebookNode; errors are those of `Client.notebook`."""
        read = node_reader()
        return await asyncio.to_thread(read, await self.output(run_id))

    async def kill(self, run_id: str = "", *, grace_period: Seconds = 0) -> pb.KillResponse:
        """Kill a run, and return when all its processes are gone.

        A run that has already ended stays as it is, and the response says `already_ended`.

        Args:
            run_id: The run; empty for the newest that is executing, else the newest that is queued, else
                the newest.
            grace_period: Time for the notebook to clean up after an interrupt, in seconds. Zero: kill
                it immediately.

        Raises:
            RunNotFound: There is no such run.
        """
        request = kill_request(run_id or await self._to_kill(), grace_period)
        timeout = max(self._transport.timeout, KILL_TIMEOUT) + seconds(grace_period)
        return await self._transport.call(self._transport.stub.Kill, request, timeout)

    async def list(
        self,
        *,
        states: Iterable[str | pb.RunState.ValueType] = (),
        labels: Mapping[str, str] | None = None,
        page_size: int = 0,
        on_damaged: Callable[[str], object] | None = None,
    ) -> AsyncGenerator[pb.Run, None]:
        """Iterate over runs, newest first; arguments and errors are those of `Client.list`."""
        request = list_request(states, labels, page_size)
        while True:
            response = await self._transport.call(self._transport.stub.List, request)
            if on_damaged is not None:
                for run_id in response.damaged_run_ids:
                    on_damaged(run_id)
            for run in response.runs:
                yield run
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    async def info(self) -> pb.InfoResponse:
        """Return the server's version, kernels, formats and URI schemes, and how busy it is."""
        return await self._transport.call(self._transport.stub.Info, pb.InfoRequest())

    async def _newest(self) -> str:
        # Resolved once, because another run may become the newest before a retry or the next page.
        response = await self._transport.call(self._transport.stub.List, pb.ListRequest(page_size=1))
        return newest(response)

    async def _to_kill(self) -> str:
        # Resolved here, so that a repeated call cannot kill another run.
        run = to_kill([run async for run in self.list(states=ACTIVE)])
        return run.run_id if run else await self._newest()

    async def _pages(
        self, run_id: str, artefact_format: str, *, omit_input: bool
    ) -> AsyncGenerator[bytes, None]:
        pages = Pages(run_id, artefact_format, omit_input=omit_input)
        while not pages.complete:
            yield pages.accept(await self._transport.call(self._transport.stub.Output, pages.request))


@dataclass(frozen=True)
class AsyncRunResult:
    """A successful run and its artefacts. Its methods need the client to be open.

    Attributes:
        run: The run as it ended.
    """

    run: pb.Run
    _client: AsyncClient

    async def output(self, *, format: str = "notebook", omit_input: bool = False) -> bytes:  # noqa: A002 - the contract's name
        """Read an artefact of the run, as `AsyncClient.output` does."""
        return await self._client.output(self.run.run_id, format=format, omit_input=omit_input)

    async def save_output(
        self,
        file: OutputFile,
        *,
        format: str = "notebook",  # noqa: A002 - as above
        omit_input: bool = False,
    ) -> None:
        """Write an artefact of the run to a file, as `AsyncClient.save_output` does."""
        await self._client.save_output(file, self.run.run_id, format=format, omit_input=omit_input)

    async def notebook(self) -> NotebookNode:
        """Read the executed notebook, as `AsyncClient.notebook` does."""
        return await self._client.notebook(self.run.run_id)
