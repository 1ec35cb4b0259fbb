"""The pieces of the command line: values, texts and views."""

import io
import json
import re
from typing import Any

import click
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from papermill import cli as papermill_cli
from rich.console import Console

from notebook_runner import _printable
from notebook_runner.cli import _again, _display, _exit, _live, _parameters, _text, _traceback, _types, _views
from notebook_runner.v1 import notebook_runner_pb2 as pb

TRACEBACK = "Traceback (most recent call last)\n  [bold]1/0[/bold]\nZeroDivisionError: division by zero"


def stream(text: str) -> pb.CellOutput:
    """Printed text."""
    return pb.CellOutput(stream=pb.StreamOutput(name="stdout", text=text))


def story(state: pb.RunState.ValueType = pb.RUN_STATE_SUCCEEDED) -> list[pb.ProgressResponse]:
    """A run of three cells that prints, shows a picture and ends after two seconds."""
    begin, end = Timestamp(seconds=100), Timestamp(seconds=102)
    ended = pb.Run(run_id="r1", state=state, cells_total=3, cells_completed=3, start_time=begin, end_time=end)
    if state != pb.RUN_STATE_SUCCEEDED:
        ended.failure.MergeFrom(
            pb.Failure(
                cell_index=1,
                exception_name="ZeroDivisionError",
                exception_message="division by zero",
                traceback=TRACEBACK,
            )
        )
    picture = pb.DisplayOutput(data=[pb.MimeData(mime_type="image/png", size_bytes=12_345)])
    happened: list[dict[str, Any]] = [
        {"run_changed": pb.Run(run_id="r1", state=pb.RUN_STATE_QUEUED, queue_position=1)},
        {"run_changed": pb.Run(run_id="r1", state=pb.RUN_STATE_RUNNING, start_time=begin)},
        {"cell_started": pb.CellStarted(cell_index=0, first_line="x = [red]1[/red]")},
        {"cell_output": stream("hel")},
        {"cell_output": stream("lo\n10%\r")},
        {"cell_output": stream("99%")},
        {"cell_output": pb.CellOutput(display=picture)},
        {"cell_finished": pb.CellFinished(duration=Duration(seconds=1), outcome=pb.CELL_OUTCOME_SUCCEEDED)},
        {"run_changed": ended},
    ]
    return [
        pb.ProgressResponse(sequence=number, time=end, cells_total=3, cells_completed=number // 3, **event)
        for number, event in enumerate(happened, 1)
    ]


def shown(view: _views.View, events: list[pb.ProgressResponse]) -> None:
    """Shows all of a run."""
    with view:
        for event in events:
            view.event(event)
    view.ended(events[-1].run_changed)


@pytest.mark.parametrize(
    "text",
    ["True", "False", "None", "1", "-7", "1_000", "0.5", "1e3", "nan", "true", "", "x", "\u0661", " 2 "],
)
def test_parameters_are_typed_like_papermills(text: str) -> None:
    """`-p` takes a value for what papermill's own takes it."""
    ours, theirs = _parameters.papermill_value(text), papermill_cli._resolve_type(text)
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("1.5s", 1.5), ("250ms", 0.25), ("5m", 300), ("2h", 7200), ("7d", 604800)],
)
def test_durations(text: str, seconds: float) -> None:
    """A length of time may have a unit."""
    assert _types.duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(("text", "count"), [("1000", 1000), ("1.5k", 1500), ("2Gi", 2**31), ("1M", 10**6)])
def test_sizes(text: str, count: int) -> None:
    """A size may have a unit, decimal or binary."""
    assert _types.size(text) == count


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (_types.duration, "soon"),
        (_types.duration, "-1"),
        (_types.duration, "1 week"),
        (_types.size, "1kb"),
        (_types.pair, "name"),
        (_types.pair, "=x"),
        (_types.state, "gone"),
    ],
)
def test_values_that_are_none(kind: Any, text: str) -> None:
    """A value that cannot be read is refused and repeated."""
    with pytest.raises(click.BadParameter, match=text):
        kind(text)


def test_value_after_the_first_equals_sign() -> None:
    """A value may have = in it, and may be empty."""
    assert _types.pair("a=b=c") == ("a", "b=c")
    assert _types.pair("a=") == ("a", "")


@pytest.mark.parametrize(
    ("pieces", "lines", "pending"),
    [
        (["a\nb"], ["a"], "b"),
        (["a", "b\n"], ["ab"], ""),
        (["1%\r2%\r", "3%"], [], "3%"),
        (["a\r\n", "b\r", "\nc"], ["a", "b"], "c"),
        (["1%\r2%\n"], ["2%"], ""),
    ],
)
def test_lines_of_pieces(pieces: list[str], lines: list[str], pending: str) -> None:
    """Text in pieces becomes lines, and a carriage return begins a line anew."""
    buffer = _text.LineBuffer()
    assert [line for piece in pieces for line in buffer.feed(piece)] == lines
    assert buffer.flush() == ([pending] if pending else [])
    assert buffer.flush() == []


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("\x1b[1;31mred\x1b[0m", "\x1b[1;31mred\x1b[0m"),
        ("\x1b]0;title\x07a\x1b]8;;http://x\x1b\\b", "ab"),
        ("\x1b[2J\x1b[H\x1b[?25la", "a"),
        ("\x1bca\x1b", "a"),
        ("a\x07\x08\x7f\x9b\tb\n", "a\tb\n"),
        ("\u202e\u2066ab\u2069\u200e\u200f\u061c", "ab"),
        ("שלום، مرحبا\u200c", "שלום، مرحبا\u200c"),
    ],
)
def test_printed_text_cannot_steer_the_terminal(text: str, safe: str) -> None:
    """Colours and text in any script pass, and nothing else that a terminal would obey."""
    assert _printable.clean(text) == safe


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (12_345, "12.3 kB"), (5 * 10**6, "5 MB"), (2 * 10**9, "2 GB")],
)
def test_sizes_for_people(count: int, text: str) -> None:
    """Sizes are shown with a unit and three digits."""
    assert _printable.size(count) == text


def test_how_it_ended() -> None:
    """One line tells state, place, time and reason."""
    ended = story(pb.RUN_STATE_FAILED)[-1].run_changed
    text = "run r1 failed in cell 2 of 3 after 2.0 s: ZeroDivisionError: division by zero"
    assert _text.how_it_ended(ended) == text
    assert _text.how_it_ended(story()[-1].run_changed) == "run r1 succeeded after 2.0 s"


def test_json_has_the_contracts_names_and_all_fields() -> None:
    """A script finds every field by the contract's name, also when it is zero."""
    line = _text.to_json(story()[2])
    assert "\n" not in line
    event = json.loads(line)
    assert event["sequence"] == 3
    assert event["cell_started"] == {"cell_index": 0, "cell_id": "", "first_line": "x = [red]1[/red]"}


def test_every_way_to_end_has_its_exit_code() -> None:
    """Each state maps to one code, no two terminal ones to the same, and the help lists all."""
    codes = {state: _exit.code_of_run(pb.Run(state=state)) for state in pb.RunState.values()}
    terminal = {code for state, code in codes.items() if state >= pb.RUN_STATE_SUCCEEDED}
    assert terminal == {0, 1, 3, 4, 5, 6}
    assert codes[pb.RUN_STATE_RUNNING] == 0
    assert all(f"\n  {code.value} " in _exit.HELP for code in _exit.ExitCode)


def test_plain_view(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal a run is lines, and what it prints is untouched."""
    shown(_views.PlainView(), story())
    assert capsys.readouterr().out == (
        "run r1 queued\nrun r1 running\ncell 1/3: x = [red]1[/red]\n"
        "hello\n10%\r99%\n[image/png 12.3 kB]\ncell 1/3 done in 1.00 s\n"
        "run r1 succeeded\nrun r1 succeeded after 2.0 s\n"
    )


def test_plain_view_of_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    """A failure ends with what it was, and its traceback last."""
    shown(_views.PlainView(), story(pb.RUN_STATE_FAILED))
    assert capsys.readouterr().out.endswith(f"\nrun r1 failed in cell 2 of 3 after 2.0 s\n{TRACEBACK}\n")


def test_json_view(capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON a run is one object per event and nothing else."""
    shown(_views.JsonView(), story())
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["sequence"] for event in events] == list(range(1, 10))


def test_view_without_a_terminal_is_plain() -> None:
    """Lines are chosen where there is no terminal, and JSON where it is asked for."""
    assert isinstance(_views.make_view(), _views.PlainView)
    assert isinstance(_views.make_view(as_json=True), _views.JsonView)


@pytest.mark.parametrize("state", [pb.RUN_STATE_SUCCEEDED, pb.RUN_STATE_FAILED])
def test_live_view(state: pb.RunState.ValueType) -> None:
    """On a terminal the bar, the cell's first line, whole lines of output and the end are shown."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, color_system=None, legacy_windows=False)
    view = _live.LiveView(console)
    with view:
        for event in story(state):
            view.event(event)
            view._live.refresh()
    view.ended(story(state)[-1].run_changed)
    text = screen.getvalue()
    for piece in ("hello\n", "99%\n", "[image/png 12.3 kB]\n", "x = [red]1[/red]", "3/3", "0:02"):
        assert piece in text
    # The unfinished line is there while it is the last one, and a return replaces it.
    assert text.index("10%") < text.index("99%")
    ended = story(state)[-1].run_changed
    if state == pb.RUN_STATE_FAILED:
        assert text.endswith(f"{_text.how_it_ended_briefly(ended)}\n{TRACEBACK}\n")
    else:
        assert text.endswith(f"{_text.how_it_ended(ended)}\n")


@pytest.mark.parametrize(
    ("frames", "folded"),
    [
        ("a b c", "a b c"),
        ("a b b b c", "a b [1 2] c"),
        ("x a b a b a b a y", "x a b [2 2] a y"),
        ("a a b b", "a [1 1] b [1 1]"),
        ("a b c a b c", "a b c [3 1]"),
    ],
)
def test_repeated_frames_are_folded(frames: str, folded: str) -> None:
    """Each cycle of frames is there once, with its length and the number of repetitions."""
    shown = _traceback.folded("\n\n".join(frames.split()) + "\n").split("\n\n")
    found = [re.findall(r"\d+", one) if one.startswith("[") else one for one in shown]
    short = [one if isinstance(one, str) else f"[{' '.join(['1', *one][-2:])}]" for one in found]
    assert " ".join(short) == folded


def test_a_traceback_in_colour_says_the_same() -> None:
    """Places, current lines and the exception with all its lines have colours; controls are left out."""
    text = "Cell In[1], line 2\n      1 x\n----> 2 y\x1b[2J\n\nValueError: one\ntwo: three"
    shown = _traceback.coloured(text)
    assert _printable.clean(shown, colours=False) == text.replace("\x1b[2J", "")
    plain = [line for line in shown.split("\n") if "\x1b" not in line]
    assert plain == ["      1 x", ""]


def test_rows_of_an_html_table() -> None:
    """The first table counts; a nested one is text of its cell. Short rows and wide cells are filled."""
    html = """<style>td {}</style><p>no</p><table><tr><th colspan="2">a<br>b</th><th>c</th></tr>
    <tr><td>1 <table><tr><td>in</td></tr></table></td><td> 2 </td></tr>
    <tr><th rowspan="2">x</th><td>3</td></tr><tr><td>4</td></tr></table>
    <table><tr><td>no</td></tr></table>"""
    assert _display.table_of(html) == (
        ("a b", "a b", "c"),
        *(("1 in", "2", ""), ("x", "3", ""), ("x", "4", "")),
    )
    assert _display.table_of("<b>42</b>") == ()
    assert _display.table_of("<table></table>") == ()


def test_a_large_table_is_cut() -> None:
    """A terminal shows the first rows and columns, and how many rows follow."""
    row = "".join(f"<td>{n}</td>" for n in range(50))
    held = f"<table>{f'<tr>{row}</tr>' * 1001}</table>".encode()
    display = pb.DisplayOutput(data=[pb.MimeData(mime_type="text/html", content=held)])
    table = _display.show_display(display, tables=True).table
    assert len(table) == _display.MAX_ROWS + 2
    assert {len(row) for row in table} == {_display.MAX_COLUMNS}
    assert table[-1][0] == "… 970 more"


def test_a_long_text_is_cut() -> None:
    """A terminal shows the first lines, and how many follow."""
    held = "\n".join(map(str, range(100))).encode()
    display = pb.DisplayOutput(data=[pb.MimeData(mime_type="text/plain", content=held)])
    lines = _display.show_display(display).text.split("\n")
    assert lines[-1] == "[… 40 more lines; the notebook has them]"


def test_json_of_values_that_json_has_not() -> None:
    """In a Struct of an older server too, and content as text or in Base64."""
    run = pb.Run(state=pb.RUN_STATE_TIMED_OUT, run_id="\u202e")
    run.parameters.update({"n": 2.0, "half": 0.5, "no": float("nan"), "list": [None, True, {"a": "b"}]})
    found = json.loads(_text.to_json(run))
    assert found["state"] == "timed_out"
    assert found["parameters"] == {"n": 2, "half": 0.5, "no": "NaN", "list": [None, True, {"a": "b"}]}
    assert "\u202e" not in _text.to_json(run)
    held = [pb.MimeData(content="ä".encode()), pb.MimeData(content=b"\xff"), pb.MimeData()]
    data = json.loads(_text.to_json(pb.DisplayOutput(data=held)))["data"]
    assert [one.get("content") for one in data] == ["ä", "/w==", None]
    newer = pb.CellFinished(outcome=99, duration=Duration(nanos=500_000_000))  # type: ignore[arg-type] # of a newer server
    assert json.loads(_text.to_json(newer))["outcome"] == 99
    assert json.loads(_text.to_json(newer))["duration"] == 0.5


@pytest.mark.parametrize(
    ("seconds", "finished", "total", "left"),
    [(10, 2, 10, None), (2, 5, 10, None), (10, 3, 100, None), (10, 5, 10, 10.0)],
)
def test_an_estimate_that_means_something(
    seconds: int, finished: int, total: int, left: float | None
) -> None:
    """There is none from two cells, from two seconds, or from three of a hundred cells."""
    clock = _live.Clock(lambda: 1000.0)
    run = pb.Run(state=pb.RUN_STATE_RUNNING, start_time=Timestamp(seconds=100))
    for number in range(1, finished + 1):
        event = pb.ProgressResponse(
            time=Timestamp(seconds=100 + seconds), cells_completed=number, cells_total=total
        )
        event.cell_finished.SetInParent()
        clock.accept(run, event)
    assert clock.left() == left


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("2h", 7200), ("7d", 604800)])
def test_a_moment_may_be_an_age(monkeypatch: pytest.MonkeyPatch, text: str, seconds: float) -> None:
    """Counted from now; else it is a date or a time, here or in its own time zone."""
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert _types.moment(text) == 1e9 - seconds
    assert _types.moment("1970-01-02T00:00Z") == 86400
    assert _types.moment("1970-01-02T00:00+01:00") == 82800
    with pytest.raises(click.BadParameter, match="tomorrow"):
        _types.moment("tomorrow")


@pytest.mark.parametrize("was_injected", [True, False])
def test_the_notebook_of_a_run_again(was_injected: bool) -> None:
    """An injected cell that came with the notebook belongs to it; in nbformat 3 the cells are in sheets."""
    cells: list[dict[str, Any]] = [
        {"cell_type": "code", "outputs": [1], "metadata": {"tags": ["injected-parameters"]}},
        {"cell_type": "markdown", "metadata": {}},
    ]
    for executed in ({"cells": cells}, {"worksheets": [{"cells": cells}]}):
        found = json.loads(_again.notebook_again(json.dumps(executed).encode(), was_injected=was_injected))
        kept = found.get("worksheets", [found])[0]["cells"]
        assert len(kept) == (1 if was_injected else 2)
        assert all(not cell.get("outputs") for cell in kept)


@pytest.mark.parametrize(
    ("kind", "content", "text"),
    [
        ("text/markdown", "**42**", "**42**"),
        ("text/html", "<b>42</b>", "[text/html 9 B, text/plain 34 B]"),
        ("application/json", '{"a": 1}', '{"a": 1}'),
    ],
)
def test_a_text_that_only_names_an_object_is_not_shown(kind: str, content: str, text: str) -> None:
    """Its other representation is, if it is text."""
    held = [(kind, content), ("text/plain", "<IPython.core.display.Some object>")]
    data = [
        pb.MimeData(mime_type=mime_type, size_bytes=len(one), content=one.encode()) for mime_type, one in held
    ]
    assert _display.show_display(pb.DisplayOutput(data=data)).text == text
    alone = pb.DisplayOutput(data=data[1:])
    assert _display.show_display(alone).text == held[1][1]
