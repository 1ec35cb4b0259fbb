"""How values are written on the command line, and tables shown there."""

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
    """Take a length of time with an optional unit, and give it in seconds."""
    return _quantity(text, _SECONDS)


def size(text: str) -> int:
    """Take a size with an optional unit, and give it in bytes."""
    return round(_quantity(text, _BYTES))


def pair(text: str) -> tuple[str, str]:
    """Take a name and a value with = between them."""
    name, found, value = text.partition("=")
    if not (name and found):
        raise click.BadParameter(f"Expected NAME=VALUE (got {text!r}).")
    return name, value


def state(text: str) -> RunState.ValueType:
    """Take a state of a run by name."""
    try:
        return parse_state(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def rows_of(rows: Sequence[tuple[str, ...]], width: int = 0) -> Iterator[str]:
    """Give the lines of a table whose columns are as wide as they have to be.

    Args:
        rows: The rows, of as many columns each.
        width: What is over so many characters of a line is cut off; zero: nothing.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(room) for cell, room in zip(row, widths, strict=True)).rstrip()
        yield line if not width or len(line) <= width else line[: width - 1] + "…"


def _quantity(text: str, units: Mapping[str, float]) -> float:
    match = _NUMBER_AND_UNIT.fullmatch(text)
    if match is None or match[2] not in units:
        names = ", ".join(unit for unit in units if unit)
        raise click.BadParameter(f"Expected a number, optionally with a unit: {names} (got {text!r}).")
    return float(match[1]) * units[match[2]]
