"""Durations and sizes as people write them: `90`, `5m`, `7d`, `512Mi`, `2Gi`. Both commands use it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["parse_duration", "parse_size"]

_SECONDS = {"ms": 0.001, "": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_NUMBER_AND_UNIT = re.compile(r"(\d+(?:\.\d+)?)([A-Za-z]*)", re.ASCII)


def parse_duration(text: str) -> float:
    """Parse a duration with an optional unit, in seconds.

    Raises:
        ValueError: It is not a duration.
    """
    return _quantity(text, _SECONDS)


def parse_size(text: str) -> int:
    """Parse a size with an optional unit, in bytes.

    Raises:
        ValueError: It is not a size.
    """
    return round(_quantity(text, _BYTES))


def _quantity(text: str, units: Mapping[str, float]) -> float:
    if text.startswith("-"):
        raise ValueError(f"The value must not be negative (got {text!r}).")
    match = _NUMBER_AND_UNIT.fullmatch(text)
    if match is None or match[2] not in units:
        names = ", ".join(unit for unit in units if unit)
        raise ValueError(f"Expected a number, optionally with a unit: {names} (got {text!r}).")
    return float(match[1]) * units[match[2]]
