"""The client of the command: its calls take and return the messages of the contract."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Unpack

import click
import grpc

from notebook_runner._requests import Notebook, StartOptions
from notebook_runner._retry import MessageT, ProgressReader, RequestT, StreamReader, WatchReader
from notebook_runner._states import ACTIVE, to_kill
from notebook_runner.client import Client
from notebook_runner.errors import RpcFailed
from notebook_runner.v1 import notebook_runner_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

__all__ = ["DISPLAY_BYTES", "MAX_PAGE", "SHORTEST_PART", "CommandClient"]

# The server's maximum page size.
MAX_PAGE = 1000
# Representations up to this size come with the events, to be shown.
DISPLAY_BYTES = 64 * 1024
# As long as the contract's for parts of ids.
SHORTEST_PART = 4
_SHOWN_MATCHES = 5

_WHOLE_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8,}")


class CommandClient(Client):
    """The client, with what only the command needs."""

    def start_run(self, notebook: Notebook | None, **options: Unpack[StartOptions]) -> pb.Run:
        """Start a run, as `Client.start` does."""
        return self.start(notebook, **options).pb

    def kill_run(self, run_id: str, grace_period: float = 0, *, wait: bool = True) -> pb.KillResponse:
        """Kill a run, as `Client.kill` does."""
        return self.kill(run_id, grace_period=grace_period, wait=wait).pb

    def list_runs(
        self,
        *,
        states: Sequence[pb.RunState.ValueType] = (),
        labels: Mapping[str, str] | None = None,
        owner: str = "",
        page_size: int = 0,
        on_damaged: Callable[[str], object] | None = None,
    ) -> Iterator[pb.Run]:
        """Iterate over runs, as `Client.runs` does."""
        runs = self.runs(state=states, label=labels, owner=owner, page_size=page_size, on_damaged=on_damaged)
        return (run.pb for run in runs)

    def delete_run(self, run_id: str) -> pb.Run:
        """Delete an ended run, and return it as it was.

        Raises:
            RunNotFound: The run does not exist.
            RpcFailed: The run has not ended.
        """
        return self._transport.call(self._transport.stub.Delete, pb.DeleteRequest(run_id=run_id)).run

    def run_to_kill(self) -> pb.Run | None:
        """Return the run that a Kill without an id refers to; `None`: there are no runs."""
        owner = self._caller()
        active = to_kill(self.list_runs(states=ACTIVE, owner=owner))
        return active or next(self.list_runs(owner=owner, page_size=1), None)

    def find_run(self, named: str = "") -> pb.Run:
        """Return a run.

        Args:
            named: The run's id or an unambiguous part of it; empty: the newest run.

        Raises:
            RunNotFound: The run does not exist.
            InvalidRequest: The part is ambiguous.
            click.UsageError: The same, found by the command for a server that cannot find runs.
        """
        try:
            return self._get(named)
        except RpcFailed as error:
            if error.code is not grpc.StatusCode.UNIMPLEMENTED:
                raise
        return self._search(named)

    def find_id(self, named: str = "") -> str:
        """Return the id of a run; see `find_run`. Does not call the server for a whole id."""
        return named if _WHOLE_ID.fullmatch(named) else self.find_run(named).run_id

    def events(
        self,
        run_id: str,
        *,
        on_lost: Callable[[], object],
        on_back: Callable[[], object],
        after_sequence: int = 0,
        omit_cell_output: bool = False,
        snapshot_only: bool = False,
    ) -> Iterator[pb.ProgressResponse]:
        """Iterate over the events of a run, with small representations of what cells display.

        Args:
            run_id: The run.
            on_lost: Called when the connection is lost, before the client reconnects.
            on_back: Called with the first message after that.
            after_sequence: As for `Client.progress`.
            omit_cell_output: As for `Client.progress`.
            snapshot_only: As for `Client.progress`.
        """
        request = pb.ProgressRequest(
            run_id=run_id,
            after_sequence=after_sequence,
            omit_cell_output=omit_cell_output,
            snapshot_only=snapshot_only,
            display_data_max_bytes=DISPLAY_BYTES,
        )
        reader = _ReportingProgress(request, reached=self._transport.reached)
        reader.on_lost, reader.on_back = on_lost, on_back
        return self._transport.follow(reader)

    def changes(
        self,
        *,
        labels: Mapping[str, str],
        on_lost: Callable[[], object],
        on_back: Callable[[], object],
    ) -> Generator[pb.WatchResponse, None, None]:
        """Iterate over the changes of runs from now on; the first message is a heartbeat.

        Args:
            labels: Labels that the runs have.
            on_lost: As for `events`.
            on_back: As for `events`.
        """
        reader = _ReportingWatch(pb.WatchRequest(labels=labels), reached=self._transport.reached)
        reader.on_lost, reader.on_back = on_lost, on_back
        return self._transport.follow(reader)

    def _get(self, named: str) -> pb.Run:
        return self._transport.call(self._transport.stub.Get, pb.GetRequest(run_id=named)).run

    def _search(self, named: str) -> pb.Run:
        """Find a run by the list of runs, for servers of version 0.1, which have no Get."""
        damaged: list[str] = []
        if not named:
            run = next(self.list_runs(page_size=1, on_damaged=damaged.append), None)
            # A damaged run is newer than the first valid one; the server then reports the damage.
            return run if run and not damaged else self._of_output(next(iter(damaged), ""))
        if _WHOLE_ID.fullmatch(named):
            found = (run for run in self.list_runs() if run.run_id == named)
            return next(found, None) or self._of_output(named)
        runs = list(self.list_runs(page_size=MAX_PAGE, on_damaged=damaged.append))
        known = [*runs, *(pb.Run(run_id=run_id) for run_id in damaged)]
        matches = [run for run in known if run.run_id == named] or [
            run for run in known if len(named) >= SHORTEST_PART and _is_part(named, run.run_id)
        ]
        if len(matches) > 1:
            shown = ", ".join(run.run_id for run in matches[:_SHOWN_MATCHES])
            more = ", …" if len(matches) > _SHOWN_MATCHES else ""
            raise click.UsageError(f"{named!r} is the beginning of {len(matches)} runs: {shown}{more}.")
        return matches[0] if matches else self._of_output(named)

    def _of_output(self, run_id: str) -> pb.Run:
        """Return the run that comes with its output; the server says what is wrong with the id."""
        request = pb.OutputRequest(run_id=run_id, max_bytes=1)
        return self._transport.call(self._transport.stub.Output, request).run


class _ReportingReader(StreamReader[RequestT, MessageT]):
    """A reader that reports when the connection is lost, and when it is back.

    Attributes:
        on_lost: Called when the connection is lost.
        on_back: Called with the first message after that.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.on_lost: Callable[[], object] = lambda: None
        self.on_back: Callable[[], object] = lambda: None
        self._is_lost = False

    def accept(self, message: MessageT) -> bool:
        if self._is_lost:
            self._is_lost = False
            self.on_back()
        return super().accept(message)

    def pause_after(self, error: RpcFailed, *, has_new_token: bool = False) -> float:
        pause = super().pause_after(error, has_new_token=has_new_token)
        if not (self._is_lost or self.ended):
            self._is_lost = True
            self.on_lost()
        return pause


class _ReportingProgress(_ReportingReader["pb.ProgressRequest", "pb.ProgressResponse"], ProgressReader):
    """A reader of a run."""


class _ReportingWatch(_ReportingReader["pb.WatchRequest", "pb.WatchResponse"], WatchReader):
    """A reader of the changes of runs, which passes on heartbeats as well."""

    def _is_news(self, message: pb.WatchResponse) -> bool:
        super()._is_news(message)
        return True


def _is_part(named: str, run_id: str) -> bool:
    return run_id.startswith(named) or run_id.rpartition("-")[2].startswith(named)
