"""Converts values of the contract to Python's."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.struct_pb2 import ListValue, Struct, Value
    from google.protobuf.timestamp_pb2 import Timestamp

__all__ = ["from_struct", "named_values", "seconds_of", "span", "utc"]


def utc(moment: Timestamp) -> datetime:
    """Return a time as an aware datetime in UTC."""
    return moment.ToDatetime(tzinfo=UTC)


def span(duration: Duration) -> timedelta:
    """Return a duration as a timedelta."""
    return duration.ToTimedelta()


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
