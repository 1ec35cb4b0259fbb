"""Writes the cells of a run, and what they print, to the log of a task of Airflow."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from notebook_runner import (
    CellFinished,
    CellOutcome,
    CellRaised,
    CellStarted,
    Displayed,
    OutputCut,
    Printed,
    StateChanged,
)
from notebook_runner._printable import clean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from notebook_runner import Event

__all__ = ["TaskLog"]

# The most characters of a line that has not ended; a longer one is logged in pieces.
_LONGEST_LINE = 4096


class TaskLog:
    """Logs the events of a run, printed text line by line.

    Args:
        log: The log of the task.
        position: The `position` of an earlier log of the same run, to continue after it.
    """

    def __init__(self, log: logging.Logger, position: Mapping[str, Any] | None = None) -> None:
        position = position or {}
        self._log = log
        self._sequence: int = position.get("sequence", 0)
        self._stream: str = position.get("stream", "")
        self._text: str = position.get("text", "")  # the line that has not ended

    @property
    def position(self) -> dict[str, Any]:
        """How far the log has come, as JSON: the last event, and the text of a line that has not ended."""
        return {"sequence": self._sequence, "stream": self._stream, "text": self._text}

    @property
    def sequence(self) -> int:
        """The sequence number of the last event that was added."""
        return self._sequence

    def add(self, event: Event) -> None:
        """Log an event."""
        if isinstance(event, Printed):
            self._print(event)
        else:
            self._end_line()
            self._tell(event)
        self._sequence = event.sequence

    def _print(self, event: Printed) -> None:
        if event.stream != self._stream:
            self._end_line()
            self._stream = event.stream
        *lines, rest = (self._text + event.text).split("\n")
        for line in lines:
            self._line(line)
        # Of a progress bar, which returns to the start of its line, only the last state counts.
        self._text = _last_state(rest) + ("\r" if rest.endswith("\r") else "")
        if len(self._text) > _LONGEST_LINE:
            self._end_line()

    def _end_line(self) -> None:
        if self._text:
            self._line(self._text)
            self._text = ""

    def _line(self, line: str) -> None:
        level = logging.WARNING if self._stream == "stderr" else logging.INFO
        self._log.log(level, "%s", clean(_last_state(line), colours=False))

    def _tell(self, event: Event) -> None:
        match event:
            case StateChanged(state, run) if run.is_terminal:
                self._log.log(logging.INFO if run.ok else logging.ERROR, "Run %s", run)
            case StateChanged(state, run):
                self._log.info("Run %s is %s", run.id, state.value)
            case CellStarted(cell_index=index, first_line=line):
                self._log.info("Cell %d of %d: %s", index + 1, event.cells_total, clean(line, colours=False))
            case CellRaised(name, message, index):
                self._log.error("Cell %d raised %s: %s", index + 1, name, clean(message, colours=False))
            case CellFinished(cell_index=index, outcome=outcome, duration=took):
                level = logging.INFO if outcome is CellOutcome.SUCCEEDED else logging.WARNING
                ended = outcome.replace("_", " ")
                self._log.log(level, "Cell %d %s after %.1f s", index + 1, ended, took.total_seconds())
            case Displayed(result=result) if result:
                self._log.info("Result value: %s = %r", result.name, result.value)
            case OutputCut():
                self._log.warning("%s", event)


def _last_state(line: str) -> str:
    """Return what is left of a line that was written over."""
    return line.rstrip("\r").rpartition("\r")[2]
