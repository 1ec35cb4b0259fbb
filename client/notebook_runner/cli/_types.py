"""Parses values of options, and formats tables."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

import click

from notebook_runner._quantities import parse_duration, parse_size
from notebook_runner._states import parse_state
from notebook_runner.v1 import notebook_runner_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from notebook_runner.v1.notebook_runner_pb2 import RunState

__all__ = ["duration", "moment", "pair", "retry_states", "rows_of", "size", "state"]

ValueT = TypeVar("ValueT")

# The states after which a run can be repeated.
REPEATED = (pb.RUN_STATE_CRASHED, pb.RUN_STATE_INTERRUPTED, pb.RUN_STATE_TIMED_OUT)


def duration(text: str) -> float:
    """Parse a duration with an optional unit, in seconds."""
    return _parsed(parse_duration, text)


def size(text: str) -> int:
    """Parse a size with an optional unit, in bytes."""
    return _parsed(parse_size, text)


def moment(text: str) -> float:
    """Parse a time as seconds since the epoch: a duration before now, or a date or time of ISO 8601.

    A time without a time zone is local.
    """
    try:
        return time.time() - parse_duration(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError) as error:
        examples = "2h, 7d, 2026-11-29 or 2026-11-29T08:30"
        raise click.BadParameter(
            f"Expected how long ago, or a date or time: {examples} (got {text!r})."
        ) from error


def pair(text: str) -> tuple[str, str]:
    """Parse NAME=VALUE."""
    name, found, value = text.partition("=")
    if not (name and found):
        raise click.BadParameter(f"Expected NAME=VALUE (got {text!r}).")
    return name, value


def state(text: str) -> RunState.ValueType:
    """Parse the name of a state."""
    return _parsed(parse_state, text)


def retry_states(text: str) -> tuple[RunState.ValueType, ...]:
    """Parse the names of states after which a run is repeated, separated by commas."""
    found = tuple(state(name.strip()) for name in text.split(","))
    if odd := [name for name, one in zip(text.split(","), found, strict=True) if one not in REPEATED]:
        raise click.BadParameter(
            f"Expected crashed, interrupted or timed-out, separated by commas (got {odd[0].strip()!r})."
        )
    return found


def rows_of(rows: Sequence[tuple[str, ...]], width: int = 0) -> Iterator[str]:
    """Yield the lines of a table with aligned columns.

    Args:
        rows: The rows, all with the same number of columns.
        width: Maximum width of a line, in characters; zero: unlimited.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(column) for cell, column in zip(row, widths, strict=True)).rstrip()
        yield line if not width or len(line) <= width else line[: width - 1] + "…"


def _parsed(parse: Callable[[str], ValueT], text: str) -> ValueT:
    try:
        return parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
