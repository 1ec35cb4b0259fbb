"""Runs that show themselves in a notebook."""

import asyncio
import html
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from nbformat import NotebookNode
from support.gate import Gate
from support.notebooks import notebook, written
from support.scripted import ENDED, RUNNING, Double, changed
from support.server import Server
from traitlets import Any as AnyTrait

from notebook_runner import AsyncClient, AsyncRunResult, Client, RunResult, _notebook, _views
from notebook_runner._panel import Panel
from notebook_runner.v1 import notebook_runner_pb2 as pb

PAGE = "<h1>page</h1><script>alert('\"')</script>"
SECONDS = 30.0


class KernelShell(InteractiveShell):
    """IPython as it is in a kernel, without one."""

    kernel = AnyTrait()


class Screen(CapturingDisplayPublisher):
    """Keeps what was shown, each view at its place, as a frontend does."""

    def __init__(self) -> None:
        super().__init__()
        self.views: dict[str, list[str]] = {}
        self.texts: list[str] = []

    def publish(self, data: dict[str, str], *_: object, transient: dict[str, str], update: bool) -> None:
        """Takes what IPython would send to the frontend."""
        assert update == (transient["display_id"] in self.views)
        self.views.setdefault(transient["display_id"], []).append(data["text/html"])
        self.texts.append(data["text/plain"])

    @property
    def last(self) -> str:
        """What the only view shows now."""
        (view,) = self.views.values()
        return view[-1]


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    """The shell of a kernel, that the code under test believes itself to be in."""
    KernelShell.clear_instance()
    running = KernelShell.instance()
    running.display_pub = Screen()
    yield running
    running.history_manager.end_session()
    KernelShell.clear_instance()
    _notebook._views = None


def show(shell: InteractiveShell, thing: object) -> Screen:
    """Displays something as the last line of a cell does; answers the screen."""
    data, _ = shell.display_formatter.format(thing)
    assert data == {}, "it has shown itself"
    screen = shell.display_pub
    assert isinstance(screen, Screen)
    return screen


def page(content: str = PAGE) -> pb.OutputResponse:
    """An artefact of one page."""
    data = content.encode()
    return pb.OutputResponse(content=data, next_offset=len(data), total_bytes=len(data))


def test_ended_run_shows_its_end_at_once(shell: InteractiveShell, double: Double) -> None:
    """A run that has ended is one output: the full bar, and the result in a frame without rights."""
    double.answers("Progress", changed(1, ENDED))
    double.answers("Output", page())
    with Client(double.target):
        screen = show(shell, RUNNING)
    assert "succeeded" in screen.last
    assert f'sandbox="" srcdoc="{html.escape(PAGE)}"' in screen.last
    assert "<script" not in screen.last
    assert double.asked[0].snapshot_only
    assert len(screen.texts) == 1


# The cells of a notebook that starts notebooks.
OUTER = (
    "from notebook_runner import AsyncClient, Client; client = Client(TARGET)",
    "run = client.start(INNER)\ndisplay(run)\n_ = client.wait(run.run_id)",
    "held = client.start(HELD)\nheld",
    "open(GATE, 'wb').write(b'.')\nasync with AsyncClient(TARGET) as other:\n    _ = await other.wait(held.run_id)",
    "client.run(INNER)",
    "left = client.start(HELD)\nleft",
)


def shown_by(node: NotebookNode, cell: int) -> list[str]:
    """The HTML of the outputs of a cell."""
    return [output.data["text/html"] for output in node.cells[cell].outputs if "data" in output]


def test_notebook_that_starts_notebooks(make_server: Callable[..., Server], gate: Gate) -> None:
    """In a kernel of the service itself, the executed notebook has the end of every run that it waited for."""
    server = make_server("--workers", "2")
    inner, held = written(notebook("print('within')")), written(notebook(gate.source, "print('held')"))
    names = f"TARGET, GATE, INNER, HELD = {server.target!r}, {str(gate.path)!r}, {inner!r}, {held!r}"
    with Client(server.target) as client:
        result = client.run(notebook(names, *OUTER))
        executed = result.notebook()
        client.kill(next(client.list(states=["running"])).run_id)
    for cell in (2, 3, 5):
        (shown,) = shown_by(executed, cell)
        assert "succeeded" in shown
        assert "srcdoc" in shown
    assert "within" in html.unescape(shown_by(executed, 2)[0])
    # Nobody waited for this one: what it shows is what was known then.
    (left,) = shown_by(executed, 6)
    assert "succeeded" not in left
