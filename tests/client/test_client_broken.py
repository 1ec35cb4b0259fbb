"""What a real server cannot do on demand: connections that break and servers that answer in odd ways."""

import subprocess
import sys
import threading
from pathlib import Path

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from notebook_runner import AccessDenied, Client, NotebookRunnerError, RpcFailed, RunFailed, Unavailable
from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.fake_server import (
    ENDED,
    FAILED,
    RUNNING,
    CallStatus,
    Collect,
    FakeServer,
    beat,
    changed,
    printed,
)

QUEUED = pb.Run(run_id="q", state=pb.RUN_STATE_QUEUED)
PROGRAM = Path(sys.executable).with_name("notebook-runner")
MORE = "more"
BOTH = pytest.mark.parametrize("collect", ["sync", "async"], indirect=True)


def sequences(events: list[pb.ProgressResponse]) -> list[int]:
    """The sequence numbers of events."""
    return [event.sequence for event in events]


@BOTH
@pytest.mark.parametrize("code", ["UNAVAILABLE", "INTERNAL", "UNKNOWN", "CANCELLED"])
def test_progress_goes_on_after_a_break(fake: FakeServer, collect: Collect, code: str) -> None:
    """The loop sees each event once and in order, over three connections."""
    status = grpc.StatusCode[code]
    fake.answers("Progress", changed(1, RUNNING), printed(2), beat(2), status)
    fake.answers("Progress", beat(2), status)
    fake.answers("Progress", printed(3), beat(3), changed(4, ENDED))
    assert sequences(collect("progress", "r")) == [1, 2, 3, 4]
    assert [request.after_sequence for request in fake.asked] == [0, 2, 2]


@BOTH
def test_progress_survives_a_restarted_server(fake: FakeServer, collect: Collect) -> None:
    """A server that dies in mid stream and comes back is not seen by the loop."""

    def restart() -> pb.ProgressResponse:
        # In another thread than the server's own, which stop() waits for.
        threading.Thread(target=fake.restart).start()
        return printed(2)

    fake.answers("Progress", changed(1, RUNNING), restart, grpc.StatusCode.UNAVAILABLE)
    fake.answers("Progress", printed(3), changed(4, ENDED))
    fake.answers("Progress", printed(3), changed(4, ENDED))
    assert sequences(collect("progress", "r"))[-2:] == [3, 4]


@BOTH
def test_progress_ends_when_the_connection_breaks_after_the_end(fake: FakeServer, collect: Collect) -> None:
    """A break after the terminal event asks for nothing more."""
    fake.answers("Progress", changed(1, ENDED), grpc.StatusCode.UNAVAILABLE)
    assert sequences(collect("progress", "r")) == [1]
    assert len(fake.asked) == 1


@BOTH
def test_progress_gives_up_in_the_end(fake: FakeServer, collect: Collect) -> None:
    """When the connection does not come back in time, the loop sees Unavailable."""
    fake.answers("Progress", changed(1, RUNNING), grpc.StatusCode.UNAVAILABLE)
    with pytest.raises(Unavailable, match="scripted"):
        collect("progress", "r", reconnect_timeout=0)


@BOTH
def test_progress_follows_the_run_that_was_newest(fake: FakeServer, collect: Collect) -> None:
    """An empty id is looked up once, so that a reconnect cannot meet a newer run."""
    fake.answers("List", pb.ListResponse(runs=[RUNNING]))
    fake.answers("Progress", changed(1, RUNNING), grpc.StatusCode.UNAVAILABLE)
    fake.answers("Progress", changed(2, ENDED))
    assert sequences(collect("progress")) == [1, 2]
    assert [request.run_id for request in fake.asked[1:]] == ["r", "r"]


@BOTH
def test_start_is_repeated_with_the_same_id(fake: FakeServer, collect: Collect) -> None:
    """A start that met a server on its way up is sent again, as the same request."""
    fake.answers("Start", grpc.StatusCode.UNAVAILABLE)
    fake.answers("Start", pb.StartResponse(run=RUNNING))
    # More than gRPC would keep for a retry by itself.
    assert collect("start", b"x" * 2_000_000) == [RUNNING]
    first, second = fake.asked
    assert first == second
    assert first.request_id


@BOTH
@pytest.mark.parametrize("code", ["FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"])
def test_other_statuses_are_not_repeated(fake: FakeServer, collect: Collect, code: str) -> None:
    """What neither the way to the server nor a server on its way up answers is not worth another attempt."""
    fake.answers("Start", grpc.StatusCode[code])
    with pytest.raises(RpcFailed) as caught:
        collect("start", b"{}")
    assert caught.value.code is grpc.StatusCode[code]
    assert len(fake.asked) == 1


ANSWERS = {
    "Start": ("start", (b"{}",), pb.StartResponse(run=RUNNING), RUNNING),
    "Output": ("output", ("r",), pb.OutputResponse(content=b"x", next_offset=1, total_bytes=1), b"x"),
    "Kill": ("kill", ("r",), pb.KillResponse(run=ENDED), pb.KillResponse(run=ENDED)),
    "List": ("list", (), pb.ListResponse(runs=[ENDED]), ENDED),
    "Get": ("get", ("r",), pb.GetResponse(run=RUNNING), RUNNING),
    "Delete": ("delete", ("r",), pb.DeleteResponse(run=ENDED), ENDED),
    "Info": ("info", (), pb.InfoResponse(version="1"), pb.InfoResponse(version="1")),
}


@BOTH
@pytest.mark.parametrize("code", ["INTERNAL", "UNKNOWN", "CANCELLED"])
@pytest.mark.parametrize("method", ANSWERS)
def test_a_call_that_the_way_to_the_server_cut_is_repeated(
    fake: FakeServer, collect: Collect, method: str, code: str
) -> None:
    """A status without a reason is not the server's: the same request is sent again, and answered."""
    name, arguments, answer, result = ANSWERS[method]
    for _ in range(2):
        fake.answers(method, grpc.StatusCode[code])
    fake.answers(method, answer)
    assert collect(name, *arguments) == [result]
    assert len(fake.asked) == 3
    assert fake.asked[0] == fake.asked[1] == fake.asked[2]


@BOTH
@pytest.mark.parametrize("code", ["INTERNAL", "UNKNOWN", "CANCELLED"])
def test_what_the_server_itself_answers_is_not_repeated(
    fake: FakeServer, collect: Collect, code: str
) -> None:
    """The same statuses with a reason are the server's own answer."""
    info = error_details_pb2.ErrorInfo(domain="notebook-runner", reason="INTERNAL_ERROR")
    packed = any_pb2.Any()
    packed.Pack(info)
    status = status_pb2.Status(code=grpc.StatusCode[code].value[0], details=[packed])
    fake.answers("Start", CallStatus(grpc.StatusCode[code], status.SerializeToString()))
    with pytest.raises(RpcFailed) as caught:
        collect("start", b"{}")
    assert caught.value.reason == "INTERNAL_ERROR"
    assert len(fake.asked) == 1


@BOTH
def test_a_way_that_stays_cut_is_given_up(fake: FakeServer, collect: Collect) -> None:
    """After five attempts, or when the call's time is over, the last error is the caller's."""
    for _ in range(6):
        fake.answers("Info", grpc.StatusCode.INTERNAL)
    with pytest.raises(RpcFailed, match="scripted") as caught:
        collect("info")
    assert caught.value.code is grpc.StatusCode.INTERNAL
    assert len(fake.asked) == 5


def test_no_attempt_begins_after_the_time_of_the_call(fake: FakeServer) -> None:
    """The time of a call is that of all its attempts together."""
    fake.answers("Info", grpc.StatusCode.INTERNAL)
    with Client(fake.target, timeout=0.05) as client, pytest.raises(RpcFailed):
        client.info()
    assert len(fake.asked) <= 1


@BOTH
def test_run_raises_how_the_run_ended(fake: FakeServer, collect: Collect) -> None:
    """A run that fails is an exception of `run`, over a break of the connection."""
    fake.answers("Start", pb.StartResponse(run=RUNNING))
    fake.answers("Progress", changed(1, RUNNING), grpc.StatusCode.UNAVAILABLE)
    fake.answers("Progress", changed(2, FAILED))
    with pytest.raises(RunFailed, match="run r failed: no") as caught:
        collect("run", b"{}")
    assert caught.value.run.pb == FAILED


@BOTH
def test_wait_for_a_run_that_nothing_is_told_of(fake: FakeServer, collect: Collect) -> None:
    """A stream that ends without a word is an error and no run."""
    fake.answers("Progress")
    with pytest.raises(NotebookRunnerError, match="sent no events for run"):
        collect("wait", "r")


@BOTH
def test_kill_ends_the_run_that_was_newest(fake: FakeServer, collect: Collect) -> None:
    """An empty id is looked up first, so that a repeated Kill cannot end a newer run."""
    fake.answers("List", pb.ListResponse(runs=[RUNNING]))
    fake.answers("Kill", grpc.StatusCode.UNAVAILABLE)
    fake.answers("Kill", pb.KillResponse(run=ENDED, processes_ended=2))
    assert collect("kill", grace_period=1.5)[0].processes_ended == 2
    assert [request.run_id for request in fake.asked[1:]] == ["r", "r"]


@BOTH
@pytest.mark.parametrize(
    ("active", "ended"),
    [
        ([QUEUED, RUNNING, pb.Run(run_id="old", state=pb.RUN_STATE_RUNNING)], "r"),
        ([QUEUED, pb.Run(run_id="x", state=pb.RUN_STATE_KILLING)], "x"),
        ([QUEUED, pb.Run(run_id="old", state=pb.RUN_STATE_QUEUED)], "q"),
        ([], "newest"),
    ],
)
def test_kill_without_an_id(fake: FakeServer, collect: Collect, active: list[pb.Run], ended: str) -> None:
    """It ends the newest run that has a worker, else the newest queued one, else it asks for the newest."""
    fake.answers("List", pb.ListResponse(runs=active))
    if not active:
        fake.answers("List", pb.ListResponse(runs=[pb.Run(run_id="newest")]))
    fake.answers("Kill", pb.KillResponse(run=ENDED, already_ended=True))
    assert collect("kill")[0].already_ended
    assert fake.asked[-1].run_id == ended


@BOTH
def test_list_asks_for_all_pages(fake: FakeServer, collect: Collect) -> None:
    """The iterator goes on with the token of each page, and the filters stay."""
    fake.answers("List", pb.ListResponse(runs=[RUNNING, FAILED], next_page_token="2"))  # noqa: S106 - opens no door
    fake.answers("List", pb.ListResponse(runs=[ENDED]))
    assert collect("list", states=["running"], labels={"a": "b"}) == [RUNNING, FAILED, ENDED]
    assert [request.page_token for request in fake.asked] == ["", "2"]
    assert fake.asked[0].labels == fake.asked[1].labels == {"a": "b"}


@BOTH
def test_info_is_asked_again(fake: FakeServer, collect: Collect) -> None:
    """A server on its way up is asked again what it is."""
    told = pb.InfoResponse(version="1.2.3", kernels=[pb.KernelInfo(name="ir")])
    fake.answers("Info", grpc.StatusCode.UNAVAILABLE)
    fake.answers("Info", told)
    assert collect("info") == [told]


@BOTH
def test_output_without_input_on_every_page(fake: FakeServer, collect: Collect) -> None:
    """Each page is asked for without the code."""
    fake.answers("Output", pb.OutputResponse(content=b"a", next_offset=1, total_bytes=2))
    fake.answers("Output", pb.OutputResponse(content=b"b", next_offset=2, total_bytes=2))
    assert collect("output", "r", format="html", omit_input=True) == [b"ab"]
    assert [(request.format, request.omit_input) for request in fake.asked] == [("html", True)] * 2


@pytest.mark.parametrize(
    "method", ["start", "progress", "output", "notebook", "kill", "list", "wait", "info"]
)
@BOTH
def test_no_bare_grpc_error_reaches_the_caller(fake: FakeServer, collect: Collect, method: str) -> None:
    """Whatever the call, a refusal comes as the client's own exception."""
    name = {"wait": "Progress", "notebook": "Output"}.get(method, method.title())
    fake.answers(name, grpc.StatusCode.PERMISSION_DENIED)
    with pytest.raises(AccessDenied):
        collect(method, *(() if method in {"start", "list", "info"} else ("r",)))


@BOTH
def test_nothing_there_to_talk_to(fake: FakeServer, collect: Collect) -> None:
    """A server that is not there is Unavailable after a few attempts, also for a stream."""
    fake.stop()
    with pytest.raises(Unavailable, match=r"Cannot reach .*: connection refused"):
        collect("progress", "r", reconnect_timeout=0.1)


@BOTH
def test_damaged_runs_are_named(fake: FakeServer, collect: Collect) -> None:
    """What List names beside the runs reaches the caller, from every page."""
    fake.answers("List", pb.ListResponse(damaged_run_ids=["x"], next_page_token=MORE))
    fake.answers("List", pb.ListResponse(runs=[RUNNING], damaged_run_ids=["y"]))
    damaged: list[str] = []
    assert [run.run_id for run in collect("list", on_damaged=damaged.append)] == ["r"]
    assert damaged == ["x", "y"]


@BOTH
def test_the_newest_run_may_be_damaged(fake: FakeServer, collect: Collect) -> None:
    """The server is asked about that one, and says what is wrong with it."""
    fake.answers("List", pb.ListResponse(damaged_run_ids=["x"], next_page_token=MORE))
    fake.answers("Progress", grpc.StatusCode.DATA_LOSS)
    with pytest.raises(RpcFailed):
        collect("progress")
    assert [request.run_id for request in fake.asked[1:]] == ["x"]


def test_the_command_names_damaged_runs(fake: FakeServer) -> None:
    """`list` on standard error, beside the table; where a command takes the newest, that one."""
    fake.answers("List", pb.ListResponse(runs=[RUNNING], damaged_run_ids=["x", "y\x1b"]))
    done = _command(fake, "list", "--json")
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr.startswith("2 runs are damaged: x, y")
    assert "docs/how-to/damaged.md" in done.stderr
    assert "\x1b" not in done.stderr
    fake.answers("List", pb.ListResponse(damaged_run_ids=["x"], next_page_token=MORE))
    fake.answers("List", pb.ListResponse(runs=[RUNNING]))
    fake.answers("Progress", grpc.StatusCode.DATA_LOSS)
    assert _command(fake, "watch").returncode != 0
    assert fake.asked[-1].run_id == "x"


def _command(fake: FakeServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(PROGRAM), "--target", fake.target, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True)
