"""What the recorder makes of a kernel's messages: events within their bounds, and segments that are whole."""

import json
from typing import Any

import pytest
from nbformat import NotebookNode
from nbformat.v4 import output_from_msg

from notebook_runner_server.execution.failures import MAX_EXCEPTION_MESSAGE, cut
from notebook_runner_server.execution.interface import (
    CellStarted,
    ClearOutput,
    DisplayOutput,
    ErrorOutput,
    ExecutionEvent,
    OutputCut,
    SegmentChunk,
    StreamOutput,
)
from notebook_runner_server.execution.recorder import CHUNK_BYTES, MAX_FIRST_LINE, output_node
from tests.execution.pools import Pool, end, executed, said, segments
from tests.support.notebooks import code, printed

pytestmark = pytest.mark.integration

MESSAGE_BYTES = 64 * 1024


def of(kind: type[ExecutionEvent], events: list[ExecutionEvent]) -> list[ExecutionEvent]:
    """The events of a kind."""
    return [event for event in events if isinstance(event, kind)]


def test_long_text_comes_in_messages_of_64_kib(pool: Pool) -> None:
    """However many bytes a character has, no message has more, none is cut in two, and all of it comes."""
    events = pool.run(*(f"print({character!r} * 100_000, end='')" for character in "aä€😀"))
    texts = [event for event in events if isinstance(event, StreamOutput)]
    assert max(len(event.text.encode()) for event in texts) <= MESSAGE_BYTES
    for index, character in enumerate("aä€😀"):
        mine = [event.text for event in texts if event.cell_index == index]
        assert "".join(mine) == character * 100_000
        assert len(mine) > 1
    assert len(texts) < 40


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("stream", {"name": "stderr", "text": "a\nb"}),
        ("error", {"ename": "E", "evalue": "1", "traceback": ["a", "b"]}),
        ("display_data", {"data": {"text/plain": "a", "application/json": "1"}, "metadata": {"a": {"b": 1}}}),
        ("display_data", {"data": {}, "metadata": {}}),
        ("execute_result", {"data": {"text/plain": "a"}, "metadata": {}, "execution_count": 3}),
        ("execute_result", {"data": {"text/plain": "a"}, "metadata": {}, "execution_count": None}),
    ],
)
def test_outputs_are_those_of_nbformat(kind: str, content: dict[str, Any]) -> None:
    """What is made without the format's schema is what nbformat makes, which checks it with the schema."""
    message = {"msg_type": kind, "header": {"msg_type": kind}, "content": content}
    output = output_node(message)
    assert output is not None
    assert output == output_from_msg(message)
    assert type(output) is type(output.get("metadata", output)) is NotebookNode


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("display_data", {"data": {"text/plain": 1}, "metadata": {}}),
        ("display_data", {"data": {"text/plain": ["a"]}, "metadata": {}}),
        ("display_data", {"data": {"application/json": {"a": 1}}, "metadata": {}}),
        ("execute_result", {"data": {"text/plain": "a"}, "metadata": {}, "execution_count": -1}),
        ("execute_result", {"data": {"text/plain": "a"}, "metadata": {}, "execution_count": True}),
        ("update_display_data", {"data": {"text/plain": "a"}, "metadata": {}}),
    ],
)
def test_outputs_that_the_schema_may_refuse_are_left_to_nbformat(kind: str, content: dict[str, Any]) -> None:
    """Their types alone do not show that they are valid."""
    assert output_node({"msg_type": kind, "header": {"msg_type": kind}, "content": content}) is None


def test_an_update_of_an_earlier_display_sends_that_segment_again(pool: Pool) -> None:
    """The earlier cell's segment comes once more, before the end of the cell that changed it."""
    events = pool.run(
        "handle = display('first', display_id=True)",
        "1",
        "handle.update('second')",
        "handle.update('third'); _ = display('own', display_id='own')",
    )
    sent = [number for number, _ in segments(events)]
    assert sent == [0, 1, 0, 2, 0, 3, -1]
    versions = [
        json.loads(data)["outputs"][0]["data"]["text/plain"]
        for number, data in segments(events)
        if not number
    ]
    assert versions == [["'first'"], ["'second'"], ["'third'"]]
    kinds = [(event.cell_index, event.output_type) for event in events if isinstance(event, DisplayOutput)]
    assert kinds == [
        *((0, "display_data"), (1, "execute_result"), (2, "update_display_data")),
        *((3, "update_display_data"), (3, "display_data")),
    ]
    assert executed(events, 4).cells[0].outputs[0].data["text/plain"] == "'third'"


def test_an_update_in_a_cell_that_raises_is_not_lost(pool: Pool) -> None:
    """The segment that was changed before the exception is sent all the same."""
    events = pool.run("handle = display('first', display_id=True)", "handle.update('second'); 1 / 0")
    assert [number for number, _ in segments(events)] == [0, 0, 1, -1]
    assert "'second'" in dict(segments(events))[0].decode()


def test_an_update_of_its_own_display_sends_one_segment(pool: Pool) -> None:
    """What a cell changes in itself is in its segment already."""
    events = pool.run("handle = display('first', display_id=True); handle.update('second')")
    assert [number for number, _ in segments(events)] == [0, -1]


def test_a_large_segment_comes_in_chunks(pool: Pool) -> None:
    """No chunk is larger than its bound, they follow each other, and together they are the cell."""
    events = pool.run("print('x' * 2_000_000)", "1")
    chunks = [event for event in events if isinstance(event, SegmentChunk)]
    assert max(len(event.data) for event in chunks) <= CHUNK_BYTES
    assert [event.segment for event in chunks] == [0] * 4 + [1, -1]
    assert [event.last for event in chunks] == [False] * 3 + [True] * 3
    assert printed(executed(events, 2), 0) == "x" * 2_000_000 + "\n"


def test_rich_data_is_named_and_not_carried(pool: Pool) -> None:
    """Type and size of each representation, its size as it stands in the notebook."""
    data = {"text/plain": "ä€", "application/json": {"a": [1, 2]}, "image/png": "aGVsbG8="}
    events = pool.run(f"display({data!r}, raw=True)")
    (event,) = of(DisplayOutput, events)
    sizes = {"text/plain": 5, "application/json": len(json.dumps({"a": [1, 2]})), "image/png": 8}
    assert event == DisplayOutput(0, "display_data", tuple(sizes.items()))


def test_clearing_is_told_and_done(pool: Pool) -> None:
    """At once, or with the next output."""
    clear = "from IPython.display import clear_output"
    for wait in (False, True):
        steps = [clear, "print(1, flush=True)", f"clear_output(wait={wait})", "print(2, flush=True)"]
        events = pool.run("\n".join(steps))
        assert of(ClearOutput, events) == [ClearOutput(0, wait)]
        assert said(events) == "1\n2\n"
        assert printed(executed(events, 1), 0) == "2\n"


def test_what_is_not_executed_is_not_told(pool: Pool) -> None:
    """Blank cells and those tagged to be skipped have no events, and no number."""
    events = pool.run("", "  \n\t\n", code("1 / 0", "skip-execution"), "'last'")
    assert [event.cell_index for event in events if isinstance(event, CellStarted)] == [3]
    assert [number for number, _ in segments(events)] == [3, -1]


def test_text_that_is_no_unicode_is_replaced_in_events(pool: Pool) -> None:
    """Lone surrogates cannot be carried; events have a mark in their place, and nothing else is lost."""
    surrogate = "chr(0xD800)"
    events = pool.run(
        f"import sys; sys.stdout.write('a' + {surrogate} + 'b\\n'); sys.stdout.flush()",
        f"display({{'text/plain': {surrogate}}}, raw=True)",
        f"raise ValueError('c' + {surrogate})",
    )
    assert said(events) == "a?b\n"
    assert of(DisplayOutput, events) == [DisplayOutput(1, "display_data", (("text/plain", 1),))]
    assert of(ErrorOutput, events) == [ErrorOutput(2, "ValueError", "c?")]
    failure = end(events).failure
    assert failure is not None
    assert (failure.exception_name, failure.exception_message) == ("ValueError", "c?")
    for event in events:
        repr(event).encode()


def test_names_and_messages_are_cut(pool: Pool) -> None:
    """The first line that is not blank, within 200 characters; an exception's text within 4 KiB."""
    events = pool.run(f"\n  \n   # {'x' * 500}\nraise ValueError('€' * 5000)")
    (started,) = of(CellStarted, events)
    assert isinstance(started, CellStarted)
    assert started.first_line == "# " + "x" * (MAX_FIRST_LINE - 2)
    (raised,) = of(ErrorOutput, events)
    assert isinstance(raised, ErrorOutput)
    assert raised.exception_message == "€" * (MAX_EXCEPTION_MESSAGE // 3)
    failure = end(events).failure
    assert failure is not None
    assert failure.exception_message == raised.exception_message
    assert len(failure.message.encode()) <= MAX_EXCEPTION_MESSAGE


def test_output_over_a_limit_is_cut_once_and_the_run_goes_on(pool: Pool) -> None:
    """What fits is there, then a mark in the notebook and an event; the next cell has its own room."""
    events = pool.run(
        "print('a' * 60, end='', flush=True); print('b' * 60, flush=True); print('c')",
        "print('next')",
        cell_output_bytes=100,
    )
    assert end(events).failure is None
    assert of(OutputCut, events) == [OutputCut(0, 100, whole_run=False)]
    node = executed(events, 2)
    assert printed(node, 0) == "a" * 60 + "b" * 40
    assert "[output cut" in printed(node, 0, "stderr")
    assert printed(node, 1) == "next\n"
    assert said(events).startswith("a" * 60 + "b" * 40)
    assert "c" not in printed(node, 0)


def test_the_limit_of_the_whole_run_counts_all_cells(pool: Pool) -> None:
    """The cell that passes it is cut, and so is every one after it."""
    events = pool.run(*["print('a' * 39)"] * 4, run_output_bytes=100)
    assert end(events).failure is None
    cuts = of(OutputCut, events)
    assert cuts == [OutputCut(2, 100, whole_run=True), OutputCut(3, 100, whole_run=True)]
    node = executed(events, 4)
    assert [len(printed(node, index)) for index in range(4)] == [40, 40, 20, 0]


def test_cutting_never_cuts_a_character(pool: Pool) -> None:
    """The limit is in bytes; what does not fit whole is left out."""
    events = pool.run("print('€' * 100)", cell_output_bytes=100)
    assert printed(executed(events, 1), 0) == "€" * 33


def test_rich_data_counts_with_its_bytes(pool: Pool) -> None:
    """Data that is over is left out whole, and a character counts as many bytes as it has."""
    events = pool.run("display({'text/plain': '€' * 50}, raw=True)", cell_output_bytes=100)
    assert of(OutputCut, events) == [OutputCut(0, 100, whole_run=False)]


@pytest.mark.parametrize(
    "text", ["", "a", "a" * MAX_EXCEPTION_MESSAGE, "€" * MAX_EXCEPTION_MESSAGE, "\ud800", "a\ud800b"]
)
def test_cutting_text(text: str) -> None:
    """Within the bound in bytes, a prefix where all of it is Unicode, and always encodable."""
    shortened = cut(text)
    assert len(shortened.encode()) <= MAX_EXCEPTION_MESSAGE
    if "\ud800" not in text:
        assert text.startswith(shortened)
        assert len(text[: len(shortened) + 1].encode()) > MAX_EXCEPTION_MESSAGE or shortened == text
