"""How a run is shown on a terminal: a bar over the cells, with what the notebook prints above it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.live import Live
from rich.table import Table
from rich.text import Text

from notebook_runner._states import state_name
from notebook_runner.v1 import notebook_runner_pb2 as pb

from ._frame import Clock, Frame
from ._text import LineBuffer, clean, how_it_ended, one_line, repaired
from ._views import describe_cut, describe_display

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from rich.console import Console, RenderableType

__all__ = ["LiveView"]

REFRESHES_PER_SECOND = 10
# What is over in an instant needs no table.
SHOWN_CELLS = 5
SHOWN_SECONDS = 0.1


class LiveView:
    """Shows a run on a terminal.

    Args:
        console: Where to show it.
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
        # One that was stopped would draw over what was written since.
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
        # Asked anew whenever something is printed above, so that the frame is never behind the text.
        self._frame.pending = self._lines.pending
        return self._frame

    def event(self, event: pb.ProgressResponse) -> None:
        """Show one event: what it printed above the bar, how far the run is in the bar."""
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
        """Show which cells took longest, the traceback, if there is one, and how the run ended."""
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
        if len(self._took) < 2 or not cells:  # noqa: PLR2004 - of one cell the run's time says all
            return
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True, min_width=len("slowest"))
        table.add_column(no_wrap=True, justify="right", min_width=len("000.00 s"))
        table.add_column(no_wrap=True, overflow="ellipsis")
        for place, cell in enumerate(cells):
            first_line = one_line(self._first_lines.get(cell, ""))
            name = "slowest" if place == 0 else ""
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
