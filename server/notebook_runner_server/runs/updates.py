"""What a batch of a backend's makes of a run: its next state, events, and what is to be written."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from notebook_runner_server.execution.interface import (
    CellChunk,
    CellStarted,
    ExecutionEvent,
    FileEvent,
    FilePiece,
    FilesLeft,
    KernelReady,
    ReplayMark,
)
from notebook_runner_server.runs import transitions
from notebook_runner_server.runs.checkpoint import Checkpoint
from notebook_runner_server.runs.log import RunLog
from notebook_runner_server.runs.model import Event, Run
from notebook_runner_server.runs.store import WriteBatch
from notebook_runner_server.runs.tables import Part


@dataclass(frozen=True, slots=True)
class PartsCursor:
    """How far a run is, between two batches.

    Attributes:
        size: Bytes that its file of parts has.
        part_start: Where in it the part begins that is not whole yet.
        cell_id: Of the cell that is executed, or was last.
        cell_start: When that was started, by the monotonic clock; 0: before this server.
        part_checksum: Of what there is of that part; None: what an earlier server has of it is not known.
    """

    size: int
    part_start: int
    cell_id: str = ""
    cell_start: float = 0.0
    part_checksum: int | None = field(default=0, compare=False)

    def without_part(self) -> PartsCursor:
        """Return the same standing, with what there is of a part given up."""
        return replace(self, part_start=self.size, part_checksum=0)

    def with_piece(self, data: bytes) -> PartsCursor:
        """Return the standing after more of a part."""
        known = self.part_checksum
        total = None if known is None else zlib.crc32(data, known)
        return replace(self, size=self.size + len(data), part_checksum=total)

    @property
    def cell_seconds(self) -> float:
        """Seconds since the cell was started; 0: nobody knows."""
        return time.monotonic() - self.cell_start if self.cell_start else 0.0


@dataclass(frozen=True, slots=True)
class Update:
    """What a batch has made.

    Attributes:
        run: The run after it.
        parts_cursor: How far it is then.
        events: What its log is to say.
        written: What goes into its files.
        is_warm: Whether its kernel was there already; None: that was not told.
    """

    run: Run
    parts_cursor: PartsCursor
    events: list[Event]
    written: WriteBatch
    is_warm: bool | None


def apply_events(
    batch: Sequence[ExecutionEvent], run: Run, parts_cursor: PartsCursor, log: RunLog, output_error: str
) -> Update:
    """Return what a batch makes of a run; nothing has changed yet.

    Args:
        batch: What the backend has told.
        run: The run before it.
        parts_cursor: How far that is.
        log: Its log, which the events continue.
        output_error: Why its notebook is not at its URI; see `transitions.end`.
    """
    start, now = parts_cursor.size, log.clock.now()
    events: list[Event] = []
    pieces: list[bytes] = []
    parts: list[Part] = []
    files: list[FileEvent] = []
    mark: int | None = None
    is_warm: bool | None = None
    for told in batch:
        match told:
            case CellChunk():
                pieces.append(told.data)
                parts_cursor = parts_cursor.with_piece(told.data)
                if told.last:
                    # It shows from the event on that comes next and tells of it.
                    sequence = log.last_sequence + len(events) + 1
                    length = parts_cursor.size - parts_cursor.part_start
                    parts.append(
                        Part(told.part, sequence, parts_cursor.part_start, length, parts_cursor.part_checksum)
                    )
                    parts_cursor = parts_cursor.without_part()
            case ReplayMark():
                mark = told.number
            case CellStarted():
                parts_cursor = replace(parts_cursor, cell_id=told.cell_id, cell_start=time.monotonic())
            case KernelReady():
                is_warm = told.is_warm
            case FilePiece() | FilesLeft():
                files.append(told)
        run, body = transitions.react(run, told, now, output_error)
        if body is not None:
            events.append(log.next_event(run, body, len(events)))
    resume = None if mark is None else Checkpoint(mark, parts_cursor.part_start, parts_cursor.size)
    return Update(run, parts_cursor, events, WriteBatch(start, pieces, parts, resume, files), is_warm)
