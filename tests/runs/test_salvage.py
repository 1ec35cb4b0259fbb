"""What is saved of a cell whose worker died: the text that it was told to have printed."""

import json

import pytest
from nbformat.v4 import new_output

from notebook_runner_server.execution.interface import (
    CellStarted,
    ClearOutput,
    DisplayOutput,
    StreamOutput,
)
from notebook_runner_server.execution.notebook import encode_cell
from notebook_runner_server.runs.model import Body, Event
from notebook_runner_server.runs.salvage import SalvagedCell, shown_since
from tests.runs.samples import printed
from tests.support.notebooks import code

STARTED = CellStarted(0, "id", "line")


def salvage(cell: bytes, told: list[Event], batch: int = 2) -> bytes:
    """The cell's segment, from its events read back and forth in batches."""
    since, output_after = None, False
    backwards = told[::-1]
    for start in range(0, len(backwards), batch):
        if since is None:
            since, output_after = shown_since(backwards[start : start + batch], output_after=output_after)
    shown = [event for event in told if since is None or event.sequence > since]
    saved = SalvagedCell(cell)
    pieces = [saved.chunk(shown[start : start + batch]) for start in range(0, len(shown), batch)]
    return saved.head + b"".join(pieces) + saved.tail()


def saved(*bodies: Body | str) -> str:
    """All text of the cell after these events."""
    told = [
        printed(place, body) if isinstance(body, str) else Event(place, 1, 0, 1, body)
        for place, body in enumerate(bodies, start=1)
    ]
    cell = json.loads(salvage(encode_cell(code("print('ä')", "tag")), told))
    assert cell["metadata"] == {"tags": ["tag"]}
    assert (cell["source"], cell["execution_count"]) == (["print('ä')"], None)
    assert {output["output_type"] for output in cell["outputs"]} <= {"stream"}
    return "".join("".join(output["text"]) for output in cell["outputs"])


@pytest.mark.parametrize(
    ("bodies", "text"),
    [
        ((), ""),
        (("a", "b\nc\n", "d"), "ab\nc\nd"),
        (("ä €\r\n", "\u2028x"), "ä €\r\n\u2028x"),
        (("a", ClearOutput(0, wait=False), "b"), "b"),
        (("a", ClearOutput(0, wait=True)), "a"),
        (("a", ClearOutput(0, wait=True), "b", "c"), "bc"),
        (("a", ClearOutput(0, wait=True), ClearOutput(0, wait=False)), ""),
        (("a", ClearOutput(0, wait=False), ClearOutput(0, wait=True), "b"), "b"),
        (("a", "", "b"), "ab"),
        (("", "a"), "a"),
        (("",), ""),
        (("a", DisplayOutput(0, "display_data", (("text/plain", 1),)), "b"), "ab"),
    ],
)
def test_the_text_is_what_the_notebook_would_show(bodies: tuple[Body | str, ...], text: str) -> None:
    """Printed text in its order, cleared as the cell asked, and nothing made up for what is not known."""
    assert saved(STARTED, *bodies) == text


def test_what_stood_before_the_cell_is_not_its_own() -> None:
    """The look backwards ends at the cell's start, and says whether the cell had output."""
    backwards = [printed(4), Event(3, 1, 0, 1, STARTED), printed(2)]
    assert shown_since(backwards, output_after=False) == (3, True)
    assert shown_since(backwards[1:], output_after=False) == (3, False)
    assert shown_since(backwards[2:], output_after=False) == (None, True)


@pytest.mark.parametrize("name", ["stdout", "[]"])
def test_a_stream_may_have_any_name(name: str) -> None:
    """A kernel chooses the names of its streams; the notebook stays one that can be read."""
    told = [Event(place, 1, 0, 1, StreamOutput(0, name, text)) for place, text in ((1, "a"), (2, "b"))]
    (output,) = json.loads(salvage(encode_cell(code("1")), told))["outputs"]
    assert (output["name"], output["text"]) == (name, ["a", "b"])


def test_the_cells_id_is_read() -> None:
    """A cell of an old notebook has none."""
    node = code("1")
    node["id"] = "the-id"
    assert SalvagedCell(encode_cell(node)).cell_id == "the-id"
    del node["id"]
    assert SalvagedCell(encode_cell(node)).cell_id == ""


def test_the_cell_is_encoded_as_nbformat_does() -> None:
    """Text of one stream is one output, another stream's another, and each stands as in a file."""
    node = code("'\\n   \"outputs\": []'", "tag")
    node.outputs = [
        new_output("stream", name="stdout", text="a\nb"),
        new_output("stream", name="stderr", text="c\n"),
        new_output("stream", name="stdout", text="d\n"),
    ]
    bare = code("'\\n   \"outputs\": []'", "tag")
    bare["id"] = node["id"]
    texts = [("stdout", "a\n"), ("stdout", "b"), ("stderr", "c\n"), ("stdout", "d\n")]
    told = [
        Event(place, 1, 0, 1, StreamOutput(0, name, text))
        for place, (name, text) in enumerate(texts, start=2)
    ]
    saved = salvage(encode_cell(bare), [Event(1, 1, 0, 1, STARTED), *told])
    assert saved == encode_cell(node)


def test_a_cell_without_output_is_encoded_as_nbformat_does() -> None:
    """The segment stands in the notebook as any other cell, byte for byte."""
    cell = encode_cell(code("a = 'ä'\nb", "tag"))
    assert salvage(cell, []) == cell
