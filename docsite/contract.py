"""Generate the page of the contract from its file: calls, messages and enumerations, with their comments."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import descriptor_pb2 as descriptors

from docsite.tables import table
from notebook_runner_server.errors import reasons
from notebook_runner_server.http_api.bindings import bindings

ROOT = Path(__file__).resolve().parents[1]
PROTO = "notebook_runner/v1/notebook_runner.proto"
BUF = Path(sys.executable).with_name("buf")

# Paths to comments consist of the numbers of these fields in descriptor.proto.
_FILE = descriptors.FileDescriptorProto
_PACKAGE, _MESSAGES = _FILE.PACKAGE_FIELD_NUMBER, _FILE.MESSAGE_TYPE_FIELD_NUMBER
_ENUMS, _SERVICES, _SYNTAX = (
    _FILE.ENUM_TYPE_FIELD_NUMBER,
    _FILE.SERVICE_FIELD_NUMBER,
    _FILE.SYNTAX_FIELD_NUMBER,
)
_FIELDS, _ONEOFS = 2, 8  # of DescriptorProto
_METHODS = _VALUES = 2  # of ServiceDescriptorProto and of EnumDescriptorProto

_Field = descriptors.FieldDescriptorProto
_Message = descriptors.DescriptorProto


def markdown() -> str:
    """Return the page's generated part."""
    return "\n\n".join(_Contract(described()).sections())


def described() -> descriptors.FileDescriptorProto:
    """Return the contract's descriptor, with its comments."""
    command = [str(BUF), "build", "--as-file-descriptor-set", "--path", f"proto/{PROTO}", "--output", "-"]
    built = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout  # noqa: S603 - our own tool
    files = descriptors.FileDescriptorSet.FromString(built).file
    return next(file for file in files if file.name == PROTO)


class _Contract:
    """The contract's descriptor, with its comments."""

    def __init__(self, file: descriptors.FileDescriptorProto) -> None:
        self._file = file
        places = file.source_code_info.location
        self._comments = {tuple(place.path): place.leading_comments for place in places}

    def sections(self) -> Iterator[str]:
        """Yield the parts of the page."""
        yield self._comment(_SYNTAX)
        for place, service in enumerate(self._file.service):
            yield f"## Calls\n\n`{self._file.package}.{service.name}`"
            yield self._comment(_SERVICES, place)
            for number, method in enumerate(service.method):
                yield self._call(method, self._comment(_SERVICES, place, _METHODS, number))
        yield "## Messages"
        for place, message in enumerate(self._file.message_type):
            yield self._message(message, place)
        yield "## Enumerations"
        for place, enum in enumerate(self._file.enum_type):
            values = (
                (f"`{value.name}`", str(value.number), self._comment(_ENUMS, place, _VALUES, number))
                for number, value in enumerate(enum.value)
            )
            rows = table(["value", "number", "meaning"], values)
            yield f"### {enum.name}\n\n{self._comment(_ENUMS, place)}\n\n{rows}"

    def _call(self, method: descriptors.MethodDescriptorProto, comment: str) -> str:
        answer = _linked(method.output_type)
        if method.server_streaming:
            answer = f"a stream of {answer}"
        paths = " · ".join(f"`{one.verb} {one.path}`" for one in bindings() if one.name == method.name)
        types = f"{_linked(method.input_type)} → {answer}"
        return f"### {method.name}\n\n{types} ([HTTP](../how-to/http.md): {paths})\n\n{comment}"

    def _message(self, message: _Message, place: int) -> str:
        parts = [f"### {message.name}", self._comment(_MESSAGES, place)]
        if message.field:
            rows = (
                (f"`{field.name}`", self._type(message, field), self._meaning(message, place, number))
                for number, field in enumerate(message.field)
            )
            parts.append(table(["field", "type", "meaning"], rows))
        else:
            parts.append("This message has no fields.")
        return "\n\n".join(parts)

    def _meaning(self, message: _Message, place: int, number: int) -> str:
        field, comment = message.field[number], self._comment(_MESSAGES, place, _FIELDS, number)
        if not field.HasField("oneof_index") or field.proto3_optional:
            return comment
        group = message.oneof_decl[field.oneof_index].name
        return (
            f"{comment}\n\n*One of* `{group}`: {self._comment(_MESSAGES, place, _ONEOFS, field.oneof_index)}"
        )

    def _type(self, message: _Message, field: _Field) -> str:
        for nested in message.nested_type:
            if nested.options.map_entry and field.type_name.endswith(f".{message.name}.{nested.name}"):
                return f"map of {_type_name(nested.field[0])} to {_type_name(nested.field[1])}"
        name = _type_name(field)
        if field.label == _Field.LABEL_REPEATED:
            return f"list of {name}"
        return f"{name}, or absent" if field.proto3_optional else name

    def _comment(self, *path: int) -> str:
        text = self._comments.get(path, "")
        lines = (line.removeprefix(" ") for line in text.splitlines())
        return _with_links("\n".join(lines).strip())


def _type_name(field: _Field) -> str:
    if field.type_name:
        return _linked(field.type_name)
    return f"`{_Field.Type.Name(field.type).removeprefix('TYPE_').lower()}`"


def _linked(type_name: str) -> str:
    """Return a type's name, as a link if the contract defines the type."""
    package, _, name = type_name.removeprefix(".").rpartition(".")
    if package.startswith("google.protobuf"):
        return f"`{package}.{name}`"
    return f"[`{name}`](#{name.lower()})"


def _with_links(text: str) -> str:
    """Link each reason of an error to its explanation."""
    named = "|".join(sorted(reasons(), key=len, reverse=True))
    return re.sub(rf"\b({named})\b", lambda found: f"[{found[1]}](errors.md#{found[1].lower()})", text)
