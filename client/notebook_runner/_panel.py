"""Renders a run in a notebook, without I/O: a bar with the current cell, and the result at the end."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from html import escape

from ._attempts import attempt, place, repeated
from ._printable import clock
from ._states import is_terminal, reason_of, state_name
from ._values import seconds_of
from .v1 import notebook_runner_pb2 as pb

__all__ = ["Panel"]

# Tracebacks of deep recursions are long; the relevant part is at the end.
TRACEBACK_CHARACTERS = 20_000

_GREEN, _BLUE, _RED, _ORANGE = "#2e7d32", "#1976d2", "#c62828", "#ef6c00"
_COLOURS = {
    pb.RUN_STATE_SUCCEEDED: _GREEN,
    pb.RUN_STATE_FAILED: _RED,
    pb.RUN_STATE_CRASHED: _RED,
    pb.RUN_STATE_TIMED_OUT: _ORANGE,
    pb.RUN_STATE_KILLED: _ORANGE,
    pb.RUN_STATE_INTERRUPTED: _ORANGE,
}


@dataclass
class Panel:
    """The state of one run and its rendering, which escapes everything from the notebook.

    Attributes:
        run: The latest state of the run.
        sequence: The last event that is included.
        first_line: The first line of the current cell; empty if there is none.
        result: The HTML of the executed notebook; empty if it is not available (yet).
        note: A further remark, such as an error.
    """

    run: pb.Run
    sequence: int = 0
    first_line: str = ""
    result: str = ""
    note: str = ""
    _cell: int | None = None
    _completed: int = field(init=False)
    _total: int = field(init=False)

    def __post_init__(self) -> None:
        self._completed, self._total = self.run.cells_completed, self.run.cells_total
        self._cell = self.run.current_cell if self.run.HasField("current_cell") else None

    @property
    def ended(self) -> bool:
        """Whether the run has ended."""
        return is_terminal(self.run.state)

    def accept(self, event: pb.ProgressResponse) -> None:
        """Accept the next event of the run."""
        self.sequence = event.sequence
        self._completed, self._total = event.cells_completed, event.cells_total or self._total
        if event.HasField("run_changed"):
            self.run = event.run_changed
        elif event.HasField("cell_started"):
            self._cell, self.first_line = event.cell_started.cell_index, event.cell_started.first_line
        elif event.HasField("cell_finished"):
            self._cell, self.first_line = None, ""

    def elapsed(self) -> float:
        """Return the duration of the run so far, in seconds."""
        if not self.run.HasField("start_time"):
            return 0.0
        end = seconds_of(self.run.end_time) if self.run.HasField("end_time") else time.time()
        return max(0.0, end - seconds_of(self.run.start_time))

    def line(self) -> str:
        """Return the panel as one line of text."""
        name = f" ({self.run.name})" if self.run.name else ""
        parts = [
            f"run {self.run.run_id}{name} {state_name(self.run.state)}",
            attempt(self.run),
            self._place(),
            self._clock(),
            self._why(),
            repeated(self.run),
        ]
        return ", ".join(part for part in parts if part)

    def bundle(self) -> dict[str, str]:
        """Return the panel in the representations that a frontend chooses from, by MIME type."""
        return {"text/plain": self.line(), "text/html": self.html()}

    def html(self) -> str:
        """Return the panel as HTML without scripts and style sheets."""
        pieces = [
            self._heading(),
            self._bar(),
            self._failure(),
            self._repeated(),
            self._note(),
            self._result(),
        ]
        return f'<div style="max-width:60em;font-family:sans-serif">{"".join(pieces)}</div>'

    def _place(self) -> str:
        if self.run.state == pb.RUN_STATE_QUEUED and self._is_placed():
            return place(self.run)
        # People count from 1.
        return f"{self._completed} of {self._total} cells" if self._total else ""

    def _is_placed(self) -> bool:
        return self.run.HasField("queue_position") or self.run.HasField("not_before")

    def _clock(self) -> str:
        return clock(self.elapsed()) if self.run.HasField("start_time") else ""

    def _why(self) -> str:
        if not self.run.HasField("failure"):
            return ""
        failure = self.run.failure
        why = reason_of(failure)
        if failure.exception_name:
            why = why.partition("\n")[0]
        return f"cell {failure.cell_index + 1}: {why}" if failure.HasField("cell_index") else why

    def _heading(self) -> str:
        name = self.run.name or self.run.notebook_path or self.run.notebook_uri or f"run {self.run.run_id}"
        facts = [part for part in (attempt(self.run), self._place(), self._clock()) if part]
        colour = _COLOURS.get(self.run.state, _BLUE)
        state = f'<b style="color:{colour}">{escape(state_name(self.run.state))}</b>'
        cell = ""
        if self._cell is not None and not self.ended:
            cell = f"<div>cell {self._cell + 1}: <code>{escape(self.first_line)}</code></div>"
        return f"<div>{escape(name)} {state} {escape(' · '.join(facts))}</div>{cell}"

    def _bar(self) -> str:
        share = 100 * self._completed // self._total if self._total else 0
        about = f'role="progressbar" aria-label="cells" aria-valuenow="{share}"'
        track = "height:.6em;margin:.4em 0;border-radius:.3em;background:rgba(128,128,128,.3);overflow:hidden"
        fill = f"height:100%;width:{share}%;background:{_COLOURS.get(self.run.state, _BLUE)}"
        return f'<div {about} style="{track}"><div style="{fill}"></div></div>'

    def _failure(self) -> str:
        if not self.ended or not self._why():
            return ""
        trace = self.run.failure.traceback[-TRACEBACK_CHARACTERS:]
        style = "overflow:auto;max-height:24em;font:.85em monospace"
        more = f'<pre style="{style}">{escape(trace)}</pre>' if trace else ""
        return f"<div>{escape(self._why())}</div>{more}"

    def _repeated(self) -> str:
        return f"<div>{escape(repeated(self.run))}</div>" if self.run.retried_by else ""

    def _note(self) -> str:
        return f"<div><i>{escape(self.note)}</i></div>" if self.note else ""

    def _result(self) -> str:
        if not self.result:
            return ""
        style = "width:100%;height:30em;border:1px solid rgba(128,128,128,.4);resize:vertical"
        # An empty sandbox: no scripts, no forms, no access to the page around it.
        frame = f'<iframe sandbox="" srcdoc="{escape(self.result)}" style="{style}"></iframe>'
        return f"<details open><summary>result</summary>{frame}</details>"
