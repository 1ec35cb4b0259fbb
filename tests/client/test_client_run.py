"""Runs, events and answers as typed objects, from messages alone."""

import asyncio
import json
import pickle
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

import notebook_runner
from notebook_runner import (
    AsyncRun,
    CellFinished,
    CellOutcome,
    CellRaised,
    CellStarted,
    Client,
    Displayed,
    Event,
    FailureCause,
    KillResult,
    NotebookRunnerError,
    OutputCleared,
    OutputCut,
    Printed,
    ResultValue,
    RpcFailed,
    Run,
    RunFailed,
    RunSnapshot,
    RunState,
    StateChanged,
    _states,
)
from notebook_runner.events import event_of
from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.fake_server import ENDED, FAILED, RUNNING, Collect, FakeServer, changed

BOTH = pytest.mark.parametrize("collect", ["sync", "async"], indirect=True)

START = datetime(2026, 11, 29, 12, 0, 0, 250_000, tzinfo=UTC)
FULL = pb.Run(
    run_id="20261129-120000-abcd1234",
    request_id="mine",
    name="sales",
    state=pb.RUN_STATE_TIMED_OUT,
    create_time=Timestamp(seconds=int(START.timestamp()), nanos=250_000_000),
    start_time=Timestamp(seconds=int(START.timestamp()) + 1, nanos=250_000_000),
    end_time=Timestamp(seconds=int(START.timestamp()) + 3, nanos=750_000_000),
    cells_total=4,
    cells_completed=3,
    kernel_name="python3",
    parameters_json='{"b": 1.0, "a": [9007199254740993, NaN]}',
    results_json='{"total": 42, "share": 0.5}',
    labels={"team": "a"},
    notebook_sha256="ab" * 32,
    peak_memory_bytes=2**20,
    cpu_time=Duration(seconds=1, nanos=500_000_000),
    failure=pb.Failure(
        cause=pb.FAILURE_CAUSE_CELL_TIMEOUT, message="Too slow.", cell_index=3, exit_code=0, signal="SIGINT"
    ),
)


def test_a_run_with_everything() -> None:
    """Each attribute has its own type, and absent is None."""
    run = Run(FULL)
    assert (run.id, run.request_id, run.name) == ("20261129-120000-abcd1234", "mine", "sales")
    assert (run.state, run.is_terminal, run.ok) == (RunState.TIMED_OUT, True, False)
    assert (run.created, run.started, run.ended) == (
        START,
        START + timedelta(seconds=1),
        START + timedelta(seconds=3.5),
    )
    assert run.duration == timedelta(seconds=2.5)
    assert (run.cells_completed, run.cells_total, run.fraction_completed) == (3, 4, 0.75)
    assert repr(run.parameters) == "{'b': 1.0, 'a': [9007199254740993, nan]}"
    assert run.values == {"total": 42, "share": 0.5}
    assert (run.labels, run.notebook_sha256) == ({"team": "a"}, "ab" * 32)
    assert (run.peak_memory, run.cpu_time) == (2**20, timedelta(seconds=1.5))
    assert run.cause is FailureCause.CELL_TIMEOUT
    assert run.failure
    assert (run.failure.cell_index, run.failure.exit_code, run.failure.signal) == (3, 0, "SIGINT")
    assert str(run.failure) == "Too slow."
    assert run.pb is FULL


def test_a_run_with_nothing() -> None:
    """What is not known is None or empty."""
    run = RunSnapshot(pb.Run(run_id="r"))
    assert (run.started, run.ended, run.duration, run.failure, run.cause) == (None,) * 5
    assert (run.current_cell, run.queue_position, run.peak_memory, run.cpu_time) == (None,) * 4
    assert (run.parameters, run.values, run.labels, run.notebook_repairs) == ({}, {}, {}, ())
    assert (run.fraction_completed, run.state) == (0.0, RunState.UNKNOWN)


def test_values_of_an_older_server() -> None:
    """Without exact values those of the Struct are taken, in which a whole number is an int."""
    struct = Struct()
    struct.update({"whole": 2, "part": 0.5, "list": [True, None, {"a": "b"}]})
    run = RunSnapshot(pb.Run(parameters=struct, results=struct))
    for values in (run.parameters, run.values):
        assert repr(dict(sorted(values.items()))) == (
            "{'list': [True, None, {'a': 'b'}], 'part': 0.5, 'whole': 2}"
        )


@pytest.mark.parametrize(
    ("kind", "numbers", "translate", "prefix"),
    [
        (RunState, pb.RunState, _states.state_of, "RUN_STATE_"),
        (FailureCause, pb.FailureCause, _states.cause_of, "FAILURE_CAUSE_"),
        (CellOutcome, pb.CellOutcome, _states.outcome_of, "CELL_OUTCOME_"),
    ],
)
def test_every_number_has_its_name(kind: Any, numbers: Any, translate: Any, prefix: str) -> None:
    """Each value of the contract is a member that equals its name in lower case; a newer one is unknown."""
    named = {number: name.removeprefix(prefix).lower() for name, number in numbers.items() if number}
    assert {number: translate(number) for number in named} == named
    assert {*kind} == {*named.values(), "unknown"}
    assert translate(0) is translate(99) is kind.UNKNOWN


def test_a_run_reads_well() -> None:
    """As a string it is for people, as a repr for programmers, and nothing in it moves the cursor."""
    assert str(Run(FULL)) == (
        "run 20261129-120000-abcd1234 (sales) timed out, 3 of 4 cells, 0:02, cell 4: Too slow."
    )
    assert repr(AsyncRun(FULL)) == (
        "AsyncRun(id='20261129-120000-abcd1234', name='sales', state='timed_out')"
    )
    evil = pb.Run(run_id="r\x1b[2J\u202e", failure=pb.Failure(message="a\nb\x07"), state=pb.RUN_STATE_CRASHED)
    assert str(Run(evil)) == "run r crashed, a b"
    assert "timed out" in Run(FULL)._repr_html_()


def test_runs_compare_by_what_they_say() -> None:
    """Two snapshots of one run are equal as long as the run has not changed."""
    later = pb.Run()
    later.CopyFrom(FULL)
    assert Run(FULL) == Run(later)
    assert len({Run(FULL), Run(later)}) == 1
    later.cells_completed = 4
    assert Run(FULL) != Run(later)
    assert hash(Run(FULL)) == hash(Run(later))
    with pytest.raises(AttributeError):
        Run(FULL).pb = later  # type: ignore[misc] # frozen


def test_a_pickled_run_has_no_client() -> None:
    """It says what it said, and how to find the run again."""
    with Client() as client:
        run = Run(FULL, client)
        error = RunFailed(run)
    copy = pickle.loads(pickle.dumps(run))  # noqa: S301 - our own bytes
    assert (copy, copy.values) == (run, run.values)
    with pytest.raises(NotebookRunnerError, match=r"client\.get\('20261129-120000-abcd1234'\)"):
        _ = copy.text
    assert pickle.loads(pickle.dumps(error)).run == run  # noqa: S301 - our own bytes
    with pytest.raises(NotebookRunnerError, match="has no client"):
        asyncio.run(AsyncRun(FULL).text())


def test_raise_for_state() -> None:
    """A run that has not failed is returned, one that has is an exception with it."""
    for kind in (Run, AsyncRun):
        for message in (RUNNING, ENDED):
            run = kind(message)
            assert run.raise_for_state() is run
        with pytest.raises(RunFailed) as caught:
            kind(FAILED).raise_for_state()
        assert caught.value.run.pb == FAILED


def test_a_kill_reads_well() -> None:
    """What was killed, and how much of it."""
    killed = pb.Run(run_id="r", state=pb.RUN_STATE_KILLED)
    result = KillResult(Run(killed), 1, already_ended=False, pb=pb.KillResponse())
    assert str(result) == "run r killed; 1 process killed"
    result = KillResult(Run(killed), 0, already_ended=True, pb=pb.KillResponse())
    assert str(result) == "run r killed; it had already ended"


def event(**what: Any) -> Event:
    """An event with a number, a time and counts."""
    time = Timestamp(seconds=int(START.timestamp()), nanos=250_000_000)
    return event_of(pb.ProgressResponse(sequence=7, time=time, cells_completed=1, cells_total=3, **what))


def output(**what: Any) -> Event:
    """An event of the output of the second cell."""
    return event(cell_output=pb.CellOutput(cell_index=1, **what))


SHOWN = pb.DisplayOutput(
    output_type="display_data",
    data=[
        pb.MimeData(mime_type="text/plain", size_bytes=2, content=b"42"),
        pb.MimeData(mime_type="image/png", size_bytes=3, content=b"\x89PN"),
        pb.MimeData(mime_type="image/svg+xml", size_bytes=6, content=b"<svg/>"),
        pb.MimeData(mime_type="application/vnd.x+json", size_bytes=8, content=b'{"a": 1}'),
        pb.MimeData(mime_type="text/html", size_bytes=9000),
        pb.MimeData(mime_type="text/latex", size_bytes=0, content=b""),
    ],
    omitted=2,
    result=pb.ResultValue(name="total", value_json="42"),
)

EVENTS: dict[str, tuple[Event, str]] = {
    "StateChanged": (event(run_changed=FULL), str(RunSnapshot(FULL))),
    "CellStarted": (
        event(cell_started=pb.CellStarted(cell_index=1, first_line="x = 1")),
        "cell 2 of 3 started: x = 1",
    ),
    "Printed": (
        output(stream=pb.StreamOutput(name="stdout", text="a\n\x1b[1mb\n")),
        "cell 2 printed: a b",
    ),
    "Displayed": (output(display=SHOWN), "cell 2 displayed: total = 42"),
    "CellRaised": (
        output(error=pb.ErrorOutput(exception_name="KeyError", exception_message="'a'")),
        "cell 2 raised KeyError: 'a'",
    ),
    "OutputCleared": (output(clear=pb.ClearOutput(wait=True)), "cell 2 cleared its output"),
    "OutputCut": (
        output(cut=pb.OutputCut(limit_bytes=10, whole_run=True)),
        "cell 2: output cut, this run reached its limit of 10 B",
    ),
    "CellFinished": (
        event(
            cell_finished=pb.CellFinished(
                cell_index=1, outcome=pb.CELL_OUTCOME_ERROR_ALLOWED, duration=Duration(nanos=250_000_000)
            )
        ),
        "cell 2 of 3 error allowed after 0.25 s",
    ),
    "Event": (output(), "cell_output"),
}


@pytest.mark.parametrize("name", EVENTS)
def test_every_event_has_its_type(name: str) -> None:
    """With number, time, counts and message, and a line for people."""
    one, line = EVENTS[name]
    assert type(one) is getattr(notebook_runner, name)
    assert (one.sequence, one.time, one.cells_completed, one.cells_total) == (7, START, 1, 3)
    assert one.pb.sequence == 7
    assert str(one) == f"#7 {line}"
    assert repr(one).startswith(f"{name}(sequence=7, time=datetime.datetime(2026, 11, 29")
    assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301 - our own bytes


def test_every_kind_of_event_is_tested() -> None:
    """A new one is in the table above."""
    assert set(EVENTS) == {"Event", *(kind.__name__ for kind in Event.__subclasses__())}


def matched(one: Event) -> Any:  # noqa: PLR0911 - one for each type
    """What a match by position takes out of an event."""
    match one:
        case StateChanged(RunState.TIMED_OUT, run):
            return run.id
        case CellStarted(index, line):
            return index, line
        case Printed(text, stream, index):
            return text, stream, index
        case Displayed({"text/plain": text}):
            return text
        case CellRaised(exception, message, index):
            return exception, message, index
        case OutputCleared(index, wait) | OutputCut(index, wait):
            return index, wait
        case CellFinished(index, outcome, duration, count):
            return index, outcome, duration, count
        case _:
            return None


def test_events_match_by_position() -> None:
    """The fields that matter come first."""
    assert [matched(one) for one, _ in EVENTS.values()] == [
        FULL.run_id,
        (1, "x = 1"),
        ("a\n\x1b[1mb\n", "stdout", 1),
        "42",
        ("KeyError", "'a'", 1),
        (1, True),
        (1, 10),
        (1, CellOutcome.ERROR_ALLOWED, timedelta(seconds=0.25), None),
        None,
    ]


def test_what_a_cell_displays() -> None:
    """Each representation as its type suggests; those whose content was not sent only with their size."""
    one = EVENTS["Displayed"][0]
    assert isinstance(one, Displayed)
    assert one.data == {
        "text/plain": "42",
        "image/png": b"\x89PN",
        "image/svg+xml": "<svg/>",
        "application/vnd.x+json": {"a": 1},
        "text/latex": "",
    }
    assert one.sizes["text/html"] == 9000
    assert (one.kind, one.omitted, one.result) == ("display_data", 2, ResultValue("total", 42))
    del (plain := pb.DisplayOutput.FromString(SHOWN.SerializeToString())).data[1:]
    plain.ClearField("result")
    assert str(output(display=plain)) == "#7 cell 2 displayed: 42"
    plain.data[0].ClearField("content")
    assert str(output(display=plain)) == "#7 cell 2 displayed: [text/plain 2 B, 2 more]"


def test_a_damaged_representation_is_bytes() -> None:
    """What is not of the type that it claims to be is passed on as it is."""
    data = [pb.MimeData(mime_type=kind, content=b"\xff{") for kind in ("text/plain", "application/json")]
    one = output(display=pb.DisplayOutput(data=data))
    assert isinstance(one, Displayed)
    assert set(one.data.values()) == {b"\xff{"}


@BOTH
def test_display_data_is_asked_for(fake: FakeServer, collect: Collect) -> None:
    """The number of bytes reaches the server."""
    fake.answers("Progress", changed(1, ENDED))
    collect("progress", "r", display_data_max_bytes=1000)
    assert fake.asked[0].display_data_max_bytes == 1000


@BOTH
def test_get_asks_by_a_part_of_the_id(fake: FakeServer, collect: Collect) -> None:
    """The server finds the run, and an empty id is its newest."""
    for part in ("abcd", ""):
        fake.answers("Get", pb.GetResponse(run=FULL))
        assert collect("get", part) == [FULL]
    assert [request.run_id for request in fake.asked] == ["abcd", ""]


@BOTH
def test_get_from_a_server_that_has_no_get(fake: FakeServer, collect: Collect) -> None:
    """The run is put together from its events; without an id, it is the newest."""
    cell = pb.ProgressResponse(sequence=2, cells_completed=2, cells_total=5, cell_finished=pb.CellFinished())
    for _ in range(2):
        fake.answers("Get", grpc.StatusCode.UNIMPLEMENTED)
        fake.answers("Progress", changed(1, RUNNING), cell)
    (run,) = collect("get", "r")
    assert (run.run_id, run.state, run.cells_completed, run.cells_total) == ("r", pb.RUN_STATE_RUNNING, 2, 5)
    assert (fake.asked[1].run_id, fake.asked[1].snapshot_only) == ("r", True)
    fake.answers("List", pb.ListResponse(runs=[RUNNING]))
    assert collect("get") == [run]
    fake.answers("Get", grpc.StatusCode.UNIMPLEMENTED)
    fake.answers("Progress", grpc.StatusCode.NOT_FOUND)
    with pytest.raises(RpcFailed, match="NOT_FOUND"):
        collect("get", "none")


@BOTH
def test_delete_needs_a_whole_id(fake: FakeServer, collect: Collect) -> None:
    """An empty id is refused here, and the answer is the run as it was."""
    fake.answers("Delete", pb.DeleteResponse(run=ENDED))
    assert collect("delete", "r") == [ENDED]
    with pytest.raises(ValueError, match="must not be empty"):
        collect("delete", "")
    assert [request.run_id for request in fake.asked] == ["r"]


@BOTH
def test_runs_end_at_older_ones(fake: FakeServer, collect: Collect) -> None:
    """`since` asks for no page beyond the first run that is older."""
    times = [Timestamp(seconds=int(START.timestamp()) - age) for age in (0, 60, 120)]
    listed = [pb.Run(run_id=str(place), create_time=time) for place, time in enumerate(times)]
    answer = pb.ListResponse(runs=listed, next_page_token="more")  # noqa: S106 - opens no door
    since = START - timedelta(seconds=90)
    for moment in (since, since.astimezone().replace(tzinfo=None), datetime.now(UTC) - since):
        fake.answers("List", answer)
        found = collect("runs", state="failed", label={"a": "b"}, since=moment)
        assert [run.run_id for run in found] == ["0", "1"]
    assert fake.asked[0] == pb.ListRequest(states=[pb.RUN_STATE_FAILED], labels={"a": "b"})
    with pytest.raises(TypeError, match=r"since must be .* \(got str\)"):
        collect("runs", since=cast("Any", "yesterday"))


@BOTH
@pytest.mark.usefixtures("held")
def test_wait_has_a_limit(collect: Collect) -> None:
    """A run that takes longer than the limit is a TimeoutError, which says that the run continues."""
    with pytest.raises(TimeoutError, match=r"Run r has not ended within 0\.2 s\. It continues\."):
        collect("wait", "r", timeout=timedelta(seconds=0.2))


@BOTH
def test_wait_without_time_only_checks(fake: FakeServer, collect: Collect) -> None:
    """A run that has ended is returned, another is a TimeoutError, and no stream is opened."""
    fake.answers("Get", pb.GetResponse(run=ENDED))
    assert collect("wait", "r", timeout=0) == [ENDED]
    fake.answers("Get", pb.GetResponse(run=RUNNING))
    with pytest.raises(TimeoutError, match="It continues"):
        collect("wait", "r", timeout=0)


@BOTH
def test_wait_with_a_limit_over_broken_connections(fake: FakeServer, collect: Collect) -> None:
    """The limit is that of all connections together, also of the pauses between them."""
    fake.answers("Progress", changed(1, RUNNING), grpc.StatusCode.UNAVAILABLE)
    fake.answers("Progress", changed(2, ENDED))
    assert collect("wait", "r", timeout=60) == [ENDED]
    for _ in range(20):
        fake.answers("Progress", grpc.StatusCode.UNAVAILABLE)
    with pytest.raises(TimeoutError):
        collect("wait", "r", timeout=0.3)


def test_the_notebook_of_an_ended_run_is_read_once(fake: FakeServer) -> None:
    """However many of its contents are asked for; of an active run, each time as it is then."""
    printed = {"output_type": "stream", "text": ["a\n", "b"]}
    content = json.dumps({"cells": [{"cell_type": "code", "outputs": [printed]}]}).encode()
    page = pb.OutputResponse(content=content, next_offset=len(content), total_bytes=len(content))
    with Client(fake.target) as client:
        fake.answers("Output", page)
        ended = Run(ENDED, client)
        assert (ended.text, ended.images, ended.tables, len(ended.outputs)) == ("a\nb", [], [], 1)
        for _ in range(2):
            fake.answers("Output", page)
            assert Run(RUNNING, client).text == "a\nb"
    assert len(fake.asked) == 3
