"""How a run is shown on a terminal: a bar over the cells, with what the notebook prints above it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

from notebook_runner._states import is_terminal, state_name
from notebook_runner.v1 import notebook_runner_pb2 as pb

from ._text import LineBuffer, clean, how_it_ended, one_line
from ._views import describe_cut, describe_display

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from rich.console import Console, RenderableType

__all__ = ["LiveView"]

REFRESHES_PER_SECOND = 10
BAR_WIDTH = 24


class LiveView:
    """Shows a run on a terminal.

    Args:
        console: Where to show it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lines = LineBuffer()
        self._run = pb.Run()
        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(BAR_WIDTH),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            # The notebook's own text: never markup, never more than the line has room for.
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            console=console,
            expand=True,
        )
        self._task = self._bar.add_task("", total=None)
        self._live = Live(self, console=console, refresh_per_second=REFRESHES_PER_SECOND)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flush()
        self._bar.stop_task(self._task)
        self._live.stop()

    def __rich__(self) -> RenderableType:
        # Asked anew whenever something is printed above, so that the frame is never behind the text.
        pending = one_line(self._lines.pending)
        bar = self._bar.get_renderable()
        return Group(Text(pending, no_wrap=True, overflow="ellipsis"), bar) if pending else bar

    def event(self, event: pb.ProgressResponse) -> None:
        """Show one event: what it printed above the bar, how far the run is in the bar."""
        match event.WhichOneof("event"):
            case "run_changed":
                self._run_changed(event.run_changed)
            case "cell_started":
                self._bar.update(self._task, description=one_line(event.cell_started.first_line))
            case "cell_output":
                self._output(event.cell_output)
            case "cell_finished":
                self._flush()
        # In this order: a full bar keeps the time that it shows.
        self._set_clock(event)
        self._bar.update(self._task, total=event.cells_total or None, completed=event.cells_completed)

    def ended(self, run: pb.Run) -> None:
        """Show the traceback, if there is one, and how the run ended."""
        self._flush()
        if run.failure.traceback:
            self._print([run.failure.traceback.rstrip("\n")])
        style = "green" if run.state == pb.RUN_STATE_SUCCEEDED else "bold red"
        self._console.print(Text(how_it_ended(run), style=style))

    def _run_changed(self, run: pb.Run) -> None:
        self._run = run
        if is_terminal(run.state):
            self._flush()
            self._bar.update(self._task, description=state_name(run.state))
        elif run.state == pb.RUN_STATE_QUEUED:
            self._bar.update(self._task, description=f"queued, {run.queue_position} before it")
        else:
            self._bar.update(self._task, description=state_name(run.state))

    def _set_clock(self, event: pb.ProgressResponse) -> None:
        # By the server's clock, so that a run that is joined late shows its own time and not the reader's.
        if not self._run.HasField("start_time"):
            return
        passed = event.time.ToDatetime() - self._run.start_time.ToDatetime()
        task = self._bar.tasks[0]
        task.start_time = time.monotonic() - passed.total_seconds()
        if is_terminal(self._run.state):
            task.stop_time = time.monotonic()

    def _output(self, output: pb.CellOutput) -> None:
        match output.WhichOneof("output"):
            case "stream":
                self._print(self._lines.feed(output.stream.text))
            case "display":
                self._note(describe_display(output.display), "dim")
            case "error":
                error = output.error
                self._note(f"{error.exception_name}: {one_line(error.exception_message)}", "red")
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
