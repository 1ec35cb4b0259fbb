"""The asyncio client and its runs."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import grpc

from ._connection import DEFAULT_TIMEOUT, KILL_TIMEOUT, Connection
from ._contents import Contents, Image, Output
from ._info import ServerInfo, info_of
from ._notebook import SHOWN_TIMEOUT, attach, shown
from ._output import OutputFile, Pages, format_of, node_reader, open_archive, open_output
from ._requests import (
    Notebook,
    Since,
    StartOptions,
    delete_request,
    earliest,
    kill_request,
    list_request,
    start_request,
    watch_request,
)
from ._retry import RECONNECT_TIMEOUT, ProgressReader, WatchReader
from ._snapshot import KillResult, RunSnapshot
from ._states import ACTIVE, States, newest, to_kill
from ._tables import tables_of
from ._transport import AsyncTransport
from ._values import Seconds, seconds
from ._waiting import checked, latest, not_connected, still_active
from .changes import Change, change_of
from .errors import RpcFailed, RunFailed
from .events import Event, event_of
from .v1 import notebook_runner_pb2 as pb

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
    from types import TracebackType
    from typing import Self
    from zipfile import ZipFile

    from nbformat import NotebookNode

__all__ = ["AsyncClient", "AsyncRun"]


class AsyncClient:
    """Talks to one server from one event loop: the asyncio version of `Client`.

    Takes the same arguments as `Client`, raises the same errors, and may be created before the loop runs. A
    cancelled call raises `asyncio.CancelledError`; the run that it started continues.

    Args:
        target: The server's address, `HOST:PORT` or another gRPC target; else NOTEBOOK_RUNNER_TARGET,
            else 127.0.0.1:50051. Calls take turns over its addresses if it is a DNS name with several, or a
            list (`ipv4:ADDRESS:PORT,ADDRESS:PORT`).
        token: A bearer token, sent with every call.
        token_file: File with the bearer token, read for every call; else NOTEBOOK_RUNNER_TOKEN_FILE.
        tls_ca: PEM file of CA certificates to trust; else NOTEBOOK_RUNNER_TLS_CA. Without this and
            `tls_cert`, the connection is not encrypted, and neither is the token.
        tls_cert: PEM file with the client's certificate chain; else NOTEBOOK_RUNNER_TLS_CERT.
        tls_key: PEM file with the private key of `tls_cert`; else NOTEBOOK_RUNNER_TLS_KEY.
        timeout: Maximum duration of a call, including retries, in seconds. `kill` has at least 60 s,
            and `progress` no limit.

    Raises:
        ValueError: The target is a URL, two settings contradict each other, or the token, a certificate or a
            key is invalid.
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
        if connection.login_file is None:
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

    async def start(self, notebook: Notebook | None = None, **options: Unpack[StartOptions]) -> AsyncRun:
        """Start a run and return it; arguments and errors are those of `Client.start`."""
        request = await asyncio.to_thread(start_request, notebook, options)
        return AsyncRun((await self._transport.call(self._transport.stub.Start, request)).run, self)

    async def run(self, notebook: Notebook | None = None, **options: Unpack[StartOptions]) -> AsyncRun:
        """Start a run, wait until it ends, and return it; with the option `retry`, its last attempt.

        Arguments are those of `Client.run`. A cancellation leaves the run running.

        Raises:
            RunFailed: The run, or its last attempt, did not succeed. Its output is still available.
            RpcFailed: As for `start` and `progress`. The run may continue.
        """
        run = await self.start(notebook, **options)
        return (await run.wait()).raise_for_state()

    async def get(self, run_id: str = "") -> AsyncRun:
        """Return a run as it is now; arguments and errors are those of `Client.get`."""
        try:
            response = await self._transport.call(self._transport.stub.Get, pb.GetRequest(run_id=run_id))
            return AsyncRun(response.run, self)
        except RpcFailed as error:
            if error.code is not grpc.StatusCode.UNIMPLEMENTED:
                raise
        # A server of version 0.1 has the run in its events.
        run_id = run_id or await self._newest()
        request = pb.ProgressRequest(run_id=run_id, omit_cell_output=True, snapshot_only=True)
        reader = ProgressReader(request, reached=self._transport.reached)
        return AsyncRun(latest(run_id, [event async for event in self._transport.follow(reader)]), self)

    async def wait(
        self,
        run_id: str = "",
        *,
        timeout: Seconds | None = None,  # noqa: ASYNC109 - that of `Client.wait`
        retries: bool = True,
        reconnect_timeout: Seconds = RECONNECT_TIMEOUT,
    ) -> AsyncRun:
        """Wait until a run ends, and return it, however it ended.

        A run that did not succeed raises nothing; arguments, result and errors are those of `Client.wait`.
        """
        limit = None if timeout is None else seconds(timeout)
        waiting = asyncio.timeout(None if limit == 0 else limit)
        followed: list[str] = []
        try:
            async with waiting:
                if limit != 0:
                    run_id = run_id or await self._newest()
                while True:
                    if limit == 0:
                        run = checked(await self.get(run_id))
                    else:
                        run = await self._wait_for(run_id, seconds(reconnect_timeout))
                        followed.append(run_id)
                    if not (retries and run.retried_by):
                        break
                    run_id = run.retried_by
        except TimeoutError:
            if limit is None or not waiting.expired():
                raise
            raise still_active(run_id, limit) from None
        for one in followed:
            await self._await_view(one)
        return run

    async def progress(
        self,
        run_id: str = "",
        *,
        after_sequence: int = 0,
        omit_cell_output: bool = False,
        snapshot_only: bool = False,
        display_data_max_bytes: int = 0,
        reconnect_timeout: Seconds = RECONNECT_TIMEOUT,
    ) -> AsyncGenerator[Event, None]:
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
            display_data_max_bytes=display_data_max_bytes,
        )
        reader = ProgressReader(request, seconds(reconnect_timeout), reached=self._transport.reached)
        async with contextlib.aclosing(self._transport.follow(reader)) as events:
            async for event in events:
                yield event_of(event)
        if reader.ended:
            await self._await_view(request.run_id)

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

    async def kill(
        self, run_id: str = "", *, grace_period: Seconds = 0, wait: bool = True
    ) -> KillResult[AsyncRun]:
        """Kill a run, and return when all its processes are gone.

        A run that has already ended stays as it is, and the result says `already_ended`.

        Args:
            run_id: The run; empty for the newest that is executing, else the newest that is queued, else
                the newest.
            grace_period: Time for the notebook to clean up after an interrupt, in seconds. Zero: kill
                it immediately.
            wait: Wait until all processes are gone. Otherwise return as soon as the kill is certain to be
                completed; `wait` then returns the run at its end.

        Raises:
            RunNotFound: The run does not exist.
        """
        request = kill_request(run_id or await self._to_kill(), grace_period, wait=wait)
        timeout = max(self._transport.timeout, KILL_TIMEOUT) + seconds(grace_period)
        response = await self._transport.call(self._transport.stub.Kill, request, timeout)
        run = AsyncRun(response.run, self)
        return KillResult(run, response.processes_ended, response.already_ended, response)

    async def delete(self, run_id: str) -> AsyncRun:
        """Delete a run that has ended, with its history, outputs and files on the server.

        Arguments, result and errors are those of `Client.delete`.
        """
        response = await self._transport.call(self._transport.stub.Delete, delete_request(run_id))
        return AsyncRun(response.run, self)

    async def runs(
        self,
        *,
        state: States = (),
        label: Mapping[str, str] | None = None,
        since: Since | None = None,
        owner: str = "",
        page_size: int = 0,
        on_damaged: Callable[[str], object] | None = None,
    ) -> AsyncGenerator[AsyncRun, None]:
        """Iterate over runs, newest first; arguments and errors are those of `Client.runs`."""
        request, oldest = list_request(state, label, page_size, owner), earliest(since)
        while True:
            response = await self._transport.call(self._transport.stub.List, request)
            if on_damaged is not None:
                for run_id in response.damaged_run_ids:
                    on_damaged(run_id)
            for message in response.runs:
                run = AsyncRun(message, self)
                if oldest and run.created < oldest:
                    return
                yield run
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    async def watch(
        self,
        *,
        cursor: str = "",
        existing: bool = True,
        state: States = (),
        label: Mapping[str, str] | None = None,
        owner: str = "",
        reconnect_timeout: Seconds = RECONNECT_TIMEOUT,
    ) -> AsyncGenerator[Change, None]:
        """Iterate over the changes of runs; arguments and errors are those of `Client.watch`.

        To leave early, use `contextlib.aclosing`, which closes the stream immediately.
        """
        request = watch_request(cursor, state, label, owner, existing=existing)
        reader = WatchReader(request, seconds(reconnect_timeout), reached=self._transport.reached)
        async with contextlib.aclosing(self._transport.follow(reader)) as changes:
            async for message in changes:
                yield change_of(message)

    def list(
        self,
        *,
        states: Iterable[str | pb.RunState.ValueType] = (),
        labels: Mapping[str, str] | None = None,
        page_size: int = 0,
        on_damaged: Callable[[str], object] | None = None,
    ) -> AsyncGenerator[AsyncRun, None]:
        """Iterate over runs, as `runs` does: its former name, with the former names of the arguments."""
        return self.runs(state=states, label=labels, page_size=page_size, on_damaged=on_damaged)

    async def info(self) -> ServerInfo:
        """Return the server's version, kernels, formats and URI schemes, and how busy it is."""
        return info_of(await self._transport.call(self._transport.stub.Info, pb.InfoRequest()))

    async def _wait_for(self, run_id: str, reconnect: float) -> AsyncRun:
        """Wait until one attempt ends.

        Args:
            run_id: The attempt.
            reconnect: How long to try to reconnect, in seconds.
        """
        request = pb.ProgressRequest(run_id=run_id, omit_cell_output=True)
        reader = ProgressReader(request, reconnect, reached=self._transport.reached)
        async with contextlib.aclosing(self._transport.follow(reader)) as stream:
            events = [event async for event in stream]
        return AsyncRun(latest(run_id, events), self)

    async def _caller(self) -> str:
        # A caller that may see the runs of others means its own by an empty id.
        try:
            return (await self.info()).caller
        except RpcFailed as error:
            if error.code is not grpc.StatusCode.UNIMPLEMENTED:
                raise
        return ""  # a server of version 0.1 has no owners

    async def _newest(self, owner: str | None = None) -> str:
        # Resolved once, because another run may become the newest before a retry or the next page.
        request = pb.ListRequest(page_size=1, owner=await self._caller() if owner is None else owner)
        return newest(await self._transport.call(self._transport.stub.List, request))

    async def _to_kill(self) -> str:
        # Resolved here, so that a repeated call cannot kill another run.
        owner = await self._caller()
        run = to_kill([run.pb async for run in self.runs(state=ACTIVE, owner=owner)])
        return run.run_id if run else await self._newest(owner)

    async def _pages(
        self, run_id: str, artefact_format: str, *, omit_input: bool
    ) -> AsyncGenerator[bytes, None]:
        pages = Pages(run_id, artefact_format, omit_input=omit_input)
        while not pages.complete:
            yield pages.accept(await self._transport.call(self._transport.page_stub.Output, pages.request))

    async def _await_view(self, run_id: str) -> None:
        # The view in a notebook must be complete before the cell that waits for the run ends.
        if end := shown(run_id):
            await asyncio.to_thread(end.wait, SHOWN_TIMEOUT)


@dataclass(frozen=True, eq=False, repr=False)
class AsyncRun(RunSnapshot):
    """A run of an `AsyncClient`: the asyncio version of `Run`.

    The attributes never change. What calls the server is a method to await, also `text`, `outputs`, `images`
    and `tables`::

        run = await client.start("report.ipynb")
        run = await run.wait()
        print(run.state, run.duration, await run.text())

    Attributes:
        pb: The message of the contract, `notebook_runner.v1.notebook_runner_pb2.Run`.
    """

    _client: AsyncClient | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.pb,)

    async def refresh(self) -> AsyncRun:
        """Return the run as it is now; errors are those of `Run.refresh`."""
        return await self._connected.get(self.id)

    async def wait(
        self,
        *,
        timeout: Seconds | None = None,  # noqa: ASYNC109 - that of `Run.wait`
        retries: bool = True,
        reconnect_timeout: Seconds = RECONNECT_TIMEOUT,
    ) -> AsyncRun:
        """Wait until the run ends, and return it, however it ended; if it is repeated, its last attempt.

        Arguments and errors are those of `Client.wait`.
        """
        if self.is_terminal and not (retries and self.retried_by):
            return self
        return await self._connected.wait(
            self.retried_by or self.id, timeout=timeout, retries=retries, reconnect_timeout=reconnect_timeout
        )

    def raise_for_state(self) -> Self:
        """Return this run, if it has succeeded or is still active. Needs no `await`.

        Raises:
            RunFailed: The run ended in a state other than SUCCEEDED.
        """
        if self.is_terminal and not self.ok:
            raise RunFailed(self)
        return self

    def progress(
        self,
        *,
        after_sequence: int = 0,
        omit_cell_output: bool = False,
        snapshot_only: bool = False,
        display_data_max_bytes: int = 0,
        reconnect_timeout: Seconds = RECONNECT_TIMEOUT,
    ) -> AsyncGenerator[Event, None]:
        """Iterate over the events of the run, as `AsyncClient.progress` does."""
        return self._connected.progress(
            self.id,
            after_sequence=after_sequence,
            omit_cell_output=omit_cell_output,
            snapshot_only=snapshot_only,
            display_data_max_bytes=display_data_max_bytes,
            reconnect_timeout=reconnect_timeout,
        )

    async def kill(self, *, grace_period: Seconds = 0, wait: bool = True) -> KillResult[AsyncRun]:
        """Kill the run, and return when all its processes are gone, as `AsyncClient.kill` does."""
        return await self._connected.kill(self.id, grace_period=grace_period, wait=wait)

    async def delete(self) -> AsyncRun:
        """Delete the run with everything that it left on the server, as `AsyncClient.delete` does."""
        return await self._connected.delete(self.id)

    async def text(self) -> str:
        """Return what the notebook printed, to standard output and standard error."""
        return (await self._contents()).text

    async def outputs(self) -> list[Output]:
        """Return all outputs of the cells, in the order of the notebook."""
        return list((await self._contents()).outputs)

    async def images(self) -> list[Image]:
        """Return the pictures that cells displayed: one for each output that has any, PNG first."""
        return list((await self._contents()).images)

    async def tables(self) -> list[Any]:
        """Return the tables that cells displayed as HTML, as `Run.tables` does."""
        return await asyncio.to_thread(tables_of, (await self._contents()).pages)

    async def output(self, *, format: str = "notebook", omit_input: bool = False) -> bytes:  # noqa: A002 - the contract's name
        """Read an artefact of the run into memory, as `AsyncClient.output` does."""
        return await self._connected.output(self.id, format=format, omit_input=omit_input)

    async def html(self, *, omit_input: bool = False) -> str:
        """Read the executed notebook as a page of HTML, as `Run.html` does."""
        return (await self.output(format="html", omit_input=omit_input)).decode()

    async def notebook(self) -> NotebookNode:
        """Read the executed notebook as a NotebookNode, as `AsyncClient.notebook` does."""
        return await self._connected.notebook(self.id)

    async def save(
        self,
        file: OutputFile,
        *,
        format: str = "",  # noqa: A002 - the contract's name
        omit_input: bool = False,
    ) -> None:
        """Write the result to a file; arguments and errors are those of `Run.save`."""
        chosen = format or format_of(file)
        await self._connected.save_output(file, self.id, format=chosen, omit_input=omit_input)

    async def files(self) -> ZipFile:
        """Read the files of the run folder as a zip archive, as `Run.files` does."""
        return open_archive(await self.output(format="files"))

    @property
    def _connected(self) -> AsyncClient:
        if self._client is None:
            raise not_connected(self)
        return self._client

    async def _contents(self) -> Contents:
        known: Contents | None = self.__dict__.get("_ended_contents")
        if known is None:
            known = await asyncio.to_thread(Contents, await self.output())
            if self.is_terminal:
                self.__dict__["_ended_contents"] = known
        return known
