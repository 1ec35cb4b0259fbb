"""The contract's messages and the runs' data say the same, in both directions."""

import json
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.api import convert
from notebook_runner_server.errors import InvalidFieldError
from notebook_runner_server.execution.interface import (
    Cause,
    CellFinished,
    CellOutcome,
    CellStarted,
    ClearOutput,
    DisplayOutput,
    ErrorOutput,
    Failure,
    KeptContent,
    OutputCut,
    ResultValue,
    WarmCounts,
)
from notebook_runner_server.runs.model import (
    Body,
    Event,
    KernelInfo,
    RetryPolicy,
    Run,
    RunChanged,
    RunnerInfo,
    RunState,
    StartSpec,
)
from notebook_runner_server.runs.results import Results
from notebook_runner_server.runs.shares import Share, ShareUse
from tests.runs.samples import a_run, changed, printed


def spec(**fields: Any) -> StartSpec:
    """What a Start with these fields asks for."""
    return convert.start_spec(pb.StartRequest(**fields))


def names(enum: Any, prefix: str) -> set[str]:
    """The values of a contract's enum, without its prefix and without the one that is never sent."""
    return {name.removeprefix(prefix) for name in enum.keys()} - {"UNSPECIFIED"}  # noqa: SIM118 - no mapping


def test_every_state_has_its_value_and_the_other_way_round() -> None:
    """All are in the contract, all of the contract's are known, and each comes back as itself."""
    assert names(pb.RunState, "RUN_STATE_") == {state.name for state in RunState}
    assert [convert.domain_state(convert.run_state(state)) for state in RunState] == list(RunState)


def test_every_cause_has_its_value_and_the_other_way_round() -> None:
    """Each cause arrives as the one of its name."""
    assert names(pb.FailureCause, "FAILURE_CAUSE_") == {cause.name for cause in Cause}
    for cause in Cause:
        message = convert.run_message(a_run(failure=Failure(cause, "why"))).failure
        assert pb.FailureCause.Name(message.cause) == f"FAILURE_CAUSE_{cause.name}"


def test_every_outcome_has_its_value_and_the_other_way_round() -> None:
    """Each outcome arrives as the one of its name."""
    assert names(pb.CellOutcome, "CELL_OUTCOME_") == {outcome.name for outcome in CellOutcome}
    for outcome in CellOutcome:
        finished = Event(1, 1, 0, 1, CellFinished(0, "", 1, 0.5, outcome))
        message = convert.event_message(finished).cell_finished
        assert pb.CellOutcome.Name(message.outcome) == f"CELL_OUTCOME_{outcome.name}"


def test_every_state_but_the_successful_end_has_a_cause_that_leads_to_it() -> None:
    """The comments of the contract put each cause under a state; no terminal state is without one."""
    ends = {state.name for state in RunState if state.is_terminal}
    assert ends == {"SUCCEEDED", "FAILED", "TIMED_OUT", "KILLED", "CRASHED", "INTERRUPTED"}


@pytest.mark.parametrize("number", [0, 11, -1, 2**31 - 1])
def test_a_number_that_is_no_state_is_refused(number: int) -> None:
    """Also the one that stands for nothing."""
    with pytest.raises(InvalidFieldError) as caught:
        convert.domain_state(number)
    assert caught.value.field == "states"


def test_all_of_a_run_arrives() -> None:
    """Every field of the message is filled from the run, and absent where the run has nothing."""
    failure = Failure(Cause.CELL_ERROR, "m", 0, "id", "E", "text", "trace", "SIGKILL", -9)
    run = Run(
        run_id="r",
        request_id="q",
        state=RunState.FAILED,
        create_time=1_000_000_001,
        kernel_name="k",
        cells_total=3,
        parameters={"a": 1},
        labels={"b": "c"},
        notebook_path="p",
        start_time=2_000_000_002,
        end_time=3_000_000_003,
        cells_completed=2,
        current_cell=0,
        failure=failure,
        queue_position=0,
        notebook_uri="n",
        output_uri="o",
        output_error="e",
        notebook_repairs=("r",),
        results=Results({"total": "1.0"}, ("large",)),
        name="name",
        notebook_sha256="0a",
        peak_memory_bytes=1,
        cpu_seconds=0.5,
        owner="ada",
        priority=1,
        retry=RetryPolicy(2, (RunState.TIMED_OUT,), 0.5, 10.0),
        attempt=2,
        retry_of="a",
        retried_by="b",
        not_before=4_000_000_004,
    )
    message = convert.run_message(run)
    assert message.retry.states == [pb.RUN_STATE_TIMED_OUT]
    assert (message.retry.max_retries, message.retry.backoff.nanos) == (2, 500_000_000)
    assert (message.retry.max_backoff.seconds, message.not_before.nanos) == (10, 4)
    assert {field.name for field, _ in message.ListFields()} == set(pb.Run.DESCRIPTOR.fields_by_name)
    assert {field.name for field, _ in message.failure.ListFields()} == set(
        pb.Failure.DESCRIPTOR.fields_by_name
    )
    assert (message.create_time.seconds, message.create_time.nanos) == (1, 1)
    assert (message.end_time.seconds, message.end_time.nanos) == (3, 3)
    absent = convert.run_message(a_run())
    for name in (
        "start_time",
        "end_time",
        "current_cell",
        "queue_position",
        "failure",
        "retry",
        "not_before",
    ):
        assert not absent.HasField(name)


EVENTS: list[tuple[Body, str, dict[str, Any]]] = [
    (changed(1, a_run()).body, "run_changed", {}),
    (CellStarted(3, "id", "line"), "cell_started", {"cell_id": "id", "first_line": "line"}),
    (printed(1, "text").body, "cell_output.stream", {"name": "stdout", "text": "text"}),
    (
        DisplayOutput(2, "display_data", (("a/b", 3),), 4, kept=(KeptContent(0, 0, 3, 1),)),
        "cell_output.display",
        {"output_type": "display_data", "data": [pb.MimeData(mime_type="a/b", size_bytes=3)], "omitted": 4},
    ),
    (ErrorOutput(2, "E", "m"), "cell_output.error", {"exception_name": "E", "exception_message": "m"}),
    (ClearOutput(2, wait=True), "cell_output.clear", {"wait": True}),
    (OutputCut(2, 9, whole_run=True), "cell_output.cut", {"limit_bytes": 9, "whole_run": True}),
    (CellFinished(2, "id", 4, 0.5, CellOutcome.FAILED), "cell_finished", {"execution_count": 4}),
]


@pytest.mark.parametrize(("body", "place", "fields"), EVENTS, ids=[place for _, place, _ in EVENTS])
def test_every_event_arrives_in_its_own_field(body: Body, place: str, fields: dict[str, Any]) -> None:
    """Sequence, time and counts stand around it, and what it tells is in the field of its kind."""
    message: Any = convert.event_message(Event(7, 5_000_000_006, 1, 2, body))
    assert (message.sequence, message.cells_completed, message.cells_total) == (7, 1, 2)
    assert (message.time.seconds, message.time.nanos) == (5, 6)
    kind, _, below = place.partition(".")
    assert message.WhichOneof("event") == kind
    inner = getattr(message, kind)
    assert getattr(inner, "cell_index", None) == getattr(body, "cell_index", None)
    if below:
        assert inner.WhichOneof("output") == below
        inner = getattr(inner, below)
    assert {name: getattr(inner, name) for name in fields} == fields
    assert convert.is_output(Event(7, 5, 1, 2, body)) == (kind == "cell_output")


LONE = "a\ud800b"


@pytest.mark.parametrize(
    "body",
    [
        CellStarted(0, LONE, LONE),
        printed(1, LONE).body,
        DisplayOutput(0, LONE, ((LONE, 3),), result=ResultValue(LONE, f'"{LONE}"')),
        ErrorOutput(0, LONE, LONE),
        CellFinished(0, LONE, 1, 0.5, CellOutcome.FAILED),
        changed(1, a_run(failure=Failure(Cause.CELL_ERROR, LONE, 0, LONE, LONE, LONE, LONE))).body,
        changed(
            1,
            a_run(
                labels={LONE: LONE},
                notebook_repairs=(LONE,),
                parameters={LONE: [LONE, {"x": LONE}, 1.5, None]},
                results=Results({LONE: f'["{LONE}"]', "escaped": json.dumps(LONE), "n": "[NaN, 1]"}, (LONE,)),
                retry=RetryPolicy(1),
            ),
        ).body,
    ],
    ids=lambda body: type(body).__name__,
)
def test_text_of_earlier_versions_that_is_no_unicode_is_replaced(body: Body) -> None:
    """Their events may have lone surrogates; all else arrives as it is."""
    message = convert.event_message(Event(7, 5, 1, 2, body))
    text = json_format.MessageToJson(message, ensure_ascii=False)
    assert "a?b" in text
    assert "\\ud800" not in text
    assert (message.sequence, message.cells_total) == (7, 2)
    if isinstance(body, RunChanged) and body.run.results.values:
        run = message.run_changed
        assert (run.retry.max_retries, run.cells_total) == (1, 2)
        assert json_format.MessageToDict(run.parameters) == {"a?b": ["a?b", {"x": "a?b"}, 1.5, None]}
        assert json_format.MessageToDict(run.results) == {"a?b": ["a?b"], "escaped": "a?b", "n": ["NaN", 1.0]}


def test_every_kind_of_event_of_the_contract_is_tried_here() -> None:
    """Heartbeats alone are no events of the log."""
    tried = {place.partition(".")[0] for _, place, _ in EVENTS}
    outputs = {place.partition(".")[2] for _, place, _ in EVENTS} - {""}
    fields = pb.ProgressResponse.DESCRIPTOR.oneofs_by_name["event"].fields
    assert tried | {"heartbeat"} == {field.name for field in fields}
    assert outputs == {field.name for field in pb.CellOutput.DESCRIPTOR.oneofs_by_name["output"].fields}


durations = st.builds(
    Duration, seconds=st.integers(-(2**63), 2**63 - 1), nanos=st.integers(-(2**31), 2**31 - 1)
)


@given(durations | st.builds(Duration, seconds=st.integers(-2, 2), nanos=st.integers(-(10**9), 10**9)))
def test_durations_are_seconds_or_refused(duration: Duration) -> None:
    """What the contract's type allows and is not negative; a mixed sign is none."""
    good = 0 <= duration.seconds <= 315_576_000_000 and 0 <= duration.nanos < 10**9
    if not good:
        with pytest.raises(InvalidFieldError) as caught:
            spec(run_timeout=duration)
        assert caught.value.field == "run_timeout"
        given = f"{duration.seconds} seconds and {duration.nanos} nanos"
        assert caught.value.message == f"run_timeout must be a duration of zero or more (got {given})."
        return
    asked = spec(run_timeout=duration).limits.run_timeout
    assert asked == pytest.approx(duration.seconds + duration.nanos / 1e9)


def test_the_longest_durations_are_durations() -> None:
    """The bounds themselves are allowed, of the seconds and of what is below a second."""
    for duration in (Duration(nanos=999_999_999), Duration(seconds=315_576_000_000)):
        asked = spec(retention=duration).retention
        assert asked == duration.seconds + duration.nanos / 1e9
    assert spec(retention=Duration(seconds=315_576_000_000, nanos=999_999_999)).retention == 315_576_000_000


def test_a_limit_that_is_not_asked_for_is_zero() -> None:
    """Zero means the server's default, for each of the times."""
    limits = spec().limits
    assert (limits.run_timeout, limits.cell_timeout, limits.output_timeout) == (0.0, 0.0, 0.0)


def test_an_absent_duration_is_silence_and_a_zero_is_none() -> None:
    """Retention tells the two apart: kept as the server does, or not at all."""
    assert spec().retention is None
    assert spec(retention=Duration()).retention == 0.0
    assert convert.seconds(pb.KillRequest(), "grace_period") is None


def test_what_is_asked_for_is_what_is_meant() -> None:
    """Every field of a Start reaches its place."""
    asked = spec(
        request_id="r",
        notebook_content=b"x",
        kernel_name="k",
        cell_timeout=Duration(seconds=2),
        output_timeout=Duration(nanos=500_000_000),
        allow_errors=True,
        environment={"A": "1"},
        memory_limit_bytes=2**40,
        labels={"l": "m"},
        cell_output_limit_bytes=5,
        run_output_limit_bytes=6,
        process_limit=7,
    )
    limits = asked.limits
    assert (asked.request_id, asked.content, asked.path, asked.kernel_name) == ("r", b"x", None, "k")
    assert (limits.run_timeout, limits.cell_timeout, limits.output_timeout) == (0.0, 2.0, 0.5)
    assert (limits.memory_bytes, limits.cell_output_bytes) == (2**40, 5)
    assert (limits.run_output_bytes, limits.processes) == (6, 7)
    assert (asked.allow_errors, asked.environment, asked.labels) == (True, {"A": "1"}, {"l": "m"})
    assert (spec().content, spec().path) == (None, None)
    assert (spec(notebook_content=b"").content, spec(notebook_path="").path) == (b"", "")


def test_uris_are_asked_for_as_they_stand() -> None:
    """A URI is taken as it is, also an empty one, and none is none."""
    asked = spec(notebook_uri="s3://a/b", output_uri="https://c/d?e=f")
    assert (asked.notebook_uri, asked.output_uri) == ("s3://a/b", "https://c/d?e=f")
    assert (spec(notebook_uri="").notebook_uri, spec().notebook_uri, spec().output_uri) == ("", None, "")


def test_all_of_a_server_arrives() -> None:
    """Every field that the runner knows has its own value; the rest is the servicer's."""
    kernels = [
        KernelInfo("ir", "R", WarmCounts(0, 0), is_default=False),
        KernelInfo("python3", "python", WarmCounts(1, 2), is_default=True),
    ]
    info = RunnerInfo(
        kernels=kernels,
        workers=3,
        active=4,
        queued=5,
        queue_size=6,
        default_notebook="a.ipynb",
        has_notebook_root=True,
        uri_schemes=["https", "s3"],
        problem="no worker",
        share=ShareUse(Share(7, 0, None), 8, 9, 10),
    )
    assert convert.info_message(info) == pb.InfoResponse(
        share=pb.Share(max_active=7, max_queued=0, active=8, queued=9, history_bytes=10),
        kernels=[
            pb.KernelInfo(name="ir", language="R"),
            pb.KernelInfo(name="python3", language="python", is_default=True, warm_ready=1, warm_wanted=2),
        ],
        workers=3,
        runs_active=4,
        runs_queued=5,
        queue_size=6,
        default_notebook="a.ipynb",
        has_notebook_root=True,
        uri_schemes=["https", "s3"],
        problem="no worker",
    )


def test_a_heartbeat_repeats_the_last_event() -> None:
    """Its time is its own."""
    last = Event(7, 5, 1, 2, CellStarted(1, "id", "line"))
    message = convert.heartbeat_message(last, 6_000_000_007)
    assert (message.sequence, message.cells_completed, message.cells_total) == (7, 1, 2)
    assert (message.time.seconds, message.time.nanos) == (6, 7)
    assert message.WhichOneof("event") == "heartbeat"


def test_a_cells_duration_is_a_whole_number_of_nanoseconds() -> None:
    """Rounded down, so that the parts of a run are not longer than the run."""
    finished = CellFinished(3, "id", 4, 1.9999999999, CellOutcome.SUCCEEDED)
    message = convert.event_message(Event(7, 5, 1, 2, finished)).cell_finished
    assert message.duration == Duration(seconds=1, nanos=999_999_999)
    assert (message.cell_index, message.cell_id) == (3, "id")


def test_what_the_contract_does_not_know_is_named() -> None:
    """The field of a wrong duration, and the number of a wrong state."""
    with pytest.raises(InvalidFieldError, match="retention"):
        spec(retention=Duration(seconds=-1))
    with pytest.raises(InvalidFieldError, match="11"):
        convert.domain_state(11)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 300, 2**14, 2**21 + 1])
def test_a_content_that_is_added_to_a_serialized_message_is_in_its_field(size: int) -> None:
    """What arrives is the message, as if the content had been set before."""
    message = pb.OutputResponse(total_bytes=5, media_type="a/b", run=convert.run_message(a_run()))
    arrived = pb.OutputResponse.FromString(convert.with_bytes(message, "content", b"x" * size))
    message.content = b"x" * size
    assert arrived == message


def test_a_result_value_arrives_with_its_display() -> None:
    """One that is too large is absent: the run counts it."""
    for value_json in ("1.0", ""):
        display = DisplayOutput(0, "display_data", (), result=ResultValue("name", value_json))
        shown = convert.event_message(Event(1, 1, 0, 1, display)).cell_output.display
        assert shown.HasField("result") is bool(value_json)
        assert shown.result.value_json == value_json


def test_result_values_are_exact_and_a_struct_has_what_it_can() -> None:
    """In the manner of parameters."""
    message = convert.run_message(a_run(results=Results({"n": f"[NaN, {2**70}, 1.0]", "d": '{"a": null}'})))
    assert message.results_json == f'{{"n": [NaN, {2**70}, 1.0], "d": {{"a": null}}}}'
    assert json_format.MessageToDict(message.results) == {"n": ["NaN", str(2**70), 1.0], "d": {"a": None}}
    assert not convert.run_message(a_run()).HasField("results")


def test_content_is_added_to_its_representations() -> None:
    """Those that a caller asks for, by their size."""
    kept = (KeptContent(0, 0, 3, 1), KeptContent(2, 0, 5, 1))
    display = DisplayOutput(0, "display_data", (("a/a", 3), ("a/b", 9), ("a/c", 7)), kept=kept)
    event = Event(1, 1, 0, 1, display)
    assert [convert.wanted_content(event, most) for most in (0, 2, 3, 5)] == [(), (), kept[:1], kept]
    assert convert.wanted_content(printed(1, "text"), 9) == ()
    shown = convert.event_message(event, {0: b"", 2: b"12345"}).cell_output.display.data
    assert [one.HasField("content") and one.content for one in shown] == [b"", False, b"12345"]
