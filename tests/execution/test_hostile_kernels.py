"""A kernel that sends what no kernel sends: events stay small, memory stays bounded, and the run ends."""

from dataclasses import astuple
from typing import Any

import pytest

from notebook_runner_server.execution import output_limiter
from notebook_runner_server.execution.interface import (
    MAX_TYPES,
    CellFinished,
    ClearOutput,
    DisplayOutput,
    Ended,
    ErrorOutput,
    ExecutionEvent,
    Limits,
    OutputCut,
    SegmentChunk,
    StreamOutput,
)
from notebook_runner_server.execution.output_limiter import OutputLimiter, sound
from tests.execution.pools import Pool, end, executed, said

pytestmark = pytest.mark.integration

LARGEST_EVENT = 1024 * 1024
SEND = """
kernel = get_ipython().kernel
def send(kind, content, **more):
    kernel.session.send(kernel.iopub_socket, kind, content, parent=kernel.get_parent("shell"), **more)
display_data = lambda data, **more: send("display_data", {"data": data, "metadata": {}, **more})
"""
COUNTED = [
    "display_data({f'text/x-{n}': '' for n in range(30_000)})",
    "display_data({'text/' + 'x' * 300_000: ''})",
    "display_data({'text/plain': ''}, metadata={'x': 'y' * 300_000})",
    "display_data({'text/plain': ''}, transient={'display_id': 'y' * 300_000})",
    "send('comm_open', {'comm_id': 'a', 'target_name': 'b', 'data': {'state': {'x': 'y' * 300_000}}})",
    "send('comm_msg', {'comm_id': 'a', 'data': {}}, buffers=[b'y' * 300_000])",
    "for _ in range(13_000): send('clear_output', {'wait': True})",
    "for _ in range(13_000): display_data({})",
    "for n in range(13_000): send('update_display_data', {'data': {}, 'transient': {'display_id': str(n)}})",
    "for _ in range(13_000): send('stream', {'name': 'stdout', 'text': ''})",
]


def letters(value: Any) -> int:
    """How many characters all texts within a value have."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, tuple | list):
        return sum(map(letters, value))
    return 8


def ran(pool: Pool, *lines: str, **limits: int) -> list[ExecutionEvent]:
    """The events of a notebook that sends what it likes, each of them small."""
    events = pool.run(SEND, "\n".join(lines), "print('after')", **limits)
    told = [event for event in events if not isinstance(event, SegmentChunk)]
    assert max(letters(astuple(event)) for event in told) <= LARGEST_EVENT
    return events


def succeeded(pool: Pool, *lines: str, **limits: int) -> list[ExecutionEvent]:
    """The same, of a run that is not disturbed by it."""
    events = ran(pool, *lines, **limits)
    assert end(events).failure is None
    assert said(events).endswith("after\n")
    executed(events, 3)
    return events


def test_a_display_of_many_types(pool: Pool) -> None:
    """Of some the event tells, of the rest how many they are; the notebook has all."""
    events = succeeded(pool, "display_data({f'text/x-{n}': 'a' for n in range(30_000)})")
    (event,) = [event for event in events if isinstance(event, DisplayOutput)]
    assert len(event.data) == MAX_TYPES
    assert event.omitted == 30_000 - MAX_TYPES
    assert len(executed(events, 3).cells[1].outputs[0].data) == 30_000


@pytest.mark.parametrize("sent", COUNTED)
def test_all_that_is_kept_is_counted(pool: Pool, sent: str) -> None:
    """Names, metadata, state of widgets, and messages that show nothing, when they are many."""
    events = succeeded(pool, sent, cell_output_bytes=200_000)
    assert [one for one in events if isinstance(one, OutputCut)] == [OutputCut(1, 200_000, whole_run=False)]
    assert sum(len(event.data) for event in events if isinstance(event, SegmentChunk)) < 12_000_000


def test_few_messages_count_what_they_show(pool: Pool) -> None:
    """A loop that clears and prints as notebooks do is not cut."""
    cell = "for n in range(2000):\n    send('clear_output', {'wait': True}); print(n)"
    events = succeeded(pool, cell, cell_output_bytes=50_000)
    assert not [event for event in events if isinstance(event, OutputCut)]
    assert len([event for event in events if isinstance(event, ClearOutput)]) == 2000


def test_long_names(pool: Pool) -> None:
    """Of streams, types, displays and exceptions."""
    long = "'x' * 5_000_000"
    succeeded(
        pool,
        f"send('stream', {{'name': {long}, 'text': 'a'}})",
        f"display_data({{{long}: 'a'}})",
        f"send('error', {{'ename': {long}, 'evalue': {long}, 'traceback': [{long}] * 3}})",
    )
    events = ran(pool, f"raise type({long}, (Exception,), {{}})({long})")
    failure = end(events).failure
    assert failure is not None
    assert letters(astuple(failure)) < LARGEST_EVENT


def test_lone_surrogates_are_in_no_event(pool: Pool) -> None:
    """Wherever a kernel puts them: protobuf cannot carry them, so no stream with them could be read."""
    bad = "chr(0xD800)"
    events = succeeded(
        pool,
        f"send('stream', {{'name': {bad}, 'text': {bad}}})",
        f"display_data({{'text/' + {bad}: {bad}}}, transient={{'display_id': {bad}}})",
        f"send('error', {{'ename': {bad}, 'evalue': {bad}, 'traceback': [{bad}]}})",
    )
    assert next(event for event in events if isinstance(event, StreamOutput)).name == "?"
    told = [event for event in events if not isinstance(event, SegmentChunk)]
    assert "\\ud" not in ascii(list(map(astuple, told)))


def test_tracebacks_of_many_lines(pool: Pool) -> None:
    """They are bounded however short the lines are."""
    events = succeeded(pool, "send('error', {'ename': 'E', 'evalue': '', 'traceback': [''] * 2_000_000})")
    assert [event for event in events if isinstance(event, ErrorOutput)] == [ErrorOutput(1, "E", "")]
    assert len(executed(events, 3).cells[1].outputs[0].traceback) <= output_limiter.MAX_TRACEBACK / 8


@pytest.mark.parametrize(
    "content",
    ["{'name': 5, 'text': 'a'}", "{'name': 'stdout', 'text': 5}", "{'name': 'stdout', 'text': ['a']}", "{}"],
)
def test_streams_of_other_types(pool: Pool, content: str) -> None:
    """They are left out."""
    assert said(succeeded(pool, f"send('stream', {content})")) == "after\n"


@pytest.mark.parametrize(
    "data",
    [
        "{'image/png': 5, 'text/plain': None}",
        "{'application/json': 10**5_000}",
        "{'application/json': nested(9_000)}",
        "{'application/json': nested(40_000)}",
        "{'application/vnd.x+json': {'a': nested(40_000)}}",
    ],
)
def test_displays_that_no_notebook_can_keep(pool: Pool, data: str) -> None:
    """Of values that nbformat's schema or Python's parser of JSON refuses: they are left out."""
    succeeded(
        pool,
        "import sys; sys.set_int_max_str_digits(0); sys.setrecursionlimit(200_000)",
        "def nested(depth):\n    value = []\n    for _ in range(depth): value = [value]\n    return value",
        f"display_data({data})",
    )


@pytest.mark.parametrize("kind", ["display_data", "execute_result", "update_display_data"])
@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "{'data': 5, 'metadata': {}}",
        "{'data': {'text/plain': 'a'}, 'metadata': 5, 'execution_count': 1}",
        "{'data': {'text/plain': 'a'}, 'metadata': {}, 'transient': 5, 'execution_count': 1}",
        "{'data': {'text/plain': 'a'}, 'metadata': {}, 'execution_count': 'x' * 3_000_000}",
    ],
)
def test_displays_of_other_types(pool: Pool, kind: str, content: str) -> None:
    """They are left out, or what is wrong of them is; the count is that of the reply."""
    events = succeeded(pool, f"send({kind!r}, {content})")
    assert [event.execution_count for event in events if isinstance(event, CellFinished)] == [1, 2, 3]
    assert sum(len(event.data) for event in events if isinstance(event, SegmentChunk)) < 100_000


@pytest.mark.parametrize(
    "content", ["{}", "{'ename': 5, 'evalue': [1], 'traceback': 5}", "{'traceback': [1, None, {}]}", "5"]
)
def test_errors_of_other_types(pool: Pool, content: str) -> None:
    """What is wrong of them is shown as text."""
    assert isinstance(ran(pool, f"send('error', {content})")[-1], Ended)


MALFORMED = [
    "send('comm_open', {})",
    "send('comm_msg', {'comm_id': 5, 'data': {}})",
    "send('comm_msg', {'comm_id': 'a', 'data': 5})",
    "send('comm_msg', {'comm_id': 'a', 'data': {'state': 5}})",
    "send('comm_msg', {'comm_id': 'a', 'data': {'state': {}, 'buffer_paths': [[[]]]}}, buffers=[b'x'])",
    "send('comm_open', {'comm_id': 'a', 'data': {}, 'target_name': []})",
    "send('comm_open', {'comm_id': 'a', 'data': {}, 'target_name': 'jupyter.widget'})",
    "send('comm_close', {'comm_id': 'a'})",
    "send('comm', {})",
    "send('status', {})",
    "send('clear_output', {'data': 5, 'traceback': 5})",
    "send('stream', {'name': 'stdout', 'text': '', 'transient': 5})",
]


def test_malformed_messages_are_left_out(pool: Pool) -> None:
    """The run goes on, and what comes after them is there."""
    succeeded(pool, *MALFORMED)


def test_a_display_with_text_is_counted_and_cut(pool: Pool) -> None:
    """A field that displays do not have changes nothing."""
    send = "send('display_data', {'data': {'text/plain': 'x' * 300_000}, 'metadata': {}, 'text': 'abc'})"
    events = succeeded(pool, send, cell_output_bytes=200_000)
    assert [one for one in events if isinstance(one, OutputCut)] == [OutputCut(1, 200_000, whole_run=False)]
    assert sum(len(event.data) for event in events if isinstance(event, SegmentChunk)) < 100_000
    send = "send('display_data', {'data': {}, 'metadata': {}, 'text': [5] * 300_000})"
    succeeded(pool, send, cell_output_bytes=200_000)


@pytest.mark.parametrize("content", [None, 5, "x", [], {"name": "stdout"}])
def test_no_content(content: object) -> None:
    """What is no object is no message."""
    assert sound("stream", content) is None


def test_each_message_costs_when_there_are_many() -> None:
    """The first ones count what they show, further ones what they take as well; each cell begins anew."""
    counted = OutputLimiter(Limits())
    content = {"name": "stdout", "text": "abc"}
    assert {counted.cost(content) for _ in range(output_limiter.FREE_MESSAGES)} == {3}
    assert counted.cost(content) == 3 + output_limiter.MESSAGE_BYTES
    counted.start_cell()
    assert counted.cost(content) == 3
