"""The last lines of the live view: the line that is being printed, and the bar over the cells."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from notebook_runner._states import is_terminal
from notebook_runner.v1 import notebook_runner_pb2 as pb

from ._text import clock, one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

__all__ = ["Clock", "Frame"]

WIDEST_BAR = 24
# Below this many columns there is room for the bar, the numbers and a few words, and no more.
WIDTH_FOR_ESTIMATE = 60


class Clock:
    """How long a run has taken, and how long it may still take, by the server's clock.

    So a run that is joined late shows its own time, and not the reader's.

    Args:
        now: A monotonic clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._began: float | None = None
        self._stopped: float | None = None
        self._in_all: float | None = None

    def accept(self, run: pb.Run, event: pb.ProgressResponse) -> None:
        """Take an event, of a run that was last told to be like this."""
        if not run.HasField("start_time"):
            return
        passed = (event.time.ToDatetime() - run.start_time.ToDatetime()).total_seconds()
        self._began = self._now() - passed
        if is_terminal(run.state):
            self._stopped = self._now()
        if event.HasField("cell_finished") and event.cells_completed:
            self._in_all = passed * event.cells_total / event.cells_completed

    def passed(self) -> float:
        """Give the seconds that the run has taken so far, or took."""
        if self._began is None:
            return 0.0
        return (self._stopped or self._now()) - self._began

    def left(self) -> float | None:
        """Guess the seconds that it may still take: as long for each cell as the cells until now."""
        if self._in_all is None or self._stopped is not None:
            return None
        # A cell that takes longer than all before it says that the guess was wrong.
        return left if (left := self._in_all - self.passed()) > 0 else None


class Frame:
    """Draws itself as wide as the terminal is at that moment.

    Attributes:
        pending: The line that the notebook is printing.
        doing: What goes on: the current cell's first line, or the run's state.
        completed: How many cells are done.
        total: How many there are; zero while that is not known.
        state: The run's state.
    """

    def __init__(self, clock_: Clock) -> None:
        self._clock = clock_
        self._spinner = Spinner("dots")
        self.pending = ""
        self.doing = ""
        self.completed = 0
        self.total = 0
        self.state: pb.RunState.ValueType = pb.RUN_STATE_QUEUED

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        bar = self._bar(options.max_width)
        pending = Text(one_line(self.pending), no_wrap=True, overflow="ellipsis")
        yield Group(pending, bar) if self.pending else bar

    def _bar(self, width: int) -> RenderableType:
        room = min(WIDEST_BAR, width // 4)
        facts = f"{self.completed}/{self.total or '?'}  {clock(self._clock.passed())}"
        if width >= WIDTH_FOR_ESTIMATE and (left := self._clock.left()) is not None:
            facts += f"  ~{clock(left)} left"
        doing = Text(one_line(self.doing), style="dim" if is_terminal(self.state) else "", no_wrap=True)
        # The gaps between the columns, the sign, and the ^C that a terminal writes behind all of it: a line
        # that is full would make it begin another one.
        doing.truncate(max(0, width - room - len(facts) - 7), overflow="ellipsis")
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_row(
            self._sign(),
            ProgressBar(self.total or None, self.completed, width=room, pulse=not self.total),
            Text(facts, no_wrap=True),
            doing,
        )
        return grid

    def _sign(self) -> RenderableType:
        if not is_terminal(self.state):
            return self._spinner
        good = self.state == pb.RUN_STATE_SUCCEEDED
        return Text("✓", style="green") if good else Text("✗", style="red")
