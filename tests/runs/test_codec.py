"""What the store reads is what it was given, whatever it was given."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notebook_runner_server.execution.interface import (
    MAX_TYPES,
    Cause,
    CellEvent,
    CellFinished,
    CellOutcome,
    CellStarted,
    ClearOutput,
    DisplayOutput,
    ErrorOutput,
    Failure,
    KeptContent,
    Limits,
    OutputCut,
    ResultValue,
    StreamOutput,
)
from notebook_runner_server.runs import codec
from notebook_runner_server.runs.model import Body, Event, ExecutionOptions, RetryPolicy, Run, RunState
from tests.runs.samples import a_run, bodies, changed, events, json_values, orders, runs, some_options, text


@given(runs)
def test_runs(run: Run) -> None:
    """A run comes back as it went in, in text that any SQLite can keep."""
    encoded = codec.encode_run(run)
    assert encoded.isascii()
    assert codec.decode_run(encoded) == run


def test_runs_of_earlier_versions() -> None:
    """What later versions added is empty in runs of earlier ones; the name is that of the notebook's file."""
    older = json.loads(codec.encode_run(a_run(notebook_repairs=("x",), name="x", cpu_seconds=1.0)))
    for name in ("notebook_repairs", "name", "notebook_sha256", "peak_memory_bytes", "cpu_seconds"):
        del older[name]
    assert codec.decode_run(json.dumps(older)) == a_run()
    older["notebook_path"] = "folder/report.ipynb"
    assert codec.decode_run(json.dumps(older)) == a_run(notebook_path="folder/report.ipynb", name="report")
    del older["notebook_uri"]
    older["notebook_path"] = ""
    assert codec.decode_run(json.dumps(older)).name == ""


@given(st.dictionaries(text, json_values, max_size=4))
def test_parameters(parameters: dict[str, object]) -> None:
    """Parameters come back with their types: 1 stays an int, 1.0 a float, True a bool."""
    decoded = codec.decode_parameters(codec.encode_parameters(parameters))
    assert repr(decoded) == repr(parameters)


def test_parameters_that_json_does_not_have() -> None:
    """NaN and both infinities come back: a caller may give them."""
    values = codec.decode_parameters(codec.encode_parameters({"a": math.nan, "b": [math.inf, -math.inf]}))
    assert math.isnan(values["a"])
    assert values["b"] == [math.inf, -math.inf]


@given(orders)
def test_orders(options: ExecutionOptions) -> None:
    """An order comes back as it went in."""
    assert codec.decode_options(codec.encode_options(options)) == options


@given(events)
def test_events(event: Event) -> None:
    """An event comes back with its own types, beside the sequence number and time of its row."""
    decoded = codec.decode_event(event.sequence, event.time, codec.encode_event(event))
    assert decoded == event
    assert type(decoded.body) is type(event.body)


@pytest.mark.parametrize(
    "body",
    [
        changed(1, a_run()).body,
        CellStarted(1, "id", "line"),
        StreamOutput(1, "stdout", "text"),
        DisplayOutput(1, "display_data", (("a/b", 3), ("c/d", 4))),
        DisplayOutput(
            1, "display_data", (("a/b", 3),), 0, ResultValue("a", "1.0"), kept=(KeptContent(0, 9, 3, 7),)
        ),
        ErrorOutput(1, "ValueError", "no"),
        ClearOutput(1, wait=True),
        OutputCut(1, 10, whole_run=True),
        CellFinished(1, "id", 7, 0.5, CellOutcome.ERROR_ALLOWED),
    ],
    ids=lambda body: type(body).__name__,
)
def test_each_kind_of_event(body: Body) -> None:
    """None is left to chance."""
    event = Event(3, 4, 1, 2, body)
    assert codec.decode_event(3, 4, codec.encode_event(event)) == event


def test_a_display_of_an_earlier_version_is_bounded() -> None:
    """Its event names all types, however many: some are told, and how many more there are."""
    types = [[f"a/{number}", 1] for number in range(1000)]
    text = json.dumps([1, 2, "display", {"cell_index": 0, "output_type": "display_data", "data": types}])
    body = codec.decode_event(3, 4, text).body
    assert isinstance(body, DisplayOutput)
    assert len(body.data) == MAX_TYPES
    assert body.omitted == 1000 - MAX_TYPES


def test_types_that_were_left_out_stay_counted() -> None:
    """Those that a later version counted already, and those beyond the limit."""
    types = [[f"a/{number}", 1] for number in range(MAX_TYPES + 5)]
    data = {"cell_index": 0, "output_type": "display_data", "data": types, "omitted": 7}
    body = codec.decode_event(3, 4, json.dumps([1, 2, "display", data])).body
    assert isinstance(body, DisplayOutput)
    assert body.omitted == 12


@given(bodies)
def test_sequence_and_time_are_kept_once(body: Body) -> None:
    """What has columns of its own is not in the text as well, where it could differ."""
    one, other = Event(1, 2, 3, 4, body), Event(5, 6, 3, 4, body)
    assert codec.encode_event(one) == codec.encode_event(other)


def test_every_kind_of_event_has_a_name() -> None:
    """No body that the log can carry is unknown to the codec, and no name stands for two."""
    assert set(CellEvent.__args__) == set(codec._KINDS)
    assert len(set(codec._KINDS.values())) == len(codec._KINDS)


def test_words_on_disk_stay_what_they_are() -> None:
    """The names that older stores have: whoever renames one makes histories unreadable."""
    assert [state.value for state in RunState] == [
        *("queued", "starting", "running", "killing"),
        *("succeeded", "failed", "timed_out", "killed", "crashed", "interrupted"),
    ]
    assert {cause.value for cause in Cause} >= {"cell_error", "kill_requested", "server_died"}
    assert [outcome.value for outcome in CellOutcome] == ["succeeded", "failed", "error_allowed", "stopped"]
    kind = json.loads(codec.encode_event(changed(1, a_run())))[2]
    assert {kind, *codec._BODIES} == {
        *("run", "cell_started", "stream", "display", "error", "clear", "cut", "cell_finished")
    }


def test_what_an_earlier_version_stored_is_read() -> None:
    """Runs and orders of stores that know nothing of URIs and origins have none."""
    run, options = a_run(), some_options(environment={"A": "b"})
    old_run = json.loads(codec.encode_run(run))
    for name in ("notebook_uri", "output_uri", "output_error"):
        assert old_run.pop(name) == ""
    old_options = json.loads(codec.encode_options(options))
    assert old_options.pop("output_uri") == ""
    del old_options["origin"]
    assert codec.decode_run(json.dumps(old_run)) == run
    assert codec.decode_options(json.dumps(old_options)) == options


def test_the_limits_of_the_first_versions_are_read() -> None:
    """They stood among the other fields, and were fewer: what they do not name is unlimited."""
    options = some_options(limits=Limits(run_timeout=1.5, memory_bytes=7))
    old = json.loads(codec.encode_options(options))
    old |= {
        name: value for name, value in old.pop("limits").items() if name in ("run_timeout", "memory_bytes")
    }
    assert codec.decode_options(json.dumps(old)) == options


def test_what_a_later_version_has_added_is_ignored() -> None:
    """Servers of several versions share a database while one after the other is replaced."""
    run = a_run(
        RunState.FAILED,
        failure=Failure(Cause.CELL_ERROR, "no"),
        retry=RetryPolicy(2, (RunState.FAILED,), 1.0, 2.0),
    )
    later = json.loads(codec.encode_run(run))
    for data in (later, later["failure"], later["retry"]):
        data["added"] = 1
    assert codec.decode_run(json.dumps(later)) == run
    options = some_options(limits=Limits(run_timeout=1.5))
    later = json.loads(codec.encode_options(options))
    for data in (later, later["limits"], later["origin"]):
        data["added"] = 1
    assert codec.decode_options(json.dumps(later)) == options
    event = Event(3, 4, 1, 2, StreamOutput(1, "stdout", "text"))
    *counts, data = json.loads(codec.encode_event(event))
    assert codec.decode_event(3, 4, json.dumps([*counts, {**data, "added": 1}, "added"])) == event
    shown = DisplayOutput(
        1, "display_data", (("a/b", 3),), result=ResultValue("a", "1.0"), kept=(KeptContent(0, 9, 3, 7),)
    )
    event = Event(3, 4, 1, 2, shown)
    *counts, data = json.loads(codec.encode_event(event))
    for values in (data["result"], *data["kept"], *data["data"]):
        values.append("added")
    assert codec.decode_event(3, 4, json.dumps([*counts, {**data, "added": 1}])) == event
