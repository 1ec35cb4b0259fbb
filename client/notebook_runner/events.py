"""The events of a run, as `progress` yields them.

::

    Event                 any event, and one of a newer server that this client does not know
    ├── StateChanged      the run is in a new state
    ├── CellStarted       a code cell was sent to the kernel
    ├── Printed           the cell printed text
    ├── Displayed         the cell displayed rich data
    ├── CellRaised        the cell raised an exception
    ├── OutputCleared     the cell cleared its output
    ├── OutputCut         the cell's further output is cut
    └── CellFinished      the cell has ended, and its outputs are durable

All are frozen dataclasses, made for `match`::

    match event:
        case Printed(text):
            print(text, end="")
        case CellFinished(outcome=CellOutcome.FAILED, cell_index=index):
            print(f"cell {index} failed")
        case StateChanged(RunState.QUEUED, run):
            print(f"{run.queue_position} runs ahead")
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from ._contents import decoded
from ._printable import one_line, size
from ._snapshot import RunSnapshot
from ._states import CellOutcome, RunState, outcome_of
from ._values import span, utc
from .v1 import notebook_runner_pb2 as contract

__all__ = [
    "CellFinished",
    "CellRaised",
    "CellStarted",
    "Displayed",
    "Event",
    "OutputCleared",
    "OutputCut",
    "Printed",
    "ResultValue",
    "StateChanged",
    "event_of",
]

_LONGEST_TEXT = 200


@dataclass(frozen=True, kw_only=True)
class Event:
    """An event of a run. An instance of this class itself comes from a newer server.

    Attributes:
        sequence: The number of the event in its run, from 1.
        time: When the server recorded the event, in UTC.
        cells_completed: Number of cells, from the top of the notebook, that are done.
        cells_total: Number of cells in the notebook, including the injected one.
        pb: The message of the contract, `notebook_runner.v1.notebook_runner_pb2.ProgressResponse`.
    """

    sequence: int
    time: datetime
    cells_completed: int
    cells_total: int
    pb: contract.ProgressResponse = field(repr=False, compare=False)

    def __str__(self) -> str:
        return one_line(f"#{self.sequence} {self._described()}")

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: ARG002 - IPython's signature
        printer.text(str(self))

    def _described(self) -> str:
        return self.pb.WhichOneof("event") or "unknown event"


@dataclass(frozen=True)
class StateChanged(Event):
    """The run is in a new state.

    Attributes:
        state: The new state.
        run: The run as it is now.
    """

    state: RunState
    run: RunSnapshot

    def _described(self) -> str:
        return str(self.run)


@dataclass(frozen=True)
class CellStarted(Event):
    """A code cell was sent to the kernel.

    Attributes:
        cell_index: The cell's index in the executed notebook, from 0.
        first_line: The first line of the cell's source that is not blank.
        cell_id: The cell's id in the notebook; empty if it has none.
    """

    cell_index: int
    first_line: str
    cell_id: str

    def _described(self) -> str:
        return f"cell {self.cell_index + 1} of {self.cells_total} started: {self.first_line}"


@dataclass(frozen=True)
class Printed(Event):
    """The cell printed text.

    Attributes:
        text: The text, with its line feeds; what a cell prints may come in several events.
        stream: `stdout` or `stderr`.
        cell_index: The cell's index in the executed notebook, from 0.
    """

    text: str
    stream: str
    cell_index: int

    def _described(self) -> str:
        return f"cell {self.cell_index + 1} printed: {_shortened(self.text)}"


@dataclass(frozen=True)
class ResultValue:
    """A named value that a notebook displayed as a result, as scrapbook's `glue` does.

    Attributes:
        name: The name.
        value: The value.
    """

    name: str
    value: Any


@dataclass(frozen=True)
class Displayed(Event):
    """The cell displayed rich data.

    Attributes:
        data: The representations by MIME type: str for text, bytes for pictures, sound, video and PDF, parsed
            for JSON. Only those that `display_data_max_bytes` asked for and that the server kept.
        sizes: The size of every representation, in bytes, by MIME type.
        cell_index: The cell's index in the executed notebook, from 0.
        kind: The type in nbformat: `display_data`, `execute_result`, or `update_display_data` for a change of
            an earlier output.
        result: The result value that this display sets; None if it sets none.
        omitted: Number of further representations, which only the notebook has.
    """

    data: Mapping[str, Any]
    sizes: Mapping[str, int]
    cell_index: int
    kind: str
    result: ResultValue | None
    omitted: int

    def _described(self) -> str:
        kinds = [f"{mime_type} {size(count)}" for mime_type, count in self.sizes.items()]
        more = [f"{self.omitted} more"] if self.omitted else []
        what = f"[{', '.join(kinds + more)}]"
        plain = self.data.get("text/plain")
        if self.result:
            what = f"{self.result.name} = {_shortened(str(self.result.value))}"
        elif isinstance(plain, str):
            what = _shortened(plain)
        return f"cell {self.cell_index + 1} displayed: {what}"


@dataclass(frozen=True)
class CellRaised(Event):
    """The cell raised an exception.

    Attributes:
        exception_name: The class of the exception.
        exception_message: The message of the exception.
        cell_index: The cell's index in the executed notebook, from 0.
    """

    exception_name: str
    exception_message: str
    cell_index: int

    def _described(self) -> str:
        return (
            f"cell {self.cell_index + 1} raised {self.exception_name}: {_shortened(self.exception_message)}"
        )


@dataclass(frozen=True)
class OutputCleared(Event):
    """The cell cleared its output.

    Attributes:
        cell_index: The cell's index in the executed notebook, from 0.
        wait: Clear only when the next output arrives.
    """

    cell_index: int
    wait: bool

    def _described(self) -> str:
        return f"cell {self.cell_index + 1} cleared its output"


@dataclass(frozen=True)
class OutputCut(Event):
    """The cell's further output is cut from the notebook and from the events.

    Attributes:
        cell_index: The cell's index in the executed notebook, from 0.
        limit: The limit that was reached, in bytes.
        whole_run: Whether this is the limit of all cells together.
    """

    cell_index: int
    limit: int
    whole_run: bool

    def _described(self) -> str:
        scope = "run" if self.whole_run else "cell"
        return f"cell {self.cell_index + 1}: output cut, this {scope} reached its limit of {size(self.limit)}"


@dataclass(frozen=True)
class CellFinished(Event):
    """The cell has ended, and its outputs are durable.

    Attributes:
        cell_index: The cell's index in the executed notebook, from 0.
        outcome: How it ended.
        duration: The time from the request to the kernel until all output arrived.
        execution_count: The n of In [n] in the notebook; None if the kernel sent none.
        cell_id: The cell's id in the notebook; empty if it has none.
    """

    cell_index: int
    outcome: CellOutcome
    duration: timedelta
    execution_count: int | None
    cell_id: str

    def _described(self) -> str:
        outcome, took = self.outcome.replace("_", " "), self.duration.total_seconds()
        return f"cell {self.cell_index + 1} of {self.cells_total} {outcome} after {took:.2f} s"


def event_of(message: contract.ProgressResponse) -> Event:
    """Return the typed event of a message."""
    common: dict[str, Any] = {
        "sequence": message.sequence,
        "time": utc(message.time),
        "cells_completed": message.cells_completed,
        "cells_total": message.cells_total,
        "pb": message,
    }
    match message.WhichOneof("event"):
        case "run_changed":
            run = RunSnapshot(message.run_changed)
            return StateChanged(run.state, run, **common)
        case "cell_started":
            started = message.cell_started
            return CellStarted(started.cell_index, started.first_line, started.cell_id, **common)
        case "cell_finished":
            finished = message.cell_finished
            return CellFinished(
                finished.cell_index,
                outcome_of(finished.outcome),
                span(finished.duration),
                finished.execution_count or None,
                finished.cell_id,
                **common,
            )
        case "cell_output":
            return _of_output(message.cell_output, common)
        case _:
            return Event(**common)


def _of_output(output: contract.CellOutput, common: dict[str, Any]) -> Event:
    index = output.cell_index
    match output.WhichOneof("output"):
        case "stream":
            return Printed(output.stream.text, output.stream.name, index, **common)
        case "display":
            return _displayed(output.display, index, common)
        case "error":
            error = output.error
            return CellRaised(error.exception_name, error.exception_message, index, **common)
        case "clear":
            return OutputCleared(index, output.clear.wait, **common)
        case "cut":
            return OutputCut(index, output.cut.limit_bytes, output.cut.whole_run, **common)
        case _:
            return Event(**common)


def _displayed(display: contract.DisplayOutput, index: int, common: dict[str, Any]) -> Displayed:
    data = {
        item.mime_type: decoded(item.mime_type, item.content)
        for item in display.data
        if item.HasField("content")
    }
    sizes = {item.mime_type: item.size_bytes for item in display.data}
    result = None
    if display.HasField("result"):
        result = ResultValue(display.result.name, json.loads(display.result.value_json))
    return Displayed(data, sizes, index, display.output_type, result, display.omitted, **common)


def _shortened(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= _LONGEST_TEXT else f"{line[: _LONGEST_TEXT - 1]}…"
