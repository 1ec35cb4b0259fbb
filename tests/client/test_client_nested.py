"""Notebooks that start notebooks, in a kernel of the service."""

import html
from collections.abc import Callable

import pytest
from nbformat import NotebookNode

from notebook_runner import Client
from tests.support.gate import Gate
from tests.support.notebooks import notebook, written
from tests.support.server import Server

pytestmark = [pytest.mark.long, pytest.mark.whole_run]

# The cells of a notebook that starts notebooks.
OUTER = (
    "from notebook_runner import AsyncClient, Client; client = Client(TARGET)",
    "run = client.start(INNER)\ndisplay(run)\n_ = run.wait()",
    "held = client.start(HELD)\nheld",
    "other = AsyncClient(TARGET); open(GATE, 'wb').write(b'.')\n_ = await other.wait(held.id)",
    "client.run(INNER)",
    "left = client.start(HELD)\nleft",
)


def shown_by(node: NotebookNode, cell: int) -> list[str]:
    """The HTML of the outputs of a cell."""
    return [output.data["text/html"] for output in node.cells[cell].outputs if "data" in output]


def test_notebook_that_starts_notebooks(make_server: Callable[..., Server], gate: Gate) -> None:
    """In a kernel of the service, the executed notebook has the end of every run that it waited for."""
    server = make_server("--workers", "2")
    inner, held = written(notebook("print('within')")), written(notebook(gate.source, "print('held')"))
    names = f"TARGET, GATE, INNER, HELD = {server.target!r}, {str(gate.path)!r}, {inner!r}, {held!r}"
    with Client(server.target) as client:
        result = client.run(notebook(names, *OUTER))
        executed = result.notebook()
        client.kill()
    for cell in (2, 3, 5):
        (shown,) = shown_by(executed, cell)
        assert "succeeded" in shown
        assert "srcdoc" in shown
    assert "within" in html.unescape(shown_by(executed, 2)[0])
    # Nobody waited for this one: what it shows is what was known then.
    (left,) = shown_by(executed, 6)
    assert "succeeded" not in left
