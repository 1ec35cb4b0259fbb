"""The guarantees of Watch as one executable rule book, and the shortest ways to read a stream of it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc
from tests.support.calls import SECONDS
from tests.support.progress import TERMINAL, BrokenStreamError

DELETED = 1000
"""Stands for the state of a run that was deleted."""


class WatchValidator:
    """Sees every message of one watcher, over as many streams as it takes, and raises where one is wrong.

    What a watcher without `include_existing` does not know, it learns from the messages.
    """

    def __init__(self, request: pb.WatchRequest) -> None:
        self._request = request
        self._awaits_existing = request.include_existing and not request.cursor
        # A cursor may be of a message before the end of the existing runs.
        self._may_end_existing = request.include_existing or bool(request.cursor)
        self._states: dict[str, int] = {}
        self._cursors: set[str] = set()

    def see(self, message: pb.WatchResponse) -> None:
        """Takes the next message."""
        kind = message.WhichOneof("change")
        self._require(bool(message.cursor), message, "each message has a cursor")
        self._require(kind is not None, message, "a message tells what happened")
        if kind == "heartbeat":
            return
        self._require(message.cursor not in self._cursors, message, "no message comes twice")
        self._cursors.add(message.cursor)
        match kind:
            case "run":
                self._run(message)
            case "deleted_run_id":
                self._deleted(message)
            case "existing_sent":
                rule = "existing runs end once, if they were asked for"
                self._require(self._may_end_existing, message, rule)
                self._awaits_existing = self._may_end_existing = False

    def _require(self, holds: bool, message: pb.WatchResponse, rule: str) -> None:
        if not holds:
            raise BrokenStreamError(f"{rule}; after {self._states} came: {message}")

    def _run(self, message: pb.WatchResponse) -> None:
        run, asked = message.run, self._request
        last = self._states.get(run.run_id, pb.RUN_STATE_UNSPECIFIED)
        self._require(bool(run.run_id), message, "a run has an id")
        self._require(run.state > last, message, "states only move forward")
        self._require(last not in TERMINAL, message, "there is one terminal state")
        self._require(not (last and self._awaits_existing), message, "an existing run comes once")
        self._require(run.state in asked.states or not asked.states, message, "the state was asked for")
        self._require(asked.labels.items() <= run.labels.items(), message, "the labels were asked for")
        self._require(asked.owner in ("", run.owner), message, "the owner was asked for")
        self._require(run.HasField("failure") <= (run.state in TERMINAL), message, "a failure is of an end")
        self._states[run.run_id] = run.state

    def _deleted(self, message: pb.WatchResponse) -> None:
        run_id = message.deleted_run_id
        self._require(not self._awaits_existing, message, "deletions come after the existing runs")
        self._require(self._states.get(run_id) != DELETED, message, "a run is deleted once")
        self._states[run_id] = DELETED


def checked_watch(stream: Iterable[pb.WatchResponse], request: pb.WatchRequest) -> Iterator[pb.WatchResponse]:
    """The same stream, through the validator."""
    validator = WatchValidator(request)
    for message in stream:
        validator.see(message)
        yield message


class Watcher:
    """One stream of changes.

    Attributes:
        cursor: That of the last message.
        seen: All messages but heartbeats.
    """

    def __init__(self, stream: Iterable[pb.WatchResponse], request: pb.WatchRequest) -> None:
        self._messages = checked_watch(stream, request)
        self.cursor = request.cursor
        self.seen: list[pb.WatchResponse] = []

    def message(self) -> pb.WatchResponse:
        """The next message."""
        message = next(self._messages)
        self.cursor = message.cursor
        if not message.HasField("heartbeat"):
            self.seen.append(message)
        return message

    def change(self) -> pb.WatchResponse:
        """The next message but heartbeats."""
        while (message := self.message()).HasField("heartbeat"):
            pass
        return message

    def take(self, number: int) -> list[pb.WatchResponse]:
        """So many messages but heartbeats."""
        return [self.change() for _ in range(number)]

    def existing(self) -> list[pb.Run]:
        """The runs that exist, up to the message that ends them."""
        runs: list[pb.Run] = []
        while not (message := self.change()).HasField("existing_sent"):
            runs.append(message.run)
        return runs

    def until_end(self, run_id: str) -> list[int]:
        """The states of a run, up to its end; changes of other runs are passed over."""
        states: list[int] = []
        while not states or states[-1] not in TERMINAL:
            message = self.change()
            if message.run.run_id == run_id:
                states.append(message.run.state)
        return states


@contextmanager
def watching(stub: rpc.NotebookRunnerStub, metadata: Any = None, **fields: Any) -> Iterator[Watcher]:
    """A stream that has begun, unless it continues from a cursor."""
    request = pb.WatchRequest(**fields)
    stream = stub.Watch(request, timeout=2 * SECONDS, metadata=metadata)
    try:
        watcher = Watcher(stream, request)
        if not (request.cursor or request.include_existing):
            assert watcher.message().HasField("heartbeat")
        yield watcher
    finally:
        stream.cancel()
