"""What is saved of a cell whose worker died: the text that it was told to have printed."""

import json

import pytest
from runs.samples import printed
from support.notebooks import code

from notebook_runner_server.execution.interface import CellStarted, ClearOutput, DisplayOutput
from notebook_runner_server.execution.notebook import encode_cell
from notebook_runner_server.runs.model import Body, Event
from notebook_runner_server.runs.salvage import salvage

STARTED = CellStarted(0, "id", "line")


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
        (("a", DisplayOutput(0, "display_data", (("text/plain", 1),)), "b"), "ab"),
    ],
)
def test_the_text_is_what_the_notebook_would_show(bodies: tuple[Body | str, ...], text: str) -> None:
    """Printed text in its order, cleared as the cell asked, and nothing made up for what is not known."""
    assert saved(STARTED, *bodies) == text


def test_a_cell_without_output_is_encoded_as_nbformat_does() -> None:
    """The part stands in the notebook as any other cell, byte for byte."""
    cell = encode_cell(code("a = 'ä'\nb", "tag"))
    assert salvage(cell, []) == cell
