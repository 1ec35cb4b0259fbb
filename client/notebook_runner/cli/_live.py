"""The live view on a terminal: a progress bar, with the output of the notebook above it."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from notebook_runner._printable import clean, clock, one_line
from notebook_runner._states import is_terminal, state_name
from notebook_runner.v1 import notebook_runner_pb2 as pb

from ._display import Shown, show_display
from ._text import (
    LineBuffer,
    advice_lines,
    describe_cut,
    how_it_ended,
    how_it_ended_briefly,
    next_attempt,
    place_in_queue,
    repaired,
)
from ._traceback import coloured, folded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

__all__ = ["LiveView"]

_NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?%?|NaN|nan|…|", re.ASCII)

REFRESHES_PER_SECOND = 10
# Cells shorter than this are not in the table of the slowest.
SHOWN_CELLS = 5
SHOWN_SECONDS = 0.1
WIDEST_BAR = 24
# Narrower terminals do not show the estimate.
WIDTH_FOR_ESTIMATE = 60
# An estimate from fewer cells, a shorter time or a smaller share of the notebook means nothing.
CELLS_FOR_ESTIMATE = 3
SECONDS_FOR_ESTIMATE = 3.0
SHARE_FOR_ESTIMATE = 0.1


class LiveView:
    """Shows a run on a terminal.

    Args:
        console: The terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begin()
        self._live = self._new_live()

    def _begin(self) -> None:
        self._lines = LineBuffer()
        self._run = pb.Run()
        self._clock = Clock()
        self._frame = Frame(self._clock)
        self._first_lines: dict[int, str] = {}
        self._took: dict[int, float] = {}
        self._error = ""

    def __enter__(self) -> Self:
        # A stopped one would overwrite what was printed since.
        self._live = self._new_live()
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._live.stop()

    def __rich__(self) -> RenderableType:
        # Called whenever something is printed above, so that the frame is never behind the text.
        self._frame.pending = self._lines.pending
        return self._frame

    def event(self, event: pb.ProgressResponse) -> None:
        """Show an event: output above the bar, progress in the bar."""
        match event.WhichOneof("event"):
            case "run_changed":
                self._run_changed(event.run_changed)
                if event.sequence == 1 and (repairs := repaired(event.run_changed)):
                    self._note(repairs, "dim")
            case "cell_started":
                started = event.cell_started
                self._frame.doing = self._first_lines[started.cell_index] = started.first_line
            case "cell_output":
                self._output(event.cell_output)
            case "cell_finished":
                finished = event.cell_finished
                self._took[finished.cell_index] = finished.duration.ToTimedelta().total_seconds()
                self._flush()
                # The end of the run shows the error that ended it.
                if self._error and finished.outcome == pb.CELL_OUTCOME_ERROR_ALLOWED:
                    self._note(self._error, "red")
                self._error = ""
        self._clock.accept(self._run, event)
        self._frame.completed, self._frame.total = event.cells_completed, event.cells_total

    def repeated(self, run: pb.Run) -> None:
        """Show how the attempt ended, and which run repeats it; the bar starts again."""
        self._note(how_it_ended(run), "yellow")
        self._note(next_attempt(run), "")
        self._begin()

    def ended(self, run: pb.Run) -> None:
        """Show the slowest cells, how the run ended, and last the traceback, if there is one."""
        self._flush()
        self._timings()
        traceback = run.failure.traceback
        good = run.state == pb.RUN_STATE_SUCCEEDED
        style = "bold red" if not good else "yellow" if run.output_error else "green"
        self._console.print(Text(how_it_ended_briefly(run) if traceback else how_it_ended(run), style=style))
        if traceback:
            self._console.print(Text.from_ansi(coloured(folded(traceback))))
        for line in advice_lines(run):
            self._console.print(Text(line))

    def lost(self) -> None:
        """Show in the bar that the connection is lost, and for how long."""
        self._frame.lost_at = time.monotonic()

    def back(self) -> None:
        """Show the current cell again."""
        self._frame.lost_at = None

    def waiting(self, run: pb.Run) -> None:
        """Show the place of a queued run in the bar."""
        if self._run.state == pb.RUN_STATE_QUEUED:
            self._frame.doing = place_in_queue(run)

    def _new_live(self) -> Live:
        return Live(self, console=self._console, refresh_per_second=REFRESHES_PER_SECOND)

    def _run_changed(self, run: pb.Run) -> None:
        self._run = run
        self._frame.state = run.state
        self._frame.doing = state_name(run.state)
        if run.state == pb.RUN_STATE_QUEUED:
            self._frame.doing = place_in_queue(run)

    def _timings(self) -> None:
        longest = sorted(self._took, key=lambda cell: -self._took[cell])[:SHOWN_CELLS]
        cells = [cell for cell in longest if self._took[cell] >= SHOWN_SECONDS]
        if len(self._took) < 2 or not cells:  # noqa: PLR2004 - the run's time is enough for one cell
            return
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True, min_width=len("slowest"))
        table.add_column(no_wrap=True, justify="right", min_width=len("000.00 s"))
        table.add_column(no_wrap=True, overflow="ellipsis")
        for index, cell in enumerate(cells):
            first_line = one_line(self._first_lines.get(cell, ""))
            name = "slowest" if index == 0 else ""
            table.add_row(name, f"{self._took[cell]:.2f} s", Text(f"cell {cell + 1}: {first_line}"))
        self._console.print(table, style="dim")

    def _output(self, output: pb.CellOutput) -> None:
        match output.WhichOneof("output"):
            case "stream":
                self._print(self._lines.feed(output.stream.text))
            case "display":
                self._display(show_display(output.display, tables=True))
            case "error":
                self._error = f"{output.error.exception_name}: {output.error.exception_message}"
            case "cut":
                self._note(describe_cut(output.cut), "yellow")

    def _display(self, shown: Shown) -> None:
        if shown.is_description:
            self._note(shown.text, "dim")
            return
        self._flush()
        self._console.print(_table(shown.table) if shown.table else Text.from_ansi(shown.text))

    def _note(self, text: str, style: str) -> None:
        self._flush()
        self._console.print(Text(one_line(text), style=style))

    def _flush(self) -> None:
        self._print(self._lines.flush())

    def _print(self, lines: list[str]) -> None:
        if lines:
            self._console.print(Text.from_ansi("\n".join(clean(line) for line in lines)))


def _table(rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for heading, *column in zip(*rows, strict=True):
        is_number = all(_NUMBER.fullmatch(cell) for cell in column)
        table.add_column(Text(heading), justify="right" if is_number else "left", overflow="ellipsis")
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    return table


class Clock:
    """Measures and estimates the duration of a run, by the server's clock.

    A run that is joined late therefore shows its own duration.

    Args:
        now: A monotonic clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._began: float | None = None
        self._stopped: float | None = None
        self._in_all: float | None = None
        self._cells = 0

    def accept(self, run: pb.Run, event: pb.ProgressResponse) -> None:
        """Accept an event and the latest state of its run."""
        if not run.HasField("start_time"):
            return
        passed = (event.time.ToDatetime() - run.start_time.ToDatetime()).total_seconds()
        self._began = self._now() - passed
        if is_terminal(run.state):
            self._stopped = self._now()
        if event.HasField("cell_finished") and event.cells_completed and event.cells_total:
            self._cells += 1
            share = event.cells_completed / event.cells_total
            means_something = (
                self._cells >= CELLS_FOR_ESTIMATE
                and passed >= SECONDS_FOR_ESTIMATE
                and share >= SHARE_FOR_ESTIMATE
            )
            self._in_all = passed / share if means_something else None

    def passed(self) -> float:
        """Return the duration of the run so far, in seconds."""
        if self._began is None:
            return 0.0
        return (self._stopped or self._now()) - self._began

    def left(self) -> float | None:
        """Estimate the remaining seconds from the average duration of the cells so far."""
        if self._in_all is None or self._stopped is not None:
            return None
        # Zero or less: the current cell takes longer than estimated.
        return left if (left := self._in_all - self.passed()) > 0 else None


class Frame:
    """The last lines of the live view: the line that is being printed, and the progress bar.

    Attributes:
        pending: The line that the notebook is printing.
        doing: The current cell's first line, or the run's state.
        completed: Number of completed cells.
        total: Number of cells; zero while it is unknown.
        state: The run's state.
        lost_at: When the connection was lost, by the monotonic clock; `None`: there is one.
    """

    def __init__(self, clock_: Clock) -> None:
        self._clock = clock_
        self._spinner = Spinner("dots")
        self.pending = ""
        self.doing = ""
        self.completed = 0
        self.total = 0
        self.state: pb.RunState.ValueType = pb.RUN_STATE_QUEUED
        self.lost_at: float | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        bar = self._bar(options.max_width)
        pending = Text(one_line(self.pending), no_wrap=True, overflow="ellipsis")
        yield Group(pending, bar) if self.pending else bar

    def _bar(self, width: int) -> RenderableType:
        bar_width = min(WIDEST_BAR, width // 4)
        facts = f"{self.completed}/{self.total or '?'}  {clock(self._clock.passed())}"
        if width >= WIDTH_FOR_ESTIMATE and (left := self._clock.left()) is not None:
            facts += f"  ~{clock(left)} left"
        doing = Text(one_line(self.doing), style="dim" if is_terminal(self.state) else "", no_wrap=True)
        if self.lost_at is not None:
            lost = f"connection lost, reconnecting … {time.monotonic() - self.lost_at:.0f} s"
            doing = Text(lost, style="yellow", no_wrap=True)
        # Room for the gaps between the columns, the sign, and the ^C that a terminal appends: a full line
        # would wrap.
        doing.truncate(max(0, width - bar_width - len(facts) - 7), overflow="ellipsis")
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_row(
            self._sign(),
            ProgressBar(self.total or None, self.completed, width=bar_width, pulse=not self.total),
            Text(facts, no_wrap=True),
            doing,
        )
        return grid

    def _sign(self) -> RenderableType:
        if not is_terminal(self.state):
            return self._spinner
        good = self.state == pb.RUN_STATE_SUCCEEDED
        return Text("✓", style="green") if good else Text("✗", style="red")
