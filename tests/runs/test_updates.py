"""What a batch of a backend's makes of a run, its log and its file of segments."""

import time
import zlib
from dataclasses import replace

import pytest

from notebook_runner_server.execution.interface import (
    MAX_TEXT_BYTES,
    Cause,
    CellFinished,
    CellOutcome,
    CellStarted,
    ClearOutput,
    DisplayOutput,
    Ended,
    ExecutionEvent,
    Failure,
    FilePiece,
    FilesLeft,
    KeptContent,
    KernelReady,
    ReplayMark,
    ResultValue,
    SegmentChunk,
    StreamOutput,
)
from notebook_runner_server.runs.model import (
    Checkpoint,
    Event,
    Run,
    RunChanged,
    RunState,
    Segment,
    WriteBatch,
)
from notebook_runner_server.runs.transitions import Clock, SegmentCursor, Update, apply_events
from tests.runs.samples import a_run

NOW = 99
LAST = 5
TEXT = StreamOutput(0, "stdout", "text")
STANDING = SegmentCursor(size=10, segment_start=10)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of a run with five events, which stands still."""
    clock = Clock()
    monkeypatch.setattr(clock, "now", lambda: NOW)
    return clock


def after(
    clock: Clock,
    *batch: ExecutionEvent,
    run: Run | None = None,
    cursor: SegmentCursor = STANDING,
) -> Update:
    """What a batch makes of a run."""
    return apply_events(batch, run or a_run(RunState.RUNNING), cursor, clock, LAST)


def test_a_segment_that_is_not_whole_is_written_and_shows_nowhere(clock: Clock) -> None:
    """Its pieces go where the file ends; the segment still begins where it began."""
    folded = after(clock, SegmentChunk(0, b"abc", last=False), SegmentChunk(0, b"de", last=False))
    assert folded.written == WriteBatch(10, [b"abc", b"de"], [], None, [])
    assert folded.cursor == SegmentCursor(size=15, segment_start=10)
    assert folded.events == []


def test_a_segment_shows_from_the_event_on_that_follows_it(clock: Clock) -> None:
    """It reaches from its first piece, of an earlier batch, to its last; the next one begins there."""
    cursor = SegmentCursor(size=13, segment_start=10)
    segments = (SegmentChunk(0, b"de", last=True), TEXT, SegmentChunk(1, b"f", last=True))
    folded = after(clock, TEXT, *segments, TEXT, cursor=cursor)
    assert folded.written.start == 13
    assert folded.written.segments == [Segment(0, LAST + 2, 10, 5), Segment(1, LAST + 3, 15, 1)]
    assert folded.cursor == SegmentCursor(size=16, segment_start=16)
    assert folded.events == [Event(LAST + place, NOW, 0, 2, TEXT) for place in (1, 2, 3)]


def text(*pieces: str, cell: int = 0, name: str = "stdout") -> list[ExecutionEvent]:
    """One event for each piece of printed text."""
    return [StreamOutput(cell, name, piece) for piece in pieces]


def test_text_that_arrives_together_is_one_event(clock: Clock) -> None:
    """Adjacent text of one stream and cell is joined, and the number of a checkpoint does not part it."""
    update = after(
        clock,
        *text("a", "b"),
        ReplayMark(1),
        *text("c"),
        *text("d", "e", name="stderr"),
        *text("f"),
        ClearOutput(0, wait=False),
        *text("g"),
        *text("h", cell=1),
        ReplayMark(2),
    )
    assert [event.body for event in update.events] == [
        StreamOutput(0, "stdout", "abc"),
        StreamOutput(0, "stderr", "de"),
        StreamOutput(0, "stdout", "f"),
        ClearOutput(0, wait=False),
        StreamOutput(0, "stdout", "g"),
        StreamOutput(1, "stdout", "h"),
    ]
    assert [event.sequence for event in update.events] == [LAST + place for place in range(1, 7)]
    assert update.written.checkpoint == Checkpoint(2, 10, 10)


def test_a_segment_parts_the_text_around_it(clock: Clock) -> None:
    """Otherwise the segment would be visible with text that was printed before it."""
    update = after(clock, *text("a"), SegmentChunk(0, b"x", last=True), *text("b"))
    assert [event.body for event in update.events] == text("a", "b")
    assert update.written.segments == [Segment(0, LAST + 2, 10, 1, zlib.crc32(b"x"))]


def test_segments_have_the_checksums_of_their_bytes(clock: Clock) -> None:
    """From the first chunk to the last, over several batches, and each segment its own."""
    first = after(clock, SegmentChunk(0, b"ab", last=False), SegmentChunk(0, b"cd", last=False))
    second = after(
        clock,
        SegmentChunk(0, b"ef", last=True),
        SegmentChunk(1, b"g", last=True),
        TEXT,
        cursor=first.cursor,
    )
    assert [one.checksum for one in second.written.segments] == [zlib.crc32(b"abcdef"), zlib.crc32(b"g")]


def test_a_segment_that_an_earlier_server_began_has_no_checksum(clock: Clock) -> None:
    """Its first bytes were seen by that server only; the next segment has one again."""
    cursor = replace(STANDING, size=13, checksum=None)
    chunks = (
        SegmentChunk(0, b"ab", last=False),
        SegmentChunk(0, b"c", last=True),
        SegmentChunk(1, b"d", last=True),
    )
    update = after(clock, *chunks, TEXT, cursor=cursor)
    assert [one.checksum for one in update.written.segments] == [None, zlib.crc32(b"d")]


def test_text_is_joined_up_to_the_limit_itself(clock: Clock) -> None:
    """The limit is allowed, and one byte more is not."""
    half = "a" * (MAX_TEXT_BYTES // 2)
    assert len(after(clock, *text(half, half)).events) == 1
    assert len(after(clock, *text(half, half + "a")).events) == 2


@pytest.mark.parametrize("character", ["a", "ä", "€", "😀"])
def test_joined_text_stays_within_the_limit_of_the_contract(clock: Clock, character: str) -> None:
    """However many bytes a character has, no event is larger, and no text is lost."""
    pieces = [character * 1000] * 300
    bodies = [event.body for event in after(clock, *text(*pieces)).events]
    texts = [body.text for body in bodies if isinstance(body, StreamOutput)]
    assert "".join(texts) == "".join(pieces)
    sizes = [len(one.encode()) for one in texts]
    assert max(sizes) <= MAX_TEXT_BYTES
    assert min(sizes[:-1]) > MAX_TEXT_BYTES - len(pieces[0].encode())


def test_a_segment_that_is_given_up_leaves_a_gap() -> None:
    """The next one begins where the file ends, and all else stays."""
    cursor = SegmentCursor(size=13, segment_start=10, cell_id="id", cell_start=1.0)
    assert cursor.without_segment() == replace(cursor, segment_start=13)


def test_the_newest_mark_says_where_to_go_on(clock: Clock) -> None:
    """After a restart the run is gone on with after the last batch of which all is durable."""
    chunk = SegmentChunk(0, b"abc", last=False)
    assert after(clock, ReplayMark(7), chunk, ReplayMark(8)).written.checkpoint == Checkpoint(
        mark=8, segment_start=10, size=13
    )
    assert after(clock, ReplayMark(0)).written.checkpoint == Checkpoint(mark=0, segment_start=10, size=10)
    assert after(clock, chunk).written.checkpoint is None
    assert after(clock, ReplayMark(7)).events == []


def test_a_cell_is_timed_from_its_start(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the monotonic clock; of a cell that an earlier server saw start nobody knows how long it took."""
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    assert STANDING.cell_seconds == 0.0
    cursor = after(clock, CellStarted(1, "id", "line")).cursor
    assert cursor == SegmentCursor(10, 10, cell_id="id", cell_start=100.0)
    monkeypatch.setattr(time, "monotonic", lambda: 103.5)
    assert cursor.cell_seconds == 3.5


@pytest.mark.parametrize("is_warm", [False, True])
def test_a_ready_kernel_says_whether_it_was_warm(clock: Clock, *, is_warm: bool) -> None:
    """The run is RUNNING; a batch without a kernel says nothing of it."""
    starting = a_run(RunState.STARTING)
    folded = after(clock, KernelReady(is_warm=is_warm), run=starting)
    running = replace(starting, state=RunState.RUNNING)
    assert (folded.run, folded.is_warm) == (running, is_warm)
    assert folded.events == [Event(LAST + 1, NOW, 0, 2, RunChanged(running))]
    assert after(clock, TEXT).is_warm is None


def test_the_notebooks_files_are_for_the_folder(clock: Clock) -> None:
    """They are kept in their order, and no event tells of them."""
    piece, left = FilePiece("a", 0, b"x", 0o600, 1), FilesLeft(5)
    folded = after(clock, piece, left)
    assert folded.written.files == [piece, left]
    assert folded.events == []


def test_each_event_counts_the_cells_as_they_are_then(clock: Clock) -> None:
    """The run goes through the batch one event after the other."""
    finished = CellFinished(0, "id", 1, 0.1, CellOutcome.SUCCEEDED)
    folded = after(clock, CellStarted(0, "id", "line"), finished, TEXT)
    assert [event.cells_completed for event in folded.events] == [0, 1, 1]
    assert (folded.run.cells_completed, folded.run.current_cell) == (1, None)


def test_the_end_is_no_event_of_a_batch(clock: Clock) -> None:
    """It is recorded by itself, when the run's processes are gone and its notebook is uploaded."""
    folded = after(clock, TEXT, Ended(Failure(Cause.CELL_ERROR, "why")))
    assert folded.run == a_run(RunState.RUNNING)
    assert folded.events == [Event(LAST + 1, NOW, 0, 2, TEXT)]


def test_content_of_a_display_is_written_between_segments(clock: Clock) -> None:
    """Its event says where, and the next segment begins after it; a restart continues there."""
    display = DisplayOutput(0, "display_data", (("a/b", 3), ("c/d", 9)), contents=((0, b"abc"), (1, b"de")))
    update = after(clock, display, SegmentChunk(0, b"f", last=True), TEXT, ReplayMark(4))
    kept = (KeptContent(0, 10, 3, zlib.crc32(b"abc")), KeptContent(1, 13, 2, zlib.crc32(b"de")))
    assert update.written.chunks == [b"abc", b"de", b"f"]
    assert [event.body for event in update.events] == [replace(display, contents=(), kept=kept), TEXT]
    assert update.written.segments == [Segment(0, LAST + 2, 15, 1, zlib.crc32(b"f"))]
    assert update.written.checkpoint == Checkpoint(4, 16, 16)


def test_a_result_value_is_of_the_run_after_its_event(clock: Clock) -> None:
    """The last one of a name counts, whichever cell displayed it, and whichever batch it came in."""
    results = [ResultValue("a", "1"), ResultValue("b", "2.0"), ResultValue("a", "3")]
    events = [
        DisplayOutput(cell, "update_display_data", (), 0, result) for cell, result in enumerate(results)
    ]
    update = after(clock, *events[:2])
    update = after(clock, TEXT, events[2], run=update.run)
    assert update.run.results.to_json() == '{"a": 3, "b": 2.0}'
    assert [event.body for event in update.events] == [TEXT, events[2]]
