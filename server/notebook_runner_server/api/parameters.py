"""Parameters between the contract's two forms and Python's values: a Struct, and exact JSON beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from google.protobuf import struct_pb2

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.runs.errors import InvalidFieldError

MAX_BYTES = 1024 * 1024
"""The most that a run's parameters may have, in bytes: every answer about the run carries them."""

MAX_VALUES = 10_000
"""How many values there may be, those in lists and objects included: each answer about the run has them."""

MAX_DEPTH = 30
"""How deep values may be nested: readers of protobuf refuse more than 100 messages in each other."""

_MAX_WHOLE = 2**53
"""Beyond it a double no longer tells whole numbers apart."""


def parameters_of(request: pb.StartRequest) -> tuple[dict[str, Any], bool]:
    """Return the parameters of a request, and whether their order is the caller's.

    Raises:
        InvalidFieldError: They are too large, not in the form of the contract, or say two different things.
    """
    if request.parameters.ByteSize() > MAX_BYTES:
        raise InvalidFieldError(_too_large("parameters"), field="parameters")
    # Before anything is converted: a MiB may hold half a million values.
    _check_number(request.parameters, "parameters")
    if not request.parameters_json:
        values = _plain_struct(request.parameters)
        _check_depth(values, "parameters")
        _check_answer(values, "parameters")
        return values, False
    values = _decode(request.parameters_json)
    given = request.parameters.fields
    if given and not _struct_agrees(given, values):
        message = (
            "parameters_json and parameters have different values: give the same in both, or one of them."
        )
        raise InvalidFieldError(message, field="parameters_json")
    return values, True


def encode(parameters: Mapping[str, Any]) -> str:
    """Return parameters as the contract's JSON; empty for none."""
    return json.dumps(dict(parameters), ensure_ascii=False) if parameters else ""


def fill_struct(struct: struct_pb2.Struct, values: Mapping[str, Any]) -> None:
    """Write parameters into a Struct that every JSON library can write; what it cannot hold is a string."""
    for name, value in values.items():
        _fill_value(struct.fields[name], value)


def _decode(text: str) -> dict[str, Any]:
    field = "parameters_json"
    if len(text.encode()) > MAX_BYTES:
        raise InvalidFieldError(_too_large(field), field=field)
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        message = f"{field} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        raise InvalidFieldError(message, field=field) from error
    except RecursionError as error:
        raise InvalidFieldError(_too_deep(field), field=field) from error
    except ValueError as error:
        message = f"{field} has an integer with more than 4,300 digits: send it as a string."
        raise InvalidFieldError(message, field=field) from error
    if not isinstance(values, dict):
        message = f"{field} must be a JSON object of values by name, not {type(values).__name__}."
        raise InvalidFieldError(message, field=field)
    _check_depth(values, field)
    if _number_of_values(values) > MAX_VALUES:
        raise InvalidFieldError(_too_many(field), field=field)
    try:
        encoded = encode(values).encode()
    except UnicodeEncodeError as error:
        message = f"{field} has text that is not valid Unicode (a lone surrogate)."
        raise InvalidFieldError(message, field=field) from error
    if len(encoded) > MAX_BYTES:
        raise InvalidFieldError(_too_large(field), field=field)
    _check_answer(values, field)
    return values


def _check_answer(values: dict[str, Any], field: str) -> None:
    """Refuse what is small as it was sent and large in a Run, which has it in both forms."""
    struct = struct_pb2.Struct()
    fill_struct(struct, values)
    if max(len(encode(values).encode(errors="surrogatepass")), struct.ByteSize()) > MAX_BYTES:
        raise InvalidFieldError(_too_large(field), field=field)


def _too_large(field: str) -> str:
    limit = f"together they may have at most {MAX_BYTES} bytes, as JSON and as a Struct"
    return f"{field}: {limit}; pass larger data as a file."


def _too_deep(field: str) -> str:
    return f"{field}: values are nested at most {MAX_DEPTH} deep; send deeper ones as a string."


def _too_many(field: str) -> str:
    return (
        f"{field}: at most {MAX_VALUES} values are allowed, list items included; pass larger data as a file."
    )


def _check_number(struct: struct_pb2.Struct, field: str) -> None:
    number = 0
    left: list[struct_pb2.Struct | struct_pb2.ListValue] = [struct]
    while left:
        one = left.pop()
        values = one.fields.values() if isinstance(one, struct_pb2.Struct) else one.values
        number += len(values)
        if number > MAX_VALUES:
            raise InvalidFieldError(_too_many(field), field=field)
        for value in values:
            match value.WhichOneof("kind"):
                case "struct_value":
                    left.append(value.struct_value)
                case "list_value":
                    left.append(value.list_value)


def _number_of_values(value: dict[str, Any] | list[Any]) -> int:
    inner = _inner(value)
    return len(inner) + sum(_number_of_values(one) for one in inner if isinstance(one, dict | list))


def _check_depth(values: dict[str, Any], field: str) -> None:
    level: list[Any] = [values]
    for _ in range(MAX_DEPTH + 1):
        level = [one for value in level for one in _inner(value) if isinstance(one, dict | list)]
        if not level:
            return
    raise InvalidFieldError(_too_deep(field), field=field)


def _inner(value: dict[str, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


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
    is_minus_zero = number == 0 and math.copysign(1, number) < 0
    is_whole = number.is_integer() and abs(number) <= _MAX_WHOLE and not is_minus_zero
    return int(number) if is_whole else number


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
    """Return what stands for a number that a Struct in JSON cannot have; None: it can have it."""
    if isinstance(number, int):
        return str(number) if abs(number) > _MAX_WHOLE else None
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    return None


def _struct_agrees(fields: Mapping[str, struct_pb2.Value], values: Mapping[str, Any]) -> bool:
    return fields.keys() == values.keys() and all(_agrees(fields[name], values[name]) for name in values)


def _agrees(given: struct_pb2.Value, value: Any) -> bool:
    """Tell whether a value of a Struct is what is left there of an exact one."""
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
            return (
                isinstance(value, list)
                and len(items) == len(value)
                and all(_agrees(one, other) for one, other in zip(items, value, strict=True))
            )
    return value is None


def _is_nearest(given: float, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        nearest = float(value)
    except OverflowError:
        nearest = math.inf if value > 0 else -math.inf
    return given == nearest or (math.isnan(given) and math.isnan(nearest))
