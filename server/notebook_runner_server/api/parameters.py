"""Converts parameters between Python's values and the contract's two forms: a Struct and exact JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

from google.protobuf import struct_pb2

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.errors import InvalidFieldError

MAX_BYTES = 1024 * 1024
"""Maximum size of a run's parameters, in bytes: every message about the run contains them."""

MAX_VALUES = 10_000
"""Maximum number of values, including those in lists and objects: every message about the run has them."""

MAX_DEPTH = 30
"""Maximum nesting of values: parsers of protobuf refuse more than 100 nested messages."""

_MAX_WHOLE = 2**53
"""The largest integer up to which a double represents all integers."""

_TOO_LARGE = f"must be at most {MAX_BYTES} bytes long, as JSON and as a Struct. Put large data into a file."
_TOO_MANY = (
    f"must have at most {MAX_VALUES} values, including those in lists and objects. "
    "Put large data into a file."
)
_TOO_DEEP = f"must not be nested more than {MAX_DEPTH} levels deep. Send deeper values as a string."

_Container: TypeAlias = struct_pb2.Struct | struct_pb2.ListValue | dict[str, Any] | list[Any]


def parameters_of(request: pb.StartRequest) -> tuple[dict[str, Any], bool]:
    """Return the parameters of a request, and whether they keep the caller's order.

    Raises:
        InvalidFieldError: They are too large, malformed, or differ between the two fields.
    """
    given = request.parameters
    _check_size(given.ByteSize(), "parameters")
    # Before anything is converted: a MiB may hold half a million values.
    _check_shape(given, "parameters")
    if not request.parameters_json:
        values = _plain_struct(given)
        _check_answer(values, "parameters")
        return values, False
    values = _decode(request.parameters_json)
    if given.fields and not _struct_agrees(given.fields, values):
        raise _refusal(
            "parameters_json", "and parameters differ. Set one of them, or both to the same values."
        )
    return values, True


def encode(parameters: Mapping[str, Any]) -> str:
    """Return parameters as JSON; empty if there are none."""
    return json.dumps(dict(parameters), ensure_ascii=False) if parameters else ""


def fill_struct(struct: struct_pb2.Struct, values: Mapping[str, Any]) -> None:
    """Write parameters into a Struct; a number that it cannot represent becomes a string."""
    for name, value in values.items():
        _fill_value(struct.fields[name], value)


def _decode(text: str) -> dict[str, Any]:
    field = "parameters_json"
    _check_size(len(text.encode()), field)
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        found = f"must be valid JSON ({error.msg} at line {error.lineno}, column {error.colno})."
        raise _refusal(field, found) from error
    except RecursionError as error:
        raise _refusal(field, _TOO_DEEP) from error
    except ValueError as error:
        raise _refusal(
            field, "must not have an integer of more than 4,300 digits. Send it as a string."
        ) from error
    if not isinstance(values, dict):
        raise _refusal(field, "must be a JSON object with the values by name.")
    _check_shape(values, field)
    _check_answer(values, field)
    return values


def _check_size(size: int, field: str) -> None:
    if size > MAX_BYTES:
        raise _refusal(field, _TOO_LARGE)


def _check_shape(top: _Container, field: str) -> None:
    """Refuse too many or too deeply nested values, level by level from the top."""
    number = 0
    level = [top]
    for _ in range(MAX_DEPTH + 1):
        below: list[_Container] = []
        for container in level:
            inner = _inner(container)
            number += len(inner)
            if number > MAX_VALUES:
                raise _refusal(field, _TOO_MANY)
            below += [
                content
                for value in inner
                if isinstance(
                    content := _content(value), struct_pb2.Struct | struct_pb2.ListValue | dict | list
                )
            ]
        level = below
    if level:
        raise _refusal(field, _TOO_DEEP)


def _inner(container: _Container) -> Collection[Any]:
    match container:
        case struct_pb2.Struct():
            return container.fields.values()
        case struct_pb2.ListValue():
            return container.values
        case dict():
            return container.values()
    return container


def _content(value: Any) -> Any:
    if not isinstance(value, struct_pb2.Value):
        return value
    kind = value.WhichOneof("kind")
    return getattr(value, kind) if kind else None


def _check_answer(values: dict[str, Any], field: str) -> None:
    """Refuse parameters that have no valid form in a Run, or that are too large there."""
    try:
        encoded = encode(values).encode()
    except UnicodeEncodeError as error:
        raise _refusal(field, "must be valid Unicode (found a lone surrogate).") from error
    struct = struct_pb2.Struct()
    fill_struct(struct, values)
    _check_size(max(len(encoded), struct.ByteSize()), field)


def _refusal(field: str, found: str) -> InvalidFieldError:
    return InvalidFieldError(f"{field} {found}", field=field)


def _plain_struct(struct: struct_pb2.Struct) -> dict[str, Any]:
    return {name: _plain(value) for name, value in struct.fields.items()}


def _plain(value: struct_pb2.Value) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            return _number(value.number_value)
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return _plain_struct(value.struct_value)
        case "list_value":
            return [_plain(one) for one in value.list_value.values]
    return None


def _number(number: float) -> int | float:
    is_whole = number.is_integer() and abs(number) <= _MAX_WHOLE
    # An int has no negative zero.
    return int(number) if is_whole and str(number) != "-0.0" else number


def _fill_value(target: struct_pb2.Value, value: Any) -> None:
    match value:
        case None:
            target.null_value = struct_pb2.NULL_VALUE
        case bool():
            target.bool_value = value
        case int() | float():
            if isinstance(shown := _as_string(value), str):
                target.string_value = shown
            else:
                target.number_value = value
        case str():
            target.string_value = value
        case list():
            target.list_value.SetInParent()
            for one in value:
                _fill_value(target.list_value.values.add(), one)
        case _:
            target.struct_value.SetInParent()
            fill_struct(target.struct_value, value)


def _as_string(number: float) -> str | None:
    """Return the string for a number that a Struct cannot represent in JSON; None: it can."""
    if isinstance(number, int):
        return str(number) if abs(number) > _MAX_WHOLE else None
    # Python's json module and protobuf's JSON use the same names for NaN and the infinities.
    return None if math.isfinite(number) else json.dumps(number)


def _struct_agrees(fields: Mapping[str, struct_pb2.Value], values: Mapping[str, Any]) -> bool:
    return fields.keys() == values.keys() and all(_agrees(fields[name], values[name]) for name in values)


def _agrees(given: struct_pb2.Value, value: Any) -> bool:
    """Return whether a value of a Struct is what a Struct makes of an exact value."""
    match given.WhichOneof("kind"):
        case "number_value":
            return _is_nearest(given.number_value, value)
        case "string_value":
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            return bool(given.string_value == (_as_string(value) if is_number else value))
        case "bool_value":
            return isinstance(value, bool) and given.bool_value == value
        case "struct_value":
            return isinstance(value, dict) and _struct_agrees(given.struct_value.fields, value)
        case "list_value":
            items = given.list_value.values
            return isinstance(value, list) and len(items) == len(value) and all(map(_agrees, items, value))
    return value is None


def _is_nearest(given: float, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # From its digits, because beyond the largest double float(int) raises and float(str) is infinite.
    nearest = float(str(value))
    return given == nearest or (math.isnan(given) and math.isnan(nearest))
