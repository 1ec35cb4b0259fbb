"""The views of a run: plain lines, JSON, or nothing; the live view is in `_live`."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from typing import IO, TYPE_CHECKING, Protocol

import click

from notebook_runner._printable import one_line
from notebook_runner._states import state_name
from notebook_runner.v1 import notebook_runner_pb2 as pb

from ._display import show_display
from ._terminal import Terminal, terminal_of, write_printed
from ._text import (
    advice_lines,
    describe_cut,
    how_it_ended,
    how_it_ended_briefly,
    next_attempt,
    place_in_queue,
    repaired,
    to_json,
)
from ._traceback import coloured, folded

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = [
    "OUTCOMES",
    "JsonView",
    "PlainView",
    "QuietView",
    "View",
    "describe_end",
    "make_view",
]

OUTCOMES = {
    pb.CELL_OUTCOME_SUCCEEDED: "done",
    pb.CELL_OUTCOME_FAILED: "raised",
    pb.CELL_OUTCOME_ERROR_ALLOWED: "raised, continuing",
    pb.CELL_OUTCOME_STOPPED: "stopped",
}


def describe_end(run: pb.Run, stream: IO[str]) -> str:
    """Describe how a run ended, with its traceback and a hint, if it has them; in colour on a terminal."""
    if not run.failure.traceback:
        return how_it_ended(run)
    traceback = folded(run.failure.traceback)
    lines = [how_it_ended_briefly(run), coloured(traceback) if isinstance(stream, Terminal) else traceback]
    return "\n".join([*lines, *advice_lines(run)])


def _changed(run: pb.Run) -> str:
    """Describe the new state of a run, and of a repetition the time that it waits for."""
    waits = run.state == pb.RUN_STATE_QUEUED and run.HasField("not_before")
    return one_line(f"run {run.run_id} {place_in_queue(run) if waits else state_name(run.state)}")


class View(AbstractContextManager["View"], Protocol):
    """Shows one run, with all its attempts, to its end. It may be exited and entered again."""

    def event(self, event: pb.ProgressResponse) -> None:
        """Show one event."""

    def lost(self) -> None:
        """Show that the connection is lost, and that the client reconnects."""

    def back(self) -> None:
        """Show that the connection is back."""

    def waiting(self, run: pb.Run) -> None:
        """Show the place of a queued run."""

    def repeated(self, run: pb.Run) -> None:
        """Show how an attempt ended, and which run repeats it; the next events are those of that run."""

    def ended(self, run: pb.Run) -> None:
        """Show how the run ended."""


def make_view(*, as_json: bool = False, quiet: bool = False, on_stderr: bool = False) -> View:
    """Choose the view: JSON or nothing if requested, live on a terminal, plain lines otherwise.

    Args:
        as_json: Show JSON.
        quiet: Show only errors.
        on_stderr: Show it on standard error, because standard output has another use.
    """
    if as_json:
        return JsonView()
    if quiet:
        return QuietView()
    stream = sys.stderr if on_stderr else sys.stdout
    # Not decided by rich, which treats a log with FORCE_COLOR as a terminal.
    if not stream.isatty():
        return PlainView(stream)
    # rich takes longer to import than everything else here together.
    from rich.console import Console  # noqa: PLC0415 - see above

    from ._live import LiveView  # noqa: PLC0415 - imports rich

    console = Console(file=terminal_of(stream), highlight=False)
    return PlainView(stream) if console.is_dumb_terminal else LiveView(console)


class _Silent:
    """Base of the views without a display to open and close."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing."""

    def lost(self) -> None:
        """Do nothing."""

    def back(self) -> None:
        """Do nothing."""

    def waiting(self, run: pb.Run) -> None:
        """Do nothing."""


class JsonView(_Silent):
    """Shows one JSON object per event."""

    def event(self, event: pb.ProgressResponse) -> None:
        """Print the event."""
        click.echo(to_json(event))

    def repeated(self, run: pb.Run) -> None:
        """Print nothing: the last event names the run that repeats it."""

    def ended(self, run: pb.Run) -> None:
        """Print nothing: the last event has the state."""


class QuietView(_Silent):
    """Shows only how an unsuccessful run ended."""

    def event(self, event: pb.ProgressResponse) -> None:
        """Print nothing."""

    def repeated(self, run: pb.Run) -> None:
        """Print how the attempt ended, and which run repeats it, to standard error."""
        click.echo(f"{how_it_ended(run)}\n{next_attempt(run)}", err=True)

    def ended(self, run: pb.Run) -> None:
        """Print how the run ended and the traceback, to standard error, unless it succeeded."""
        if run.state != pb.RUN_STATE_SUCCEEDED or run.output_error:
            click.echo(describe_end(run, sys.stderr), err=True)


class PlainView:
    """Shows lines for a log file: the output of the notebook, and a line for each cell and state.

    Args:
        stream: The target; `None`: standard output.
    """

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream
        self._mid_line = False
        self._error = ""
        self._lost_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_line()

    def event(self, event: pb.ProgressResponse) -> None:
        """Print the event."""
        match event.WhichOneof("event"):
            case "run_changed":
                self._line(_changed(event.run_changed))
                if event.sequence == 1 and (repairs := repaired(event.run_changed)):
                    self._line(repairs)
            case "cell_started":
                started = event.cell_started
                self._line(
                    f"cell {started.cell_index + 1}/{event.cells_total}: {one_line(started.first_line)}"
                )
            case "cell_output":
                self._output(event.cell_output)
            case "cell_finished":
                finished = event.cell_finished
                took = finished.duration.ToTimedelta().total_seconds()
                outcome = OUTCOMES.get(finished.outcome, "ended")
                # The end of the run shows the error that ended it.
                if self._error and finished.outcome == pb.CELL_OUTCOME_ERROR_ALLOWED:
                    self._line(self._error)
                self._error = ""
                self._line(f"cell {finished.cell_index + 1}/{event.cells_total} {outcome} in {took:.2f} s")

    def repeated(self, run: pb.Run) -> None:
        """Print how the attempt ended, and which run repeats it."""
        self._line(f"{how_it_ended(run)}\n{next_attempt(run)}")
        self._error = ""

    def ended(self, run: pb.Run) -> None:
        """Print how the run ended, with the traceback last, if there is one."""
        self._line(describe_end(run, self._stream or sys.stdout))

    def lost(self) -> None:
        """Print that the connection is lost."""
        self._lost_at = time.monotonic()
        self._line("connection lost, reconnecting …")

    def back(self) -> None:
        """Print that the connection is back."""
        self._line(f"connected again after {time.monotonic() - self._lost_at:.0f} s")

    def waiting(self, run: pb.Run) -> None:
        """Print the place of a queued run."""
        self._line(f"run {one_line(run.run_id)} {place_in_queue(run)}")

    def _output(self, output: pb.CellOutput) -> None:
        match output.WhichOneof("output"):
            case "stream":
                text = output.stream.text
                write_printed(self._stream or sys.stdout, text)
                self._mid_line = not text.endswith("\n")
            case "display":
                self._line(show_display(output.display).text)
            case "error":
                self._error = one_line(f"{output.error.exception_name}: {output.error.exception_message}")
            case "cut":
                self._line(describe_cut(output.cut))

    def _line(self, text: str) -> None:
        self._end_line()
        click.echo(text, self._stream)

    def _end_line(self) -> None:
        if self._mid_line:
            click.echo("", self._stream)
        self._mid_line = False
