"""Watch: each change of each run once and in order, from any cursor, as far as it was asked for."""

from functools import partial
from typing import Any
from uuid import uuid4

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, follow, inline, perform, start
from tests.support.errors import refused
from tests.support.gate import Gate
from tests.support.server import Server
from tests.support.watching import WatchValidator, watching

INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
EXPIRED = (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED")
TOO_MANY = (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS")
SUCCESS = [pb.RUN_STATE_QUEUED, pb.RUN_STATE_STARTING, pb.RUN_STATE_RUNNING, pb.RUN_STATE_SUCCEEDED]


@pytest.fixture
def labels() -> dict[str, str]:
    """Marks the runs of a test, beside which others may be executed."""
    return {"watched": uuid4().hex}


def delete(server: Server, run_id: str) -> None:
    """Deletes a run."""
    server.stub.Delete(pb.DeleteRequest(run_id=run_id), timeout=SECONDS)


def test_each_state_as_it_comes(server: Server, labels: dict[str, str]) -> None:
    """A watcher gets each state of a run once, with the run as Progress has it, and its deletion."""
    with watching(server.stub, labels=labels) as watcher:
        ended = perform(server.stub, inline("1", labels=labels))
        changes = watcher.take(4)
        # Not before: a watcher that is behind gets the deletion only.
        delete(server, ended.run.run_id)
        deletion = watcher.change()
    assert [change.run.state for change in changes] == SUCCESS
    states = [event.run_changed for event in ended.events if event.HasField("run_changed")]
    assert [change.run for change in changes] == states
    assert deletion.deleted_run_id == ended.run.run_id


def test_existing_runs_come_first(server: Server, labels: dict[str, str], gate: Gate) -> None:
    """The runs that there are, oldest first, each in its state; then what happens to them."""
    first = perform(server.stub, inline("1 / 0", labels=labels)).run
    second = start(server.stub, inline("1", gate.source, labels=labels))
    with watching(server.stub, labels=labels, include_existing=True) as early:
        while early.change().run.state != pb.RUN_STATE_RUNNING:
            pass
    with watching(server.stub, labels=labels, include_existing=True) as watcher:
        existing = watcher.existing()
        assert [run.run_id for run in existing] == [first.run_id, second.run_id]
        assert [run.state for run in existing] == [pb.RUN_STATE_FAILED, pb.RUN_STATE_RUNNING]
        assert existing[0] == first
        gate.open()
        assert watcher.until_end(second.run_id) == [pb.RUN_STATE_SUCCEEDED]


def test_each_cursor_continues_with_the_rest(server: Server, labels: dict[str, str]) -> None:
    """Whichever message was the last, existing runs included, the next stream has exactly what came after."""
    for _ in range(2):
        perform(server.stub, inline("1", labels=labels))
    with watching(server.stub, labels=labels, include_existing=True) as watcher:
        watcher.existing()
        perform(server.stub, inline("1", labels=labels))
        watcher.take(4)
        whole = watcher.seen
    assert len(whole) == 7
    for number, message in enumerate(whole):
        fields = {"cursor": message.cursor, "labels": labels, "include_existing": number % 2 == 0}
        with watching(server.stub, **fields) as rest:
            assert rest.take(len(whole) - number - 1) == whole[number + 1 :]


def test_filters(server: Server, labels: dict[str, str]) -> None:
    """Only what was asked for comes, of existing runs and of changes; a deletion has no state."""
    states = [pb.RUN_STATE_FAILED, pb.RUN_STATE_RUNNING]
    bad = perform(server.stub, inline("1 / 0", labels={**labels, "n": "1"})).run
    perform(server.stub, inline("1", labels=labels))
    with (
        watching(server.stub, labels=labels, states=states, include_existing=True) as by_state,
        watching(server.stub, labels={**labels, "n": "1"}, include_existing=True) as by_label,
        watching(server.stub, labels=labels, owner="nobody", include_existing=True) as by_owner,
    ):
        assert [run.run_id for run in by_state.existing()] == [bad.run_id]
        assert [run.run_id for run in by_label.existing()] == [bad.run_id]
        assert by_owner.existing() == []
        other = perform(server.stub, inline("1 / 0", labels=labels)).run
        changes = by_state.take(2)
        assert [one.run.state for one in changes] == [pb.RUN_STATE_RUNNING, pb.RUN_STATE_FAILED]
        delete(server, other.run_id)
        delete(server, bad.run_id)
        deletions = by_state.take(2)
        assert [one.deleted_run_id for one in deletions] == [other.run_id, bad.run_id]
        assert by_label.change().deleted_run_id == bad.run_id


def test_who_was_away_gets_the_deletion_only(server: Server, labels: dict[str, str]) -> None:
    """Of a run that came and went meanwhile, the deletion is left."""
    with watching(server.stub, labels=labels) as watcher:
        cursor = watcher.cursor
    gone = perform(server.stub, inline("1", labels=labels)).run
    delete(server, gone.run_id)
    kept = perform(server.stub, inline("1", labels=labels)).run
    with watching(server.stub, labels=labels, cursor=cursor) as watcher:
        assert watcher.change().deleted_run_id == gone.run_id
        assert watcher.until_end(kept.run_id) == SUCCESS


@pytest.mark.parametrize(
    "cursor", ["x", "", "é", "\0", "A" * 10_000, "MTox", "eDoxOg", "eDotMTo=", "eDowMTo="]
)
def test_what_is_no_cursor_is_refused(server: Server, cursor: str) -> None:
    """A text that no message had is an error of the request, and one of another history has expired."""
    request = pb.WatchRequest(cursor=cursor or "=")
    assert refused(lambda: next(server.stub.Watch(request, timeout=SECONDS))).kind == INVALID


def test_a_cursor_of_another_history(server: Server, make_server: Any) -> None:
    """It has expired, and the error says what to do."""
    with watching(server.stub) as watcher:
        cursor = watcher.cursor
    other = make_server()
    refusal = refused(lambda: next(other.stub.Watch(pb.WatchRequest(cursor=cursor), timeout=SECONDS)))
    assert refusal.kind == EXPIRED
    assert "without a cursor" in refusal.message


@pytest.mark.parametrize(
    "request_",
    [
        pb.WatchRequest(states=[pb.RUN_STATE_UNSPECIFIED]),
        pb.WatchRequest(states=[pb.RUN_STATE_QUEUED] * 65),
        pb.WatchRequest(labels={str(number): "" for number in range(65)}),
    ],
    ids=["state", "states", "labels"],
)
def test_bad_filters(server: Server, request_: pb.WatchRequest) -> None:
    """They are refused as those of List are."""
    assert refused(lambda: next(server.stub.Watch(request_, timeout=SECONDS))).kind == INVALID


def test_heartbeats_streams_and_the_end_of_the_server(make_server: Any) -> None:
    """Heartbeats come where nothing else does; streams are counted; a stop ends them after all changes."""
    server = make_server("--heartbeat-interval", "0.05", "--max-streams", "2", "--drain-timeout", "0")
    with watching(server.stub, owner="nobody") as idle, watching(server.stub) as watcher:
        for message in (idle.message(), idle.message()):
            assert message.HasField("heartbeat")
        further = server.stub.Watch(pb.WatchRequest(), timeout=SECONDS)
        assert refused(partial(next, further)).kind == TOO_MANY
        progress = server.stub.Progress(pb.ProgressRequest(), timeout=SECONDS)
        assert refused(partial(next, progress)).kind == TOO_MANY
        run = start(server.stub, inline("import time; time.sleep(600)"))
        while watcher.change().run.state != pb.RUN_STATE_RUNNING:
            pass
        server.process.terminate()
        assert watcher.until_end(run.run_id) == [pb.RUN_STATE_KILLING, pb.RUN_STATE_INTERRUPTED]
        refusal = refused(partial(watcher.take, 1))
        assert refusal.kind == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")


def test_a_sequence_ahead(server: Server) -> None:
    """A history that has no such event says so with a reason of its own, and with its last event."""
    ended = perform(server.stub, inline("1"))
    last = ended.events[-1].sequence
    refusal = refused(lambda: list(follow(server.stub, ended.run.run_id, after_sequence=last + 1)))
    assert refusal.kind == (grpc.StatusCode.OUT_OF_RANGE, "SEQUENCE_AHEAD")
    assert refusal.metadata == {"last_sequence": str(last)}


GOOD = [
    pb.WatchResponse(cursor="1", run=pb.Run(run_id="a", state=pb.RUN_STATE_QUEUED)),
    pb.WatchResponse(cursor="2", run=pb.Run(run_id="b", state=pb.RUN_STATE_SUCCEEDED)),
    pb.WatchResponse(cursor="3", existing_sent=pb.ExistingSent()),
    pb.WatchResponse(cursor="3", heartbeat=pb.Heartbeat()),
    pb.WatchResponse(cursor="4", run=pb.Run(run_id="a", state=pb.RUN_STATE_RUNNING)),
    pb.WatchResponse(cursor="5", deleted_run_id="b"),
]


def test_the_validator_takes_a_good_stream() -> None:
    """What the contract allows is no error."""
    validator = WatchValidator(pb.WatchRequest(include_existing=True))
    for message in GOOD:
        validator.see(message)


@pytest.mark.parametrize(
    "bad",
    [
        pb.WatchResponse(run=pb.Run(run_id="c", state=pb.RUN_STATE_QUEUED)),
        pb.WatchResponse(cursor="6"),
        pb.WatchResponse(cursor="4", run=pb.Run(run_id="c", state=pb.RUN_STATE_QUEUED)),
        pb.WatchResponse(cursor="6", run=pb.Run(run_id="a", state=pb.RUN_STATE_RUNNING)),
        pb.WatchResponse(cursor="6", run=pb.Run(run_id="b", state=pb.RUN_STATE_INTERRUPTED)),
        pb.WatchResponse(cursor="6", deleted_run_id="b"),
        pb.WatchResponse(cursor="6", existing_sent=pb.ExistingSent()),
    ],
)
def test_the_validator_refuses_a_bad_message(bad: pb.WatchResponse) -> None:
    """Each rule catches what breaks it."""
    validator = WatchValidator(pb.WatchRequest(include_existing=True))
    for message in GOOD:
        validator.see(message)
    with pytest.raises(AssertionError, match="came"):
        validator.see(bad)
