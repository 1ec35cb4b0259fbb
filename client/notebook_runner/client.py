"""The blocking client and its runs."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from functools import cached_property
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
from ._transport import Transport
from ._values import Seconds, seconds
from ._waiting import checked, latest, not_connected, still_active
from .changes import Change, change_of
from .errors import RpcFailed, RunFailed, Unavailable
from .events import Event, event_of
from .v1 import notebook_runner_pb2 as pb

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType
    from typing import Self
    from zipfile import ZipFile

    from nbformat import NotebookNode

__all__ = ["Client", "Run"]


class Client:
    """Talks to one server. May be used from several threads; use it as a context manager, or `close` it.

    Arguments that are not given come from the environment. In IPython, runs show themselves: in a kernel
    with a live progress bar, and with their result at the end.

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
        OSError: A token, certificate or key file cannot be read.

    Every method that calls the server may raise `RpcFailed`.
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
        self._transport = Transport(connection, seconds(timeout))
        attach(connection)

    def __repr__(self) -> str:
        return f"Client({self.target!r})"

    @property
    def target(self) -> str:
        """The server's address."""
        return self._transport.connection.target

    def close(self) -> None:
        """Close the connection. Active calls raise `RpcFailed`; runs continue."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, notebook: Notebook | None = None, **options: Unpack[StartOptions]) -> Run:
        """Start a run and return it; it continues whatever happens to this client.

        Args:
            notebook: The notebook: the path of a local file, bytes, a dict or a NotebookNode. Without
                this, `server_path` and `notebook_uri`, the server runs its default notebook.
            **options: See `StartOptions`.

        Raises:
            RunnerBusy: All workers are busy and the queue is full.
            QuotaExceeded: One's own share of the server is used up.
            InvalidRequest: The server cannot run this notebook with these options.
            TypeError: The notebook, an option or a parameter is of a type that cannot be sent, or there
                is no such option.
            ValueError: A value is out of range.
            OSError: The notebook, or a file to send with it, cannot be read.
        """
        request = start_request(notebook, options)
        return Run(self._transport.call(self._transport.stub.Start, request).run, self)

    def run(self, notebook: Notebook | None = None, **options: Unpack[StartOptions]) -> Run:
        """Start a run, wait until it ends, and return it; with the option `retry`, its last attempt.

        Args:
            notebook: As for `start`.
            **options: See `StartOptions`.

        Raises:
            RunFailed: The run, or its last attempt, did not succeed. Its output is still available.
            RpcFailed: As for `start` and `progress`. The run may continue.
        """
        return self.start(notebook, **options).wait().raise_for_state()

    def get(self, run_id: str = "") -> Run:
        """Return a run as it is now.

        Args:
            run_id: The run's id, or an unambiguous part of it: the beginning of the id, or of what follows
                its last hyphen, at least 4 characters. Empty: the newest run. Servers of version 0.1 need
                the whole id.

        Raises:
            RunNotFound: The run does not exist.
            InvalidRequest: The part belongs to several runs (`AMBIGUOUS_RUN_ID`).
        """
        try:
            return Run(self._transport.call(self._transport.stub.Get, pb.GetRequest(run_id=run_id)).run, self)
        except RpcFailed as error:
            if error.code is not grpc.StatusCode.UNIMPLEMENTED:
                raise
        # A server of version 0.1 has the run in its events.
        request = pb.ProgressRequest(
            run_id=run_id or self._newest(), omit_cell_output=True, snapshot_only=True
        )
        reader = ProgressReader(request, reached=self._transport.reached)
        return Run(latest(request.run_id, self._transport.follow(reader)), self)

    def wait(
        self,
        run_id: str = "",
        *,
        timeout: Seconds | None = None,
        retries: bool = True,
        reconnect_timeout: Seconds = RECONNECT_TIMEOUT,
    ) -> Run:
        """Wait until a run ends, and return it, however it ended.

        A run that did not succeed raises nothing: check `run.ok`, or call `run.raise_for_state()`. If the
        server repeats the run (the option `retry`), waits for its last attempt, and returns that run.

        Args:
            run_id: The run; empty for the newest.
            timeout: How long to wait, in seconds; None: without a limit. Zero: only check. For all attempts
                together.
            retries: Whether to wait for the last attempt. False: only for the attempt with this id.
            reconnect_timeout: As for `progress`.

        Raises:
            TimeoutError: The run, or its last attempt, has not ended in time. It continues.
            RunNotFound: The run, or one that repeats it, does not exist.
            Unavailable: The client could not reconnect in time.
        """
        limit = None if timeout is None else seconds(timeout)
        end = None if limit is None else time.monotonic() + limit
        if limit != 0:
            run_id = run_id or self._newest()
        while True:
            if limit == 0:
                run = checked(self.get(run_id))
            else:
                left = None if end is None else max(0.0, end - time.monotonic())
                run = self._wait_for(run_id, left, limit, seconds(reconnect_timeout))
            if not (retries and run.retried_by):
                return run
            run_id = run.retried_by

    def progress(
        self,
        run_id: str = "",
        *,
        after_sequence: int = 0,
        omit_cell_output: bool = False,
        snapshot_only: bool = False,
        display_data_max_bytes: int = 0,
        reconnect_timeout: Seconds = RECONNECT_TIMEOUT,
    ) -> Iterator[Event]:
        """Iterate over the events of a run: past events first, then live events until the run ends.

        Each event comes once and in order. If the connection breaks, the iterator reconnects and continues
        after the last event. Heartbeats are left out.

        Args:
            run_id: The run; empty for the newest.
            after_sequence: Return only events after this sequence number.
            omit_cell_output: Omit what cells print and display.
            snapshot_only: Return the events so far, and end.
            display_data_max_bytes: Include the content of each representation of rich data that has at most
                so many bytes, as far as the server keeps it (`Displayed.data`). Zero: none.
            reconnect_timeout: How long to try to reconnect, in seconds. Starts again after each message.

        Raises:
            RunNotFound: The run does not exist.
            Unavailable: The client could not reconnect in time.
        """
        request = pb.ProgressRequest(
            run_id=run_id or self._newest(),
            after_sequence=after_sequence,
            omit_cell_output=omit_cell_output,
            snapshot_only=snapshot_only,
            display_data_max_bytes=display_data_max_bytes,
        )
        reader = ProgressReader(request, seconds(reconnect_timeout), reached=self._transport.reached)
        with contextlib.closing(self._transport.follow(reader)) as events:
            for event in events:
                yield event_of(event)
        if reader.ended:
            self._await_view(request.run_id)

    def output(self, run_id: str = "", *, format: str = "notebook", omit_input: bool = False) -> bytes:  # noqa: A002 - the contract's name
        """Read an artefact of a run into memory. While the run is active, it has the cells finished so far.

        Args:
            run_id: The run; empty for the newest.
            format: `notebook`, `html`, `markdown`, `script`, `files` (a zip of the run folder), `error`
                (a plain-text report of how the run ended), or another format that the operator allows.
            omit_input: Omit the code. Not available for `notebook`, `files` and `error`.

        Raises:
            RunNotFound: The run does not exist.
            InvalidRequest: The server has no such format, or not without the code.
        """
        return b"".join(self._pages(run_id, format, omit_input=omit_input))

    def save_output(
        self,
        file: OutputFile,
        run_id: str = "",
        *,
        format: str = "notebook",  # noqa: A002 - the contract's name
        omit_input: bool = False,
    ) -> None:
        """Write an artefact of a run to a file, page by page, so that it need not fit into memory.

        Args:
            file: The path of a file, which is replaced only once the artefact is complete; or a binary file
                that is open for writing.
            run_id: The run; empty for the newest.
            format: As for `output`.
            omit_input: As for `output`.

        Raises:
            RunNotFound: The run does not exist.
            InvalidRequest: The server has no such format, or not without the code.
            OSError: The file cannot be written.
        """
        with open_output(file) as stream:
            for content in self._pages(run_id, format, omit_input=omit_input):
                stream.write(content)

    def notebook(self, run_id: str = "") -> NotebookNode:
        """Read the executed notebook as a NotebookNode, in the format version that it was sent in.

        Args:
            run_id: The run; empty for the newest.

        Raises:
            ModuleNotFoundError: The package nbformat is not installed.
            RunNotFound: The run does not exist.
        """
        read = node_reader()
        return read(self.output(run_id))

    def kill(self, run_id: str = "", *, grace_period: Seconds = 0, wait: bool = True) -> KillResult[Run]:
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
        request = kill_request(run_id or self._to_kill(), grace_period, wait=wait)
        timeout = max(self._transport.timeout, KILL_TIMEOUT) + seconds(grace_period)
        response = self._transport.call(self._transport.stub.Kill, request, timeout)
        return KillResult(Run(response.run, self), response.processes_ended, response.already_ended, response)

    def delete(self, run_id: str) -> Run:
        """Delete a run that has ended, with its history, outputs and files on the server.

        What was written to `output_uri` stays.

        Args:
            run_id: The run's whole id.

        Returns:
            The run as it was.

        Raises:
            RunNotFound: The run does not exist. If the connection broke during the call, the run may have
                been deleted before the client repeated it.
            RpcFailed: The run has not ended (`RUN_ACTIVE`).
            ValueError: The id is empty.
        """
        response = self._transport.call(self._transport.stub.Delete, delete_request(run_id))
        return Run(response.run, self)

    def runs(
        self,
        *,
        state: States = (),
        label: Mapping[str, str] | None = None,
        since: Since | None = None,
        owner: str = "",
        page_size: int = 0,
        on_damaged: Callable[[str], object] | None = None,
    ) -> Iterator[Run]:
        """Iterate over runs, newest first, fetching pages as needed.

        Args:
            state: Return only runs in this state, or in one of several: `"failed"`, `RunState.FAILED` or
                `["failed", "crashed"]`. Empty: all.
            label: Return only runs with all of these labels.
            since: Return only runs admitted at this time or later. A timedelta counts back from now, and a
                datetime without a time zone is in local time.
            owner: Return only runs of this owner. Empty: of all owners whose runs the caller may see.
            page_size: Number of runs per page. Zero: the server's default.
            on_damaged: Called with the id of each run whose record is damaged in the server's state folder;
                such runs are not among those returned.

        Raises:
            ValueError: A state does not exist.
        """
        request, oldest = list_request(state, label, page_size, owner), earliest(since)
        while True:
            response = self._transport.call(self._transport.stub.List, request)
            if on_damaged is not None:
                for run_id in response.damaged_run_ids:
                    on_damaged(run_id)
            for message in response.runs:
                run = Run(message, self)
                if oldest and run.created < oldest:
                    return
                yield run
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def watch(
        self,
        *,
        cursor: str = "",
        existing: bool = True,
        state: States = (),
        label: Mapping[str, str] | None = None,
        owner: str = "",
        reconnect_timeout: Seconds = RECONNECT_TIMEOUT,
    ) -> Iterator[Change]:
        """Iterate over the changes of runs: each new state and each deletion, as it happens, without an end.

        Each change comes once. If the connection breaks, the iterator reconnects and continues after the last
        change; to continue in another process, pass the cursor of the last change that was handled.

        Args:
            cursor: Continue after the change with this cursor. Empty: begin now.
            existing: Without a cursor, begin with the runs that exist, each in the state that it is in,
                oldest first, then an `ExistingSent`.
            state: Yield only runs in this state, or in one of several, as for `runs`. Deletions come in any
                case.
            label: Yield only runs with all of these labels.
            owner: Yield only runs of this owner.
            reconnect_timeout: How long to try to reconnect, in seconds. Starts again after each message.

        Raises:
            CursorExpired: The server no longer knows all changes after the cursor: begin again without one.
            Unavailable: The client could not reconnect in time.
            ValueError: A state does not exist.
        """
        request = watch_request(cursor, state, label, owner, existing=existing)
        reader = WatchReader(request, seconds(reconnect_timeout), reached=self._transport.reached)
        with contextlib.closing(self._transport.follow(reader)) as changes:
            for message in changes:
                yield change_of(message)

    def list(
        self,
        *,
        states: Iterable[str | pb.RunState.ValueType] = (),
        labels: Mapping[str, str] | None = None,
        page_size: int = 0,
        on_damaged: Callable[[str], object] | None = None,
    ) -> Iterator[Run]:
        """Iterate over runs, as `runs` does: its former name, with the former names of the arguments."""
        return self.runs(state=states, label=labels, page_size=page_size, on_damaged=on_damaged)

    def info(self) -> ServerInfo:
        """Return the server's version, kernels, formats and URI schemes, and how busy it is."""
        return info_of(self._transport.call(self._transport.stub.Info, pb.InfoRequest()))

    def _wait_for(self, run_id: str, left: float | None, limit: float | None, reconnect: float) -> Run:
        """Wait until one attempt ends.

        Args:
            run_id: The attempt.
            left: How long to wait, in seconds; None: without a limit.
            limit: How long to wait for all attempts.
            reconnect: How long to try to reconnect, in seconds.
        """
        request = pb.ProgressRequest(run_id=run_id, omit_cell_output=True)
        reader = ProgressReader(request, reconnect, reached=self._transport.reached)
        try:
            run = latest(run_id, self._transport.follow(reader, left))
        except Unavailable as error:
            if limit is None or error.code is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
            raise still_active(run_id, limit) from None
        self._await_view(run_id)
        return Run(run, self)

    def _caller(self) -> str:
        # A caller that may see the runs of others means its own by an empty id.
        try:
            return self.info().caller
        except RpcFailed as error:
            if error.code is not grpc.StatusCode.UNIMPLEMENTED:
                raise
        return ""  # a server of version 0.1 has no owners

    def _newest(self, owner: str | None = None) -> str:
        # Resolved once, because another run may become the newest before a retry or the next page.
        owner = self._caller() if owner is None else owner
        return newest(
            self._transport.call(self._transport.stub.List, pb.ListRequest(page_size=1, owner=owner))
        )

    def _to_kill(self) -> str:
        # Resolved here, so that a repeated call cannot kill another run.
        owner = self._caller()
        run = to_kill(run.pb for run in self.runs(state=ACTIVE, owner=owner))
        return run.run_id if run else self._newest(owner)

    def _pages(self, run_id: str, artefact_format: str, *, omit_input: bool) -> Iterator[bytes]:
        pages = Pages(run_id, artefact_format, omit_input=omit_input)
        while not pages.complete:
            yield pages.accept(self._transport.call(self._transport.page_stub.Output, pages.request))

    def _await_view(self, run_id: str) -> None:
        # The view in a notebook must be complete before the cell that waits for the run ends.
        if event := shown(run_id):
            event.wait(SHOWN_TIMEOUT)


@dataclass(frozen=True, eq=False, repr=False)
class Run(RunSnapshot):
    """A run of a `Client`: what was known of it at one moment, and methods for what comes after.

    The attributes never change. `refresh` and `wait` return another object with the later state::

        run = client.start("report.ipynb")
        run = run.wait()
        print(run.state, run.duration, run.text)

    `text`, `outputs`, `images`, `tables`, `html`, `notebook` and `save` read the executed notebook from the
    server, however the run ended; while it is active, they contain the cells finished so far. The first four
    read it only once if the run has ended. All methods need the client to be open, and raise `RpcFailed`. A
    pickled run has no client: use `client.get(run.id)`.

    Attributes:
        pb: The message of the contract, `notebook_runner.v1.notebook_runner_pb2.Run`.
    """

    _client: Client | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.pb,)

    def refresh(self) -> Run:
        """Return the run as it is now.

        Raises:
            RunNotFound: The run was deleted.
        """
        return self._connected.get(self.id)

    def wait(
        self,
        *,
        timeout: Seconds | None = None,
        retries: bool = True,
        reconnect_timeout: Seconds = RECONNECT_TIMEOUT,
    ) -> Run:
        """Wait until the run ends, and return it, however it ended; if it is repeated, its last attempt.

        Arguments and errors are those of `Client.wait`. For an exception if the run did not succeed, call
        `raise_for_state` of the result.
        """
        if self.is_terminal and not (retries and self.retried_by):
            return self
        return self._connected.wait(
            self.retried_by or self.id, timeout=timeout, retries=retries, reconnect_timeout=reconnect_timeout
        )

    def raise_for_state(self) -> Self:
        """Return this run, if it has succeeded or is still active.

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
    ) -> Iterator[Event]:
        """Iterate over the events of the run, as `Client.progress` does."""
        return self._connected.progress(
            self.id,
            after_sequence=after_sequence,
            omit_cell_output=omit_cell_output,
            snapshot_only=snapshot_only,
            display_data_max_bytes=display_data_max_bytes,
            reconnect_timeout=reconnect_timeout,
        )

    def kill(self, *, grace_period: Seconds = 0, wait: bool = True) -> KillResult[Run]:
        """Kill the run, and return when all its processes are gone, as `Client.kill` does."""
        return self._connected.kill(self.id, grace_period=grace_period, wait=wait)

    def delete(self) -> Run:
        """Delete the run with everything that it left on the server, as `Client.delete` does."""
        return self._connected.delete(self.id)

    @property
    def text(self) -> str:
        """What the notebook printed, to standard output and standard error."""
        return self._contents.text

    @property
    def outputs(self) -> list[Output]:
        """All outputs of the cells, in the order of the notebook."""
        return list(self._contents.outputs)

    @property
    def images(self) -> list[Image]:
        """The pictures that cells displayed: one for each output that has any, PNG first."""
        return list(self._contents.images)

    @property
    def tables(self) -> list[Any]:
        """The tables that cells displayed as HTML, such as DataFrames.

        Each is a pandas DataFrame if pandas is installed here, else a list of rows, each a list of str, with
        the names of the columns in the first. A table is read from what was displayed: a long one without the
        rows that pandas leaves out, and numbers with the displayed digits. One of more than 10,000 columns,
        or with rows of very different lengths, remains a list of rows.
        """
        return tables_of(self._contents.pages)

    def output(self, *, format: str = "notebook", omit_input: bool = False) -> bytes:  # noqa: A002 - the contract's name
        """Read an artefact of the run into memory, as `Client.output` does."""
        return self._connected.output(self.id, format=format, omit_input=omit_input)

    def html(self, *, omit_input: bool = False) -> str:
        """Read the executed notebook as a page of HTML.

        Args:
            omit_input: Omit the code.
        """
        return self.output(format="html", omit_input=omit_input).decode()

    def notebook(self) -> NotebookNode:
        """Read the executed notebook as a NotebookNode, as `Client.notebook` does."""
        return self._connected.notebook(self.id)

    def save(
        self,
        file: OutputFile,
        *,
        format: str = "",  # noqa: A002 - the contract's name
        omit_input: bool = False,
    ) -> None:
        """Write the result to a file, page by page, so that it need not fit into memory.

        Args:
            file: The path of a file, which is replaced only once the result is complete; or a binary file
                that is open for writing.
            format: As for `Client.output`. Empty: by the file's suffix: `.ipynb`, `.html`, `.md`, `.py` or
                another suffix of a script, `.pdf`, `.tex`, `.rst`, or `.zip` for the files of the run folder.
            omit_input: Omit the code.

        Raises:
            ValueError: No format belongs to the file's suffix.
            InvalidRequest: The server has no such format, or not without the code.
            OSError: The file cannot be written.
        """
        chosen = format or format_of(file)
        self._connected.save_output(file, self.id, format=chosen, omit_input=omit_input)

    def files(self) -> ZipFile:
        """Read the files of the run folder as a zip archive: `run.files().extractall("folder")`.

        The archive is in memory. For one that does not fit, use `save("files.zip")`.
        """
        return open_archive(self.output(format="files"))

    @property
    def _connected(self) -> Client:
        if self._client is None:
            raise not_connected(self)
        return self._client

    @property
    def _contents(self) -> Contents:
        return self._ended_contents if self.is_terminal else Contents(self.output())

    @cached_property
    def _ended_contents(self) -> Contents:
        return Contents(self.output())
