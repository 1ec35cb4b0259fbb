"""Runs as text: a table of several, and everything about one."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import time
from datetime import datetime
from typing import TYPE_CHECKING

import click

from notebook_runner._attempts import attempt, repeated
from notebook_runner._printable import one_line, size
from notebook_runner._states import advice_of, is_terminal, reason_of, state_name
from notebook_runner.v1 import notebook_runner_pb2 as pb

from ._calls import SHORTEST_PART
from ._terminal import Terminal
from ._text import about, age, elapsed, place_in_queue
from ._traceback import coloured, folded
from ._types import rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from google.protobuf.timestamp_pb2 import Timestamp

__all__ = ["details", "table"]

LONGEST_VALUE = 500
LONGEST_REASON = 200
# The columns of names, labels and reasons are cut to this width, but no further.
NARROWEST = 12

_HEADING = ("RUN", "STATE", "CELLS", "AGE", "TOOK", "NAME", "ATTEMPT", "OWNER", "LABELS", "REASON")
_ALWAYS = _HEADING[:6]
_FLEXIBLE = ("NAME", "OWNER", "LABELS", "REASON")
# Left out, in this order, where a terminal is too narrow for all columns.
_DISPENSABLE = ("ATTEMPT", "LABELS")
_GAP = 2


def table(runs: Sequence[pb.Run]) -> Iterator[str]:
    """Return the lines of a table of runs; on a terminal it fits, and has the short forms of ids."""
    # Scripts get whole lines and ids.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    ids = [one_line(run.run_id) for run in runs]
    shown = _short(ids) if width else ids
    rows = [_HEADING, *((run_id, *_row(run)) for run_id, run in zip(shown, runs, strict=True))]
    # Columns that no run has a value for are left out, and that of owners if there is only one.
    one_owner = len({run.owner for run in runs}) <= 1
    columns = [
        column
        for column in zip(*rows, strict=True)
        if column[0] in _ALWAYS or (any(column[1:]) and not (column[0] == "OWNER" and one_owner))
    ]
    return rows_of(list(zip(*_fitted(_fitting(columns, width), width), strict=True)), width)


def _short(ids: Sequence[str]) -> list[str]:
    """Return the random parts of ids, which a command takes as well, where they are unambiguous."""
    parts = [run_id.rpartition("-")[2] for run_id in ids]
    is_clear = len(set(parts)) == len(parts) and all(len(part) >= SHORTEST_PART for part in parts)
    return parts if is_clear else list(ids)


def _fitting(columns: list[tuple[str, ...]], width: int) -> list[tuple[str, ...]]:
    """Leave out dispensable columns until the others fit, as far as they can be cut."""
    for name in _DISPENSABLE:
        widths = [max(map(len, column)) for column in columns]
        least = [
            min(most, NARROWEST) if column[0] in _FLEXIBLE else most
            for column, most in zip(columns, widths, strict=True)
        ]
        if not width or sum(least) + _GAP * (len(least) - 1) <= width:
            break
        columns = [column for column in columns if column[0] != name]
    return columns


def _fitted(columns: list[tuple[str, ...]], width: int) -> list[tuple[str, ...]]:
    """Cut the texts of the widest columns until the table fits."""
    widths = [max(map(len, column)) for column in columns]
    flexible = [n for n, column in enumerate(columns) if column[0] in _FLEXIBLE]
    while width and sum(widths) + _GAP * (len(widths) - 1) > width:
        widest = max(flexible, key=lambda n: widths[n], default=None)
        if widest is None or widths[widest] <= NARROWEST:
            break
        widths[widest] -= 1
    return [
        tuple(cell if len(cell) <= most else f"{cell[: most - 1]}…" for cell in column)
        for column, most in zip(columns, widths, strict=True)
    ]


def _row(run: pb.Run) -> tuple[str, ...]:
    took = elapsed(run)
    return (
        state_name(run.state),
        f"{run.cells_completed}/{run.cells_total}",
        age(time.time() - run.create_time.ToNanoseconds() / 1e9),
        "" if took is None else f"{took:.1f} s",
        about(run),
        attempt(run).removeprefix("attempt "),
        one_line(run.owner),
        _labels(run),
        _reason(run)[:LONGEST_REASON],
    )


def details(run: pb.Run) -> str:
    """Return everything about a run, a line for each property, with the traceback last."""
    facts = [(name, text) for name, text in _facts(run) if text]
    indent = max(len(name) for name, _ in facts) + 2
    # Of several lines with one name, only the first shows it.
    names = [name if n == 0 or facts[n - 1][0] != name else "" for n, (name, _) in enumerate(facts)]
    lines = [_fact(name, indent, text) for name, (_, text) in zip(names, facts, strict=True)]
    if run.failure.traceback:
        traceback = folded(run.failure.traceback)
        lines += ["", coloured(traceback) if isinstance(sys.stdout, Terminal) else traceback]
    return "\n".join(lines)


def _fact(name: str, indent: int, text: str) -> str:
    """Return a property as a line; on a terminal, as indented lines that fit."""
    if not isinstance(sys.stdout, Terminal):
        return f"{name:<{indent}}{text}"
    width = max(shutil.get_terminal_size().columns, indent + NARROWEST)
    # Words that are too long are left to the terminal, so that they can be copied.
    first, *rest = textwrap.wrap(text, width - indent, break_long_words=False, break_on_hyphens=False) or [""]
    lines = [f"{click.style(name, dim=True)}{' ' * (indent - len(name))}{first}"]
    return "\n".join([*lines, *(" " * indent + line for line in rest)])


def _facts(run: pb.Run) -> Iterator[tuple[str, str]]:
    yield "run", one_line(run.run_id)
    yield "name", one_line(run.name)
    yield "owner", one_line(run.owner)
    yield "state", _state(run)
    yield "reason", _reason(run)
    yield "hint", one_line(advice_of(run.failure))
    yield "attempt", _attempt(run)
    yield "retries", _retries(run)
    yield "priority", str(run.priority or "")
    yield "notebook", one_line(run.notebook_path or run.notebook_uri) or "(inline)"
    yield "sha256", one_line(run.notebook_sha256)
    yield "created", _time(run.create_time) if run.HasField("create_time") else ""
    yield "started", _time(run.start_time) if run.HasField("start_time") else ""
    yield "ended", _time(run.end_time) if run.HasField("end_time") else ""
    yield "took", "" if (took := elapsed(run)) is None else f"{took:.1f} s"
    yield "cells", f"{run.cells_completed}/{run.cells_total}"
    yield "kernel", one_line(run.kernel_name)
    yield from (("parameters", line) for line in _values(run.parameters_json))
    yield "labels", _labels(run)
    yield from (("values", line) for line in _values(run.results_json))
    if run.results_omitted:
        yield "values", f"{run.results_omitted} more are too large, or too many; the notebook has them"
    yield "memory", f"{size(run.peak_memory_bytes)} at most" if run.peak_memory_bytes else ""
    yield "processor", f"{run.cpu_time.ToNanoseconds() / 1e9:.1f} s" if run.HasField("cpu_time") else ""
    yield "output", one_line(run.output_uri)
    yield "not written", one_line(run.output_error)
    yield from (("repaired", one_line(repair)) for repair in run.notebook_repairs)


def _state(run: pb.Run) -> str:
    name = state_name(run.state)
    if run.state == pb.RUN_STATE_QUEUED:
        return place_in_queue(run)
    cell = run.failure.cell_index if run.failure.HasField("cell_index") else None
    if not is_terminal(run.state) and run.HasField("current_cell"):
        cell = run.current_cell
    text = name if cell is None else f"{name} in cell {cell + 1} of {run.cells_total}"
    if not is_terminal(run.state) or not isinstance(sys.stdout, Terminal):
        return text
    return click.style(text, fg="green" if run.state == pb.RUN_STATE_SUCCEEDED else "red")


def _attempt(run: pb.Run) -> str:
    """Return which attempt of several the run is, and which runs are those before and after it."""
    number = attempt(run).removeprefix("attempt ")
    before = f"repeats run {run.retry_of}" if run.retry_of else ""
    return one_line(", ".join(filter(None, [number, before, repeated(run)])))


def _retries(run: pb.Run) -> str:
    """Return when the server repeats the run."""
    if not run.HasField("retry"):
        return ""
    policy = run.retry
    states = policy.states or (pb.RUN_STATE_CRASHED, pb.RUN_STATE_INTERRUPTED)
    first = policy.backoff.ToNanoseconds() / 1e9 if policy.HasField("backoff") else 1.0
    longest = policy.max_backoff.ToNanoseconds() / 1e9 if policy.HasField("max_backoff") else 300.0
    names = ", ".join(map(state_name, states))
    return f"{policy.max_retries} at most, if {names}; after {first:g} s, doubled up to {longest:g} s"


def _reason(run: pb.Run) -> str:
    if not run.HasField("failure"):
        return one_line(run.output_error)
    return one_line(reason_of(run.failure))


def _labels(run: pb.Run) -> str:
    return one_line(", ".join(f"{name}={value}" for name, value in sorted(run.labels.items())))


def _values(encoded: str) -> Iterator[str]:
    """Yield a line for each value of a JSON object."""
    for name, value in json.loads(encoded or "{}").items():
        text = json.dumps(value, ensure_ascii=False)
        yield one_line(f"{name} = {text if len(text) <= LONGEST_VALUE else f'{text[:LONGEST_VALUE]}…'}")


def _time(moment: Timestamp) -> str:
    seconds = moment.ToNanoseconds() / 1e9
    local = datetime.fromtimestamp(seconds).astimezone()
    return f"{local:%Y-%m-%d %H:%M:%S} ({age(time.time() - seconds)} ago)"
