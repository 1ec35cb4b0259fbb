"""The blocking client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

from ._connection import DEFAULT_TIMEOUT, KILL_TIMEOUT, Connection
from ._notebook import SHOWN_TIMEOUT, attach, shown
from ._output import OutputFile, Pages, node_reader, open_output
from ._requests import Notebook, Seconds, StartOptions, kill_request, list_request, seconds, start_request
from ._retry import RECONNECT_TIMEOUT, ProgressReader
from ._states import ACTIVE, newest, to_kill
from ._transport import Transport
from .errors import NotebookRunnerError, RunFailed
from .v1 import notebook_runner_pb2 as pb

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType
    from typing import Self

    from nbformat import NotebookNode

__all__ = ["Client", "RunResult"]


class Client:
    """Talks to one server. May be used from several threads; use it as a context manager, or `close` it.

    Arguments that are not given come from the environment. In IPython, runs show themselves: in a kernel
    with a live progress bar, and with their result at the end.

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

    def start(self, notebook: Notebook | None = None, **options: Unpack[StartOptions]) -> pb.Run:
        """Start a run and return it; it continues whatever happens to this client.

        Args:
            notebook: The notebook: the path of a local file, bytes, a dict or a NotebookNode. Without
                this, `server_path` and `notebook_uri`, the server runs its default notebook.
            **options: See `StartOptions`.

        Raises:
            RunnerBusy: All workers are busy and the queue is full.
            InvalidRequest: The server cannot run this notebook with these options.
            TypeError: The notebook, an option or a parameter is of a type that cannot be sent, or there
                is no such option.
            ValueError: A value is out of range.
            OSError: The notebook's file cannot be read.
        """
        return self._transport.call(self._transport.stub.Start, start_request(notebook, options)).run

    def run(self, notebook: Notebook | None = None, **options: Unpack[StartOptions]) -> RunResult:
        """Start a run, wait until it ends, and return the result.

        Args:
            notebook: As for `start`.
            **options: See `StartOptions`.

        Raises:
            RunFailed: The run ended in a state other than SUCCEEDED. Its output is still available.
            RpcFailed: As for `start` and `progress`. The run may continue.
        """
        run = self.wait(self.start(notebook, **options).run_id)
        if run.state != pb.RUN_STATE_SUCCEEDED:
            raise RunFailed(run)
        return RunResult(run, self)

    def wait(self, run_id: str = "", *, reconnect_timeout: Seconds = RECONNECT_TIMEOUT) -> pb.Run:
        """Wait until the run ends, and return it.

        Args:
            run_id: The run; empty for the newest.
            reconnect_timeout: As for `progress`.
        """
        run = None
        for event in self.progress(run_id, omit_cell_output=True, reconnect_timeout=reconnect_timeout):
            run = event.run_changed if event.HasField("run_changed") else run
        if run is None:
            raise NotebookRunnerError(f"The server sent no events for run {run_id}.")
        return run

    def progress(
        self,
        run_id: str = "",
        *,
        after_sequence: int = 0,
        omit_cell_output: bool = False,
        snapshot_only: bool = False,
        reconnect_timeout: Seconds = RECONNECT_TIMEOUT,
    ) -> Iterator[pb.ProgressResponse]:
        """Iterate over the events of a run: past events first, then live events until the run ends.

        Each event comes once and in order. If the connection breaks, the iterator reconnects and continues
        after the last event. Heartbeats are left out.

        Args:
            run_id: The run; empty for the newest.
            after_sequence: Return only events after this sequence number.
            omit_cell_output: Omit what cells print and display.
            snapshot_only: Return the events so far, and end.
            reconnect_timeout: How long to try to reconnect, in seconds. Starts again after each message.

        Raises:
            RunNotFound: There is no such run.
            Unavailable: The client could not reconnect in time.
        """
        request = pb.ProgressRequest(
            run_id=run_id or self._newest(),
            after_sequence=after_sequence,
            omit_cell_output=omit_cell_output,
            snapshot_only=snapshot_only,
        )
        follower = ProgressReader(request, seconds(reconnect_timeout), reached=self._transport.reached)
        yield from self._transport.follow(follower)
        if follower.ended and (event := shown(request.run_id)):
            # The view in a notebook must be complete before the cell that waits for the run ends.
            event.wait(SHOWN_TIMEOUT)

    def output(self, run_id: str = "", *, format: str = "notebook", omit_input: bool = False) -> bytes:  # noqa: A002 - the contract's name
        """Read an artefact of a run into memory. While the run is active, it has the cells finished so far.

        Args:
            run_id: The run; empty for the newest.
            format: `notebook`, `html`, `markdown`, `script`, `files` (a zip of the run folder), `error`
                (a plain-text report of how the run ended), or another format that the operator allows.
            omit_input: Omit the code. Not available for `notebook`, `files` and `error`.

        Raises:
            RunNotFound: There is no such run.
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
            RunNotFound: There is no such run.
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
            RunNotFound: There is no such run.
        """
        read = node_reader()
        return read(self.output(run_id))

    def kill(self, run_id: str = "", *, grace_period: Seconds = 0) -> pb.KillResponse:
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
        request = kill_request(run_id or self._to_kill(), grace_period)
        timeout = max(self._transport.timeout, KILL_TIMEOUT) + seconds(grace_period)
        return self._transport.call(self._transport.stub.Kill, request, timeout)

    def list(
        self,
        *,
        states: Iterable[str | pb.RunState.ValueType] = (),
        labels: Mapping[str, str] | None = None,
        page_size: int = 0,
        on_damaged: Callable[[str], object] | None = None,
    ) -> Iterator[pb.Run]:
        """Iterate over runs, newest first, fetching pages as needed.

        Args:
            states: Return only runs in one of these states, by name (`running`) or number. Empty: all.
            labels: Return only runs with all of these labels.
            page_size: Number of runs per page. Zero: the server's default.
            on_damaged: Called with the id of each run whose record is damaged in the server's state folder;
                such runs are not among those returned.

        Raises:
            ValueError: A state does not exist.
        """
        request = list_request(states, labels, page_size)
        while True:
            response = self._transport.call(self._transport.stub.List, request)
            if on_damaged is not None:
                for run_id in response.damaged_run_ids:
                    on_damaged(run_id)
            yield from response.runs
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def info(self) -> pb.InfoResponse:
        """Return the server's version, kernels, formats and URI schemes, and how busy it is."""
        return self._transport.call(self._transport.stub.Info, pb.InfoRequest())

    def _newest(self) -> str:
        # Resolved once, because another run may become the newest before a retry or the next page.
        response = self._transport.call(self._transport.stub.List, pb.ListRequest(page_size=1))
        return newest(response)

    def _to_kill(self) -> str:
        # Resolved here, so that a repeated call cannot kill another run.
        run = to_kill(self.list(states=ACTIVE))
        return run.run_id if run else self._newest()

    def _pages(self, run_id: str, artefact_format: str, *, omit_input: bool) -> Iterator[bytes]:
        pages = Pages(run_id, artefact_format, omit_input=omit_input)
        while not pages.complete:
            yield pages.accept(self._transport.call(self._transport.stub.Output, pages.request))


@dataclass(frozen=True)
class RunResult:
    """A successful run and its artefacts. Its methods need the client to be open.

    Attributes:
        run: The run as it ended.
    """

    run: pb.Run
    _client: Client

    def output(self, *, format: str = "notebook", omit_input: bool = False) -> bytes:  # noqa: A002 - the contract's name
        """Read an artefact of the run, as `Client.output` does."""
        return self._client.output(self.run.run_id, format=format, omit_input=omit_input)

    def save_output(
        self,
        file: OutputFile,
        *,
        format: str = "notebook",  # noqa: A002 - as above
        omit_input: bool = False,
    ) -> None:
        """Write an artefact of the run to a file, as `Client.save_output` does."""
        self._client.save_output(file, self.run.run_id, format=format, omit_input=omit_input)

    def notebook(self) -> NotebookNode:
        """Read the executed notebook, as `Client.notebook` does."""
        return self._client.notebook(self.run.run_id)
