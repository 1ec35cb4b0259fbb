"""Translates between messages of the contract and JSON or query parameters, by proto3's JSON mapping."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from google.protobuf import descriptor_pb2, json_format, symbol_database
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.errors import InvalidFieldError

_INTEGERS = (
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
)
_INTEGER = re.compile(r"-?[0-9]{1,20}")
_BOOLEANS = {"true": True, "false": False}
_MAP_KEY = re.compile(r"(\w+)\[(.*)\]", re.DOTALL)

# What protobuf raises for JSON of all kinds; texts with half of a surrogate pair are ValueErrors.
_REFUSED = (json_format.ParseError, ValueError, TypeError, RecursionError, OverflowError)

_MAX_WHY = 200


def read_json(body: bytes, message: Message) -> None:
    """Merge a JSON object into a message.

    Raises:
        InvalidFieldError: The body is not JSON, or not of the message's type.
    """
    try:
        # protobuf takes an empty list for an empty message.
        if not body.lstrip().startswith(b"{"):
            raise ValueError("it is not an object")
        json_format.Parse(body, message)
    except _REFUSED as error:
        why = str(error)[:_MAX_WHY] if not isinstance(error, RecursionError) else "it is nested too deep"
        text = f"The body must be a {message.DESCRIPTOR.name} as JSON in UTF-8 ({why})."
        raise InvalidFieldError(text) from None


def max_values(body: bytes) -> int:
    """Return how many values a body in JSON can have at most, which decides how long it takes to parse it."""
    # Each value but the first of a list or an object follows a comma; commas in texts count as well.
    return 1 + sum(map(body.count, (b",", b"[", b"{")))


def request_from_json(type_name: str, body: bytes) -> bytes:
    """Return a request of the contract, serialized, from JSON; for a process of its own.

    Args:
        type_name: The type of the request.
        body: The JSON.

    Raises:
        InvalidFieldError: The body is not JSON, or not of the type.
    """
    message: Message = symbol_database.Default().GetSymbol(f"{pb.DESCRIPTOR.package}.{type_name}")()
    read_json(body, message)
    return message.SerializeToString()


def read_query(pairs: Iterable[tuple[str, str]], message: Message) -> None:
    """Merge query parameters into a message.

    A field has its name in the contract or in JSON; lists repeat it, fields of fields are joined by dots, and
    entries of a map are `name[key]`.

    Raises:
        InvalidFieldError: A parameter is unknown, or its value does not fit.
    """
    tree: dict[str, Any] = {}
    for name, value in pairs:
        _insert(tree, message.DESCRIPTOR, name, name, value)
    try:
        json_format.ParseDict(tree, message)
    except _REFUSED as error:
        raise InvalidFieldError(f"Invalid query parameter: {str(error)[:_MAX_WHY]}") from None


def _insert(tree: dict[str, Any], kind: Any, name: str, whole: str, value: str) -> None:
    head, _, rest = name.partition(".")
    entry = _MAP_KEY.fullmatch(name)
    if entry:
        head, rest = entry[1], ""
    field = kind.fields_by_name.get(head) or kind.fields_by_camelcase_name.get(head)
    if field is None or bool(entry) != _is_map(field):
        form = f"{head}[KEY]=VALUE" if field is not None and _is_map(field) else ""
        hint = f"Write it as {form}." if form else f"{kind.name} has no such field."
        raise InvalidFieldError(f"Unknown query parameter {whole[:_MAX_WHY]!r}. {hint}", field=head)
    if entry:
        tree.setdefault(field.name, {})[entry[2]] = value
    elif rest and field.message_type is not None and field.name not in _lists(kind):
        branch = tree.setdefault(field.name, {})
        if not isinstance(branch, dict):
            raise InvalidFieldError(f"The query parameter {head!r} is given twice.", field=head)
        _insert(branch, field.message_type, rest, whole, value)
    elif field.name in _lists(kind):
        tree.setdefault(field.name, []).append(_value(field, whole, value))
    elif rest or field.name in tree:
        why = "is given twice" if not rest else "has no fields"
        raise InvalidFieldError(f"The query parameter {whole[:_MAX_WHY]!r} {why}.", field=head)
    else:
        tree[field.name] = _value(field, whole, value)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


@lru_cache
def _lists(kind: Any) -> frozenset[str]:
    """Return the names of a message's fields that are lists, in a way that all versions of protobuf have."""
    described = descriptor_pb2.DescriptorProto()
    kind.CopyToProto(described)
    repeated = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
    return frozenset(field.name for field in described.field if field.label == repeated)


def _value(field: FieldDescriptor, name: str, value: str) -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        if value not in _BOOLEANS:
            raise InvalidFieldError(f"{name} must be true or false (got {value[:_MAX_WHY]!r}).", field=name)
        return _BOOLEANS[value]
    if field.cpp_type in _INTEGERS and not _INTEGER.fullmatch(value):
        raise InvalidFieldError(f"{name} must be an integer (got {value[:_MAX_WHY]!r}).", field=name)
    return value


def to_json(message: Message) -> str:
    """Return a message as JSON on one line."""
    return json.dumps(json_format.MessageToDict(message), ensure_ascii=False, separators=(",", ":"))
