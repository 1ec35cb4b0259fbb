"""What a batch of a backend's makes of a run, its log and its file of parts."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from notebook_runner_server.execution.interface import (
    Cause,
    CellChunk,
    CellFinished,
    CellOutcome,
    CellStarted,
    Ended,
    ExecutionEvent,
    Failure,
    FilePiece,
    FilesLeft,
    KernelReady,
    ReplayMark,
    StreamOutput,
)
from notebook_runner_server.runs.checkpoint import Checkpoint
from notebook_runner_server.runs.clock import Clock
from notebook_runner_server.runs.log import RunLog
from notebook_runner_server.runs.model import Event, Run, RunChanged, RunState
from notebook_runner_server.runs.store import Store, WriteBatch
from notebook_runner_server.runs.tables import Part
from notebook_runner_server.runs.updates import PartsCursor, Update, apply_events
from tests.runs.samples import a_run

NOW = 99
LAST = 5
TEXT = StreamOutput(0, "stdout", "text")
STANDING = PartsCursor(size=10, part_start=10)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> RunLog:
    """The log of a run with five events, at a time that stands still; nothing is read from its store."""
    clock = Clock()
    monkeypatch.setattr(clock, "now", lambda: NOW)
    return RunLog(Store(Path("unused")), 1, LAST, ended=False, clock=clock)


def after(
    log: RunLog,
    *batch: ExecutionEvent,
    run: Run | None = None,
    parts_cursor: PartsCursor = STANDING,
    error: str = "",
) -> Update:
    """What a batch makes of a run."""
    return apply_events(batch, run or a_run(RunState.RUNNING), parts_cursor, log, error)


def test_a_part_that_is_not_whole_is_written_and_shows_nowhere(log: RunLog) -> None:
    """Its pieces go where the file ends; the part still begins where it began."""
    folded = after(log, CellChunk(0, b"abc", last=False), CellChunk(0, b"de", last=False))
    assert folded.written == WriteBatch(10, [b"abc", b"de"], [], None, [])
    assert folded.parts_cursor == PartsCursor(size=15, part_start=10)
    assert folded.events == []


def test_a_part_shows_from_the_event_on_that_follows_it(log: RunLog) -> None:
    """It reaches from its first piece, of an earlier batch, to its last; the next one begins there."""
    parts_cursor = PartsCursor(size=13, part_start=10)
    parts = (CellChunk(0, b"de", last=True), TEXT, CellChunk(1, b"f", last=True))
    folded = after(log, TEXT, *parts, TEXT, parts_cursor=parts_cursor)
    assert folded.written.start == 13
    assert folded.written.parts == [Part(0, LAST + 2, 10, 5), Part(1, LAST + 3, 15, 1)]
    assert folded.parts_cursor == PartsCursor(size=16, part_start=16)
    assert folded.events == [Event(LAST + place, NOW, 0, 2, TEXT) for place in (1, 2, 3)]


def test_a_part_that_is_given_up_leaves_a_gap() -> None:
    """The next one begins where the file ends, and all else stays."""
    parts_cursor = PartsCursor(size=13, part_start=10, cell_id="id", cell_start=1.0)
    assert parts_cursor.without_part() == replace(parts_cursor, part_start=13)


def test_the_newest_mark_says_where_to_go_on(log: RunLog) -> None:
    """After a restart the run is gone on with after the last batch of which all is durable."""
    chunk = CellChunk(0, b"abc", last=False)
    assert after(log, ReplayMark(7), chunk, ReplayMark(8)).written.resume == Checkpoint(
        mark=8, part_start=10, size=13
    )
    assert after(log, ReplayMark(0)).written.resume == Checkpoint(mark=0, part_start=10, size=10)
    assert after(log, chunk).written.resume is None
    assert after(log, ReplayMark(7)).events == []


def test_a_cell_is_timed_from_its_start(log: RunLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the monotonic clock; of a cell that an earlier server saw start nobody knows how long it took."""
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    assert STANDING.cell_seconds == 0.0
    parts_cursor = after(log, CellStarted(1, "id", "line")).parts_cursor
    assert parts_cursor == PartsCursor(10, 10, cell_id="id", cell_start=100.0)
    monkeypatch.setattr(time, "monotonic", lambda: 103.5)
    assert parts_cursor.cell_seconds == 3.5


@pytest.mark.parametrize("is_warm", [False, True])
def test_a_ready_kernel_says_whether_it_was_warm(log: RunLog, *, is_warm: bool) -> None:
    """The run is RUNNING; a batch without a kernel says nothing of it."""
    starting = a_run(RunState.STARTING)
    folded = after(log, KernelReady(is_warm=is_warm), run=starting)
    running = replace(starting, state=RunState.RUNNING)
    assert (folded.run, folded.is_warm) == (running, is_warm)
    assert folded.events == [Event(LAST + 1, NOW, 0, 2, RunChanged(running))]
    assert after(log, TEXT).is_warm is None


def test_the_notebooks_files_are_for_the_folder(log: RunLog) -> None:
    """They are kept in their order, and no event tells of them."""
    piece, left = FilePiece("a", 0, b"x", 0o600, 1), FilesLeft(5)
    folded = after(log, piece, left)
    assert folded.written.files == [piece, left]
    assert folded.events == []


def test_each_event_counts_the_cells_as_they_are_then(log: RunLog) -> None:
    """The run goes through the batch one event after the other."""
    finished = CellFinished(0, "id", 1, 0.1, CellOutcome.SUCCEEDED)
    folded = after(log, CellStarted(0, "id", "line"), finished, TEXT)
    assert [event.cells_completed for event in folded.events] == [0, 1, 1]
    assert (folded.run.cells_completed, folded.run.current_cell) == (1, None)


def test_the_end_says_why_the_notebook_is_not_at_its_uri(log: RunLog) -> None:
    """The reason goes into the run, which ends at the log's time."""
    run = a_run(RunState.RUNNING, output_uri="https://host/a.ipynb")
    folded = after(log, Ended(Failure(Cause.CELL_ERROR, "why")), run=run, error="Refused.")
    assert (folded.run.state, folded.run.end_time) == (RunState.FAILED, NOW)
    assert folded.run.output_error == "Refused."
    assert after(log, Ended(None), run=run).run.output_error == ""
