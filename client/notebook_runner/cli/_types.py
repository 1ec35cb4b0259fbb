"""Parses values of options, and formats tables."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from notebook_runner._states import parse_state

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from notebook_runner.v1.notebook_runner_pb2 import RunState

__all__ = ["duration", "pair", "rows_of", "size", "state"]

_SECONDS = {"ms": 0.001, "": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_NUMBER_AND_UNIT = re.compile(r"(\d+(?:\.\d+)?)([A-Za-z]*)")


def duration(text: str) -> float:
    """Parse a duration with an optional unit, in seconds."""
    return _quantity(text, _SECONDS)


def size(text: str) -> int:
    """Parse a size with an optional unit, in bytes."""
    return round(_quantity(text, _BYTES))


def pair(text: str) -> tuple[str, str]:
    """Parse NAME=VALUE."""
    name, found, value = text.partition("=")
    if not (name and found):
        raise click.BadParameter(f"Expected NAME=VALUE (got {text!r}).")
    return name, value


def state(text: str) -> RunState.ValueType:
    """Parse the name of a state."""
    try:
        return parse_state(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


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


def _quantity(text: str, units: Mapping[str, float]) -> float:
    match = _NUMBER_AND_UNIT.fullmatch(text)
    if match is None or match[2] not in units:
        names = ", ".join(unit for unit in units if unit)
        raise click.BadParameter(f"Expected a number, optionally with a unit: {names} (got {text!r}).")
    return float(match[1]) * units[match[2]]
