"""Runs that show themselves in a notebook."""

import asyncio
import html
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from IPython.core.interactiveshell import InteractiveShell

from notebook_runner import AsyncClient, AsyncRun, Client, Run, RunSnapshot, _notebook, _views
from notebook_runner._panel import Panel
from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.fake_server import ENDED, FAILED, RUNNING, FakeServer, changed
from tests.support.shells import SECONDS, Frontend, KernelShell, inside

PAGE = "<h1>page</h1><script>alert('\"')</script>"


@pytest.fixture
def screen() -> Frontend:
    """What the frontend shows."""
    return Frontend()


@pytest.fixture
def shell(tmp_path: Path, screen: Frontend) -> Iterator[InteractiveShell]:
    """The shell of a kernel, with that frontend."""
    with inside(KernelShell, tmp_path) as running:
        running.display_pub = screen  # type: ignore[assignment] # does what a kernel's does
        yield running


def formatted(shell: InteractiveShell, thing: object) -> dict[str, str]:
    """What is left to show when something is the last line of a cell."""
    assert shell.display_formatter
    data, _ = shell.display_formatter.format(thing)
    return dict(data)


def show(shell: InteractiveShell, run: pb.Run | RunSnapshot) -> None:
    """Displays a run, which shows itself."""
    assert formatted(shell, RunSnapshot(run) if isinstance(run, pb.Run) else run) == {}


def page(content: str = PAGE) -> pb.OutputResponse:
    """An artefact of one page."""
    data = content.encode()
    return pb.OutputResponse(content=data, next_offset=len(data), total_bytes=len(data))


def cell(sequence: int, first_line: str = "x = 1") -> pb.ProgressResponse:
    """The event of a cell that begins."""
    started = pb.CellStarted(cell_index=1, first_line=first_line)
    return pb.ProgressResponse(sequence=sequence, cells_completed=1, cells_total=4, cell_started=started)


def test_ended_run_shows_its_end_at_once(shell: InteractiveShell, screen: Frontend, fake: FakeServer) -> None:
    """A run that has ended is one output: the full bar, and the result in a frame without rights."""
    fake.answers("Progress", changed(1, ENDED))
    fake.answers("Output", page())
    with Client(fake.target):
        show(shell, RUNNING)
    assert "succeeded" in screen.last
    assert f'sandbox="" srcdoc="{html.escape(PAGE)}"' in screen.last
    assert "<script" not in screen.last
    assert fake.asked[0].snapshot_only
    assert (screen.places, screen.changes) == (1, 0)


async def wait_awaited(target: str, screen: Frontend) -> str:
    """What is shown when a wait of the client of asyncio is over."""
    async with AsyncClient(target) as client:
        await client.wait("r")
        return screen.last


def wait_blocking(target: str, screen: Frontend) -> str:
    """What is shown when a wait of the client that blocks is over."""
    with Client(target) as client:
        client.wait("r")
        return screen.last


@pytest.mark.parametrize("wait", [wait_blocking, lambda *args: asyncio.run(wait_awaited(*args))])
def test_live_run_changes_until_its_end(
    shell: InteractiveShell, screen: Frontend, fake: FakeServer, wait: Callable[[str, Frontend], str]
) -> None:
    """The bar shows the current cell as it begins; whoever waited for the run finds its result shown."""
    ending, waiting, never = threading.Event(), threading.Event(), threading.Event()

    def end() -> pb.ProgressResponse:
        waiting.set()
        return changed(3, ENDED)

    def late() -> pb.OutputResponse:
        # Time enough to come back for a wait that does not wait for this.
        waiting.wait(SECONDS)
        never.wait(0.2)
        return page()

    fake.answers("Progress", changed(1, RUNNING))
    fake.answers("Progress", cell(2, "tick()"), lambda: ending.wait(SECONDS) and changed(3, ENDED))
    fake.answers("Progress", end)
    fake.answers("Output", late)
    with Client(fake.target):
        show(shell, RUNNING)
    screen.until("cell 2: <code>tick()</code>")
    assert "1 of 4 cells" in screen.last
    assert "width:25%" in screen.last
    ending.set()
    assert "srcdoc" in wait(fake.target, screen)
    assert screen.places == 1


def test_many_events_are_few_changes(
    shell: InteractiveShell, screen: Frontend, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of thousands of quick cells does not flood the notebook: there is a pause after each change."""
    monkeypatch.setattr(_views, "SHORTEST_PAUSE", SECONDS)
    fake.answers("Progress", changed(1, RUNNING))
    fake.answers("Progress", *(cell(sequence) for sequence in range(2, 3000)), changed(3000, ENDED))
    fake.answers("Output", page())
    with Client(fake.target):
        show(shell, RUNNING)
    screen.until("srcdoc")
    # One before the pause, which the end of the run ends, and one after it.
    assert screen.changes <= 2


def test_one_run_in_two_places(shell: InteractiveShell, screen: Frontend, fake: FakeServer) -> None:
    """A run that is shown twice is followed once, and both outputs change together."""
    ending = threading.Event()
    fake.answers("Progress", changed(1, RUNNING))
    fake.answers("Progress", lambda: ending.wait(SECONDS) and changed(2, ENDED))
    fake.answers("Output", page())
    with Client(fake.target):
        show(shell, RUNNING)
        show(shell, RUNNING)
    ending.set()
    screen.until("srcdoc")
    assert screen.places == 2
    assert len(fake.asked) == 3


def test_end_between_two_cells_is_told_again(
    shell: InteractiveShell, screen: Frontend, fake: FakeServer
) -> None:
    """What is shown while no cell runs is shown once more in the next one: who has no frontend missed it."""
    ending = threading.Event()
    fake.answers("Progress", changed(1, RUNNING))
    fake.answers("Progress", lambda: ending.wait(SECONDS) and changed(2, ENDED))
    fake.answers("Output", page())
    with Client(fake.target):
        show(shell, RUNNING)
        shell.run_cell("this_cell = 'ends'")
        over = _notebook.shown("r")
        ending.set()
        assert over
        assert over.wait(SECONDS)
        changes = screen.changes
        for _ in range(2):
            shell.run_cell("another = 'cell'")
            assert screen.changes == changes + 1
    assert "srcdoc" in screen.last


@pytest.mark.parametrize("kind", [Run, AsyncRun])
def test_result_shows_its_run(
    shell: InteractiveShell, screen: Frontend, fake: FakeServer, kind: type[Run | AsyncRun]
) -> None:
    """What `run` answers shows the result, with either client."""
    fake.answers("Progress", changed(1, ENDED))
    fake.answers("Output", page())
    with Client(fake.target):
        show(shell, kind(ENDED))
    assert "srcdoc" in screen.last


def test_run_of_another_server(shell: InteractiveShell, screen: Frontend, fake: FakeServer) -> None:
    """A run is found also when the newest client is another server's, which may be gone."""
    other = FakeServer()
    fake.answers("Progress", changed(1, ENDED))
    fake.answers("Output", page())
    with Client(fake.target), Client(other.target):
        other.stop()
        show(shell, RUNNING)
    assert "srcdoc" in screen.last
    assert "UNAVAILABLE" not in screen.last


def test_run_that_nobody_knows(shell: InteractiveShell, screen: Frontend, fake: FakeServer) -> None:
    """A run whose server does not know it any more shows what the run itself says, and why no more."""
    fake.answers("Progress", grpc.StatusCode.NOT_FOUND)
    with Client(fake.target):
        show(shell, RUNNING)
    assert "running" in screen.last
    assert "scripted" in screen.last
    assert screen.changes == 0


@pytest.mark.usefixtures("held")
def test_server_that_hangs(
    shell: InteractiveShell, screen: Frontend, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that does not answer does not hold the cell for long."""
    monkeypatch.setattr(_views, "LOOK_TIMEOUT", 0.2)
    with Client(fake.target):
        show(shell, RUNNING)
    assert "within 0.2 s" in screen.last


def test_lost_connection_is_said(
    shell: InteractiveShell, screen: Frontend, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that does not come back ends the view, with the reason in it."""
    monkeypatch.setattr(_views, "RECONNECT_TIMEOUT", 0.0)
    fake.answers("Progress", changed(1, RUNNING))
    fake.answers("Progress", grpc.StatusCode.UNAVAILABLE)
    with Client(fake.target) as client:
        show(shell, RUNNING)
        screen.until("scripted")
        fake.answers("Progress", changed(2, ENDED))
        client.wait("r")


@pytest.mark.parametrize(
    ("answer", "note"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, "Cannot show the result: FAILED_PRECONDITION: scripted"),
        (
            pb.OutputResponse(content=b"x", next_offset=1, total_bytes=9_000_000),
            "too large to show here (9 MB)",
        ),
    ],
)
def test_result_that_cannot_be_shown(
    shell: InteractiveShell, screen: Frontend, fake: FakeServer, answer: object, note: str
) -> None:
    """Without its result a run still shows how it ended, and why there is no more."""
    fake.answers("Progress", changed(1, ENDED))
    fake.answers("Output", answer)
    with Client(fake.target):
        show(shell, ENDED)
    assert "succeeded" in screen.last
    assert note in screen.last
    assert "iframe" not in screen.last


def test_terminal_has_one_line(fake: FakeServer, tmp_path: Path) -> None:
    """IPython outside of a kernel prints a run as one line, and asks no server."""
    with inside(InteractiveShell, tmp_path) as shell, Client(fake.target):
        assert formatted(shell, Run(FAILED))["text/plain"] == "run r failed, no"
    assert not fake.asked


def test_everything_of_the_notebook_is_escaped() -> None:
    """No text of the run becomes markup."""
    evil = "<script>alert(1)</script>\"'"
    failure = pb.Failure(
        message=evil, exception_name=evil, exception_message=evil, traceback=evil, cell_index=0
    )
    run = pb.Run(run_id=evil, notebook_path=evil, state=pb.RUN_STATE_FAILED, failure=failure)
    going = Panel(pb.Run(run_id=evil, notebook_uri=evil, state=pb.RUN_STATE_RUNNING))
    going.accept(cell(2, evil))
    ended = Panel(run, note=evil, result=evil)
    for panel in (going, ended, Panel(pb.Run(run_id=evil))):
        assert "<script" not in panel.html()
        assert "&lt;script&gt;" in panel.html()


def test_panel_counts_as_people_do() -> None:
    """Cells count from one, the clock is the run's own, and a queued run has its place."""
    queued = pb.Run(run_id="r", state=pb.RUN_STATE_QUEUED, queue_position=2)
    assert Panel(queued).line() == "run r queued, 2 runs ahead"
    queued.queue_position = 0
    assert Panel(queued).line() == "run r queued, next to start"
    ended = pb.Run(run_id="r", state=pb.RUN_STATE_FAILED, cells_completed=2, cells_total=5)
    ended.failure.MergeFrom(
        pb.Failure(cell_index=2, exception_name="KeyError", exception_message="'a'\nmore")
    )
    ended.start_time.FromSeconds(1000)
    ended.end_time.FromSeconds(1000 + 3661)
    assert Panel(ended).line() == "run r failed, 2 of 5 cells, 1:01:01, cell 3: KeyError: 'a'"
