"""Examines a serialized Start before it is parsed, which may take seconds and keeps the event loop busy."""

from __future__ import annotations

from collections.abc import Iterator

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.api.limits import MESSAGE_OVERHEAD

MAX_FIELDS = 30_000
"""Maximum number of fields of a Start, with those of its files; each entry of a map is one."""

MAX_SMALL_BYTES = 4 * MESSAGE_OVERHEAD
"""Maximum size of all fields but the notebook and the files."""

_NUMBERS = {field.name: field.number for field in pb.StartRequest.DESCRIPTOR.fields}
_NOTEBOOK, _FILES = _NUMBERS["notebook_content"], _NUMBERS["files"]
_MAX_VARINT = 10

# Wire types of protobuf: a number, 8 bytes, bytes with their length, 4 bytes.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SIZES = {_FIXED64: 8, _FIXED32: 4}


def is_costly(start: bytes) -> bool:
    """Return whether a serialized Start has more fields, or larger ones, than any that can be admitted.

    Raises:
        ValueError: It is malformed.
    """
    count = small = 0
    for number, begin, end in _fields(start, 0, len(start)):
        count += 1
        if number == _FILES:
            for _ in _fields(start, begin, end):
                count += 1
                if count > MAX_FIELDS:
                    return True
        elif number != _NOTEBOOK:
            small += end - begin
        if count > MAX_FIELDS or small > MAX_SMALL_BYTES:
            return True
    return False


def _fields(data: bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the number of each field of a message, and where its content begins and ends."""
    while position < end:
        key, position = _varint(data, position, end)
        kind = key & 7
        if kind == _VARINT:
            begin, (_, after) = position, _varint(data, position, end)
        elif kind == _BYTES:
            size, begin = _varint(data, position, end)
            after = begin + size
        elif kind in _SIZES:
            begin, after = position, position + _SIZES[kind]
        else:
            raise ValueError("a group, or an unknown wire type")
        if after > end:
            raise ValueError("a field ends after its message")
        yield key >> 3, begin, after
        position = after


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Return a number, and the position after it."""
    value = 0
    for index, byte in enumerate(data[position : min(position + _MAX_VARINT, end)]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:  # noqa: PLR2004 - the bit that says that more follows
            return value, position + index + 1
    raise ValueError("an endless number")
