"""Converts values between the contract and Python."""

from __future__ import annotations

import json
import numbers
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

from google.protobuf.duration_pb2 import Duration

if TYPE_CHECKING:
    from google.protobuf.struct_pb2 import ListValue, Struct, Value
    from google.protobuf.timestamp_pb2 import Timestamp

__all__ = ["Seconds", "duration", "from_struct", "named_values", "seconds", "seconds_of", "span", "utc"]

Seconds: TypeAlias = float | timedelta
"""A duration, in seconds or as a timedelta."""

# The most that a Duration holds: 10,000 years.
MAX_SECONDS = 315_576_000_000


def utc(moment: Timestamp) -> datetime:
    """Return a time as an aware datetime in UTC."""
    return moment.ToDatetime(tzinfo=UTC)


def span(duration: Duration) -> timedelta:
    """Return a duration as a timedelta."""
    return duration.ToTimedelta()


def seconds(value: Seconds) -> float:
    """Return a duration in seconds."""
    return value.total_seconds() if isinstance(value, timedelta) else float(value)


def duration(value: Seconds) -> Duration:
    """Convert a duration to the contract's message.

    Raises:
        TypeError: The value is not a duration.
        ValueError: The value is infinite, not a number, or out of range.
    """
    result = Duration()
    number: object = value
    if isinstance(value, timedelta):
        result.FromTimedelta(value)
    elif not isinstance(number, numbers.Real):
        raise TypeError(
            f"A duration must be a number of seconds or a timedelta (got {type(value).__name__})."
        )
    elif abs(value) <= MAX_SECONDS:  # false for NaN
        result.FromNanoseconds(round(value * 1e9))
    else:
        raise ValueError(f"A duration must be a number of seconds up to {MAX_SECONDS} (got {value}).")
    return result


def seconds_of(moment: Timestamp) -> float:
    """Return a time in seconds since 1970."""
    return float(moment.seconds + moment.nanos / 1e9)


def named_values(exact: str, struct: Struct) -> dict[str, Any]:
    """Return values by name.

    Args:
        exact: The values as a JSON object; empty from a server that does not know this field.
        struct: The same values as far as a Struct can represent them.
    """
    if exact:
        found: dict[str, Any] = json.loads(exact)
        return found
    return from_struct(struct)


def from_struct(struct: Struct) -> dict[str, Any]:
    """Return the values of a Struct; whole numbers are integers."""
    return {name: _from_value(value) for name, value in struct.fields.items()}


def _from_list(values: ListValue) -> list[Any]:
    return [_from_value(value) for value in values.values]


def _from_value(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            # As the notebook has it: a Struct has no integers.
            return int(number) if number.is_integer() else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return from_struct(value.struct_value)
        case "list_value":
            return _from_list(value.list_value)
        case _:
            return None
