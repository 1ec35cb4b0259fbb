"""`watch` of both clients: typed changes, each once, over as many connections as it takes."""

import json
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from google.protobuf import any_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2

from notebook_runner import (
    Change,
    Client,
    CursorExpired,
    ExistingSent,
    RpcFailed,
    RunChange,
    RunDeleted,
    RunExpired,
    RunState,
)
from notebook_runner.changes import change_of
from notebook_runner.cli import main
from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.fake_server import CallStatus, Collect, FakeServer

pytestmark = pytest.mark.integration

BOTH = pytest.mark.parametrize("collect", ["sync", "async"], indirect=True)
QUEUED = pb.Run(run_id="a", name="report", state=pb.RUN_STATE_QUEUED, create_time=Timestamp(seconds=10))
RUNNING = pb.Run(run_id="a", name="report", state=pb.RUN_STATE_RUNNING, create_time=Timestamp(seconds=10))
ENDED = pb.Run(run_id="b", name="other", state=pb.RUN_STATE_SUCCEEDED, create_time=Timestamp(seconds=5))
BEAT = pb.WatchResponse(cursor="0", heartbeat=pb.Heartbeat())


def in_state(cursor: str, run: pb.Run) -> pb.WatchResponse:
    """The message of a run's state."""
    return pb.WatchResponse(cursor=cursor, run=run)


def refusal(code: grpc.StatusCode, reason: str) -> CallStatus:
    """A status of the contract."""
    packed = status_pb2.Status(code=code.value[0], message="sentence")
    packed.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="notebook-runner"))
    assert isinstance(packed.details[0], any_pb2.Any)
    return CallStatus(code, packed.SerializeToString())


EXPIRED = refusal(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED")


def test_changes_are_typed() -> None:
    """Each kind of message is a class, and one of a newer server is the base."""
    changes = [
        change_of(message)
        for message in (
            in_state("1", RUNNING),
            pb.WatchResponse(cursor="2", deleted_run_id="b\x1b"),
            pb.WatchResponse(cursor="3", existing_sent=pb.ExistingSent()),
            pb.WatchResponse(cursor="4"),
        )
    ]
    assert [type(change) for change in changes] == [RunChange, RunDeleted, ExistingSent, Change]
    assert [change.cursor for change in changes] == ["1", "2", "3", "4"]
    match changes[0], changes[1]:
        case RunChange(run), RunDeleted(run_id):
            assert (run.id, run.state, run_id) == ("a", RunState.RUNNING, "b\x1b")
    assert "running" in str(changes[0])
    assert "\x1b" not in str(changes[1])


@BOTH
def test_a_watch_continues_after_breaks(fake: FakeServer, collect: Collect) -> None:
    """The next connection asks from the last cursor, that of a heartbeat included, with the same filters."""
    fake.answers("Watch", in_state("1", QUEUED), grpc.StatusCode.UNAVAILABLE)
    fake.answers("Watch", pb.WatchResponse(cursor="2", heartbeat=pb.Heartbeat()), grpc.StatusCode.INTERNAL)
    fake.answers("Watch", in_state("3", RUNNING), pb.WatchResponse(cursor="4", deleted_run_id="x"))
    found = collect("watch", state="running", label={"a": "b"}, owner="ada")
    assert [message.cursor for message in found] == ["1", "3", "4"]
    assert [request.cursor for request in fake.asked] == ["", "1", "2"]
    assert {(request.include_existing, request.owner, *request.states) for request in fake.asked} == {
        (True, "ada", pb.RUN_STATE_RUNNING)
    }
    assert [dict(request.labels) for request in fake.asked] == [{"a": "b"}] * 3


@BOTH
def test_an_expired_cursor(fake: FakeServer, collect: Collect) -> None:
    """It is an error of its own, from the first stream and from a later one."""
    fake.answers("Watch", EXPIRED)
    with pytest.raises(CursorExpired, match="CURSOR_EXPIRED"):
        collect("watch", cursor="old", existing=False)
    assert fake.asked[0] == pb.WatchRequest(cursor="old")
    fake.answers("Watch", in_state("1", QUEUED), grpc.StatusCode.UNAVAILABLE)
    fake.answers("Watch", EXPIRED)
    with pytest.raises(CursorExpired):
        collect("watch")


@BOTH
def test_reasons_of_progress(fake: FakeServer, collect: Collect) -> None:
    """A sequence ahead and an expired run end the iterator at once, each with its own error."""
    fake.answers("Progress", refusal(grpc.StatusCode.OUT_OF_RANGE, "SEQUENCE_AHEAD"))
    with pytest.raises(RpcFailed) as caught:
        collect("progress", "r", after_sequence=9)
    assert caught.value.reason == "SEQUENCE_AHEAD"
    fake.answers("Progress", refusal(grpc.StatusCode.NOT_FOUND, "RUN_EXPIRED"))
    with pytest.raises(RunExpired):
        collect("progress", "r")
    assert len(fake.asked) == 2


@BOTH
def test_a_kill_without_waiting(fake: FakeServer, collect: Collect) -> None:
    """The request says so, and the result is the run as it is."""
    fake.answers("Kill", pb.KillResponse(run=pb.Run(run_id="a", state=pb.RUN_STATE_KILLING)))
    (answer,) = collect("kill", "a", grace_period=60, wait=False)
    assert answer.run.state == pb.RUN_STATE_KILLING
    assert fake.asked[0].no_wait
    assert fake.asked[0].grace_period.seconds == 60


def command(fake: FakeServer, *arguments: str) -> Any:
    """Calls the command."""
    return CliRunner().invoke(main, ["--target", fake.target, *arguments])


def test_the_command_that_watches(fake: FakeServer) -> None:
    """A line for each run of the list, oldest first, and for each change that the list does not have."""
    for _ in range(2):
        fake.answers(
            "Watch",
            BEAT,
            in_state("1", QUEUED),
            in_state("2", RUNNING),
            pb.WatchResponse(cursor="3", deleted_run_id="b"),
            BEAT,
        )
        fake.answers("List", pb.ListResponse(runs=[QUEUED, ENDED]))
    result = command(fake, "list", "--watch", "--label", "a=b")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "run b succeeded: other",
        "run a queued: report",
        "run a running: report",
        "run b deleted",
    ]
    assert [dict(request.labels) for request in fake.asked] == [{"a": "b"}] * 2
    result = command(fake, "list", "--watch", "--json", "--state", "running")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(one["cursor"], one.get("run", {}).get("run_id")) for one in found] == [("2", "a"), ("3", None)]


def test_the_command_that_kills_without_waiting(fake: FakeServer) -> None:
    """It says that the run is being killed."""
    fake.answers(
        "Kill", pb.KillResponse(run=pb.Run(run_id="20260101-000000-0123abcd", state=pb.RUN_STATE_KILLING))
    )
    result = command(fake, "kill", "20260101-000000-0123abcd", "--no-wait", "--grace-period", "1h")
    assert result.stdout == "run 20260101-000000-0123abcd is being killed\n"
    assert fake.asked[0].no_wait


def test_a_watch_can_be_left(fake: FakeServer) -> None:
    """An iterator that is closed cancels its stream."""
    fake.answers("Watch", in_state("1", QUEUED), in_state("2", RUNNING))
    with Client(fake.target) as client:
        changes = client.watch()
        assert next(changes).cursor == "1"
        changes.close()  # type: ignore[attr-defined] # a generator
        assert list(changes) == []
