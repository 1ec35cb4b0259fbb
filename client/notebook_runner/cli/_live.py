"""The live view on a terminal: a progress bar, with the output of the notebook above it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from notebook_runner._states import is_terminal, state_name
from notebook_runner.v1 import notebook_runner_pb2 as pb

from ._text import (
    LineBuffer,
    clean,
    clock,
    describe_cut,
    describe_display,
    how_it_ended,
    one_line,
    repaired,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

__all__ = ["LiveView"]

REFRESHES_PER_SECOND = 10
# Cells shorter than this are not in the table of the slowest.
SHOWN_CELLS = 5
SHOWN_SECONDS = 0.1
WIDEST_BAR = 24
# Narrower terminals do not show the estimate.
WIDTH_FOR_ESTIMATE = 60


class LiveView:
    """Shows a run on a terminal.

    Args:
        console: The terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lines = LineBuffer()
        self._run = pb.Run()
        self._clock = Clock()
        self._frame = Frame(self._clock)
        self._first_lines: dict[int, str] = {}
        self._took: dict[int, float] = {}
        self._live = self._new_live()

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
        self._clock.accept(self._run, event)
        self._frame.completed, self._frame.total = event.cells_completed, event.cells_total

    def ended(self, run: pb.Run) -> None:
        """Show the slowest cells, the traceback, if there is one, and how the run ended."""
        self._flush()
        self._timings()
        if run.failure.traceback:
            self._print([run.failure.traceback.rstrip("\n")])
        good = run.state == pb.RUN_STATE_SUCCEEDED
        style = "bold red" if not good else "yellow" if run.output_error else "green"
        self._console.print(Text(how_it_ended(run), style=style))

    def _new_live(self) -> Live:
        return Live(self, console=self._console, refresh_per_second=REFRESHES_PER_SECOND)

    def _run_changed(self, run: pb.Run) -> None:
        self._run = run
        self._frame.state = run.state
        self._frame.doing = state_name(run.state)
        if run.state == pb.RUN_STATE_QUEUED:
            before = run.queue_position
            self._frame.doing = (
                f"queued, {before} run{'s' * (before != 1)} ahead" if before else "queued, next to start"
            )

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
                self._note(describe_display(output.display), "dim")
            case "error":
                error = output.error
                self._note(f"{error.exception_name}: {error.exception_message}", "red")
            case "cut":
                self._note(describe_cut(output.cut), "yellow")

    def _note(self, text: str, style: str) -> None:
        self._flush()
        self._console.print(Text(one_line(text), style=style))

    def _flush(self) -> None:
        self._print(self._lines.flush())

    def _print(self, lines: list[str]) -> None:
        if lines:
            self._console.print(Text.from_ansi("\n".join(clean(line) for line in lines)))


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

    def accept(self, run: pb.Run, event: pb.ProgressResponse) -> None:
        """Accept an event and the latest state of its run."""
        if not run.HasField("start_time"):
            return
        passed = (event.time.ToDatetime() - run.start_time.ToDatetime()).total_seconds()
        self._began = self._now() - passed
        if is_terminal(run.state):
            self._stopped = self._now()
        if event.HasField("cell_finished") and event.cells_completed:
            self._in_all = passed * event.cells_total / event.cells_completed

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
        bar_width = min(WIDEST_BAR, width // 4)
        facts = f"{self.completed}/{self.total or '?'}  {clock(self._clock.passed())}"
        if width >= WIDTH_FOR_ESTIMATE and (left := self._clock.left()) is not None:
            facts += f"  ~{clock(left)} left"
        doing = Text(one_line(self.doing), style="dim" if is_terminal(self.state) else "", no_wrap=True)
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
