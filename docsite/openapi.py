"""Generate the OpenAPI document of the HTTP API from the contract; `make openapi` writes it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2 as descriptors

from docsite.contract import described
from notebook_runner_server.http_api.bindings import Binding, bindings
from notebook_runner_server.http_api.streams import EVENT_STREAM, JSON_LINES, RESUMPTIONS

FILE = Path(__file__).resolve().parents[1] / "server/notebook_runner_server/http_api/openapi.json"

_Field = descriptors.FieldDescriptorProto
_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6  # of FileDescriptorProto
_PARTS = 2  # fields of a message, values of an enumeration, methods of a service

_INT64 = {"type": "string", "format": "int64", "pattern": "^-?[0-9]{1,19}$"}
_SCALARS: dict[int, dict[str, Any]] = {
    _Field.TYPE_BOOL: {"type": "boolean"},
    _Field.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    _Field.TYPE_DOUBLE: {"type": "number"},
    _Field.TYPE_INT32: {"type": "integer", "format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1},
    _Field.TYPE_INT64: _INT64,
    _Field.TYPE_STRING: {"type": "string"},
}
_WELL_KNOWN: dict[str, dict[str, Any]] = {
    ".google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]{1,12}(\.[0-9]{1,9})?s$"},
    ".google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    ".google.protobuf.Struct": {"type": "object", "additionalProperties": True},
}
_STATUS: dict[str, Any] = {
    "type": "object",
    "description": "A failed call (google.rpc.Status).",
    "properties": {
        "code": {"type": "integer", "format": "int32", "description": "The gRPC code."},
        "message": {"type": "string", "description": "What is wrong, and what to do."},
        "details": {
            "type": "array",
            "items": {"type": "object", "properties": {"@type": {"type": "string"}}, "required": ["@type"]},
            "description": "The reason (ErrorInfo), the field (BadRequest), when to repeat (RetryInfo).",
        },
    },
}
_BINARY: dict[str, Any] = {}


def document() -> dict[str, Any]:
    """Return the document."""
    return _Document(described()).whole()


def text() -> str:
    """Return the document as it is stored."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


class _Document:
    def __init__(self, file: descriptors.FileDescriptorProto) -> None:
        self._package = f".{file.package}."
        self._comments = {
            tuple(place.path): place.leading_comments for place in file.source_code_info.location
        }
        self._messages = {one.name: (place, one) for place, one in enumerate(file.message_type)}
        self._enums = list(enumerate(file.enum_type))
        (service,) = file.service
        self._methods = {method.name: place for place, method in enumerate(service.method)}

    def whole(self) -> dict[str, Any]:
        """Return the whole document."""
        paths: dict[str, dict[str, Any]] = {}
        for one in bindings():
            paths.setdefault(one.path, {})[one.verb.lower()] = self._operation(one)
        schemas = {name: self._message(name) for name in sorted(self._messages)}
        schemas |= {enum.name: self._enum(place, enum) for place, enum in self._enums}
        return {
            "openapi": "3.1.0",
            "info": {
                "title": "notebook-runner",
                "version": "v1",
                "description": "Executes Jupyter notebooks on demand. JSON is the JSON mapping of proto3: "
                "fields with their default value are left out, and 64-bit integers are strings. The run id "
                "`latest` stands for the caller's newest run.",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": "/"}],
            "security": [{}, {"bearer": []}],
            "paths": paths,
            "components": {
                "schemas": schemas | {"Status": _STATUS},
                "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
                "responses": {
                    "Failed": {
                        "description": "The call failed; `Retry-After` says when to repeat it.",
                        "content": {"application/json": {"schema": _reference("Status")}},
                    }
                },
            },
        }

    def _operation(self, binding: Binding) -> dict[str, Any]:
        comment = self._comment(_SERVICES, 0, _PARTS, self._methods[binding.name])
        in_path = re.findall(r"{(\w+)}", binding.path)
        found: dict[str, Any] = {
            "operationId": binding.name,
            "summary": re.split(r"(?<=\.)\s", comment, maxsplit=1)[0],
            "description": comment,
            "parameters": list(self._parameters(binding, in_path)),
            "responses": self._responses(binding),
        }
        if binding.has_body:
            schema = _reference(binding.method.input_type.name)
            content: dict[str, Any] = {"application/json": {"schema": schema}}
            if binding.name == "Start":
                content |= {"application/x-ipynb+json": {"schema": _BINARY}}
                found["description"] += (
                    "\n\nA body of any type but application/json is the notebook itself; the other fields "
                    "are query parameters then."
                )
            found["requestBody"] = {"content": content}
        return found

    def _parameters(self, binding: Binding, in_path: list[str]) -> Iterator[dict[str, Any]]:
        place, message = self._messages[binding.method.input_type.name]
        for number, field in enumerate(message.field):
            about = {"name": field.name, "description": self._comment(_MESSAGES, place, _PARTS, number)}
            if field.name in in_path:
                schema = {"type": "string", "minLength": 1, "pattern": "^[^/]+$"}
                yield {**about, "in": "path", "required": True, "schema": schema}
            elif not binding.has_body:
                schema = self._schema(message, field)
                style = {"style": "deepObject", "explode": True} if schema.get("type") == "object" else {}
                yield {**about, "in": "query", "schema": schema, **style}
        if binding.name in RESUMPTIONS:
            about = {"name": "Last-Event-ID", "description": "The `id` of the last event that was received."}
            yield {**about, "in": "header", "schema": {"type": "string"}}
        if binding.name == "Output":
            for name in ("Range", "If-None-Match"):
                yield {"name": name, "in": "header", "schema": {"type": "string"}}

    def _responses(self, binding: Binding) -> dict[str, Any]:
        as_json = {"application/json": {"schema": _reference(binding.method.output_type.name)}}
        failed = {"$ref": "#/components/responses/Failed"}
        if binding.name in RESUMPTIONS:
            kinds = {EVENT_STREAM: {"schema": {"type": "string"}}, JSON_LINES: {"schema": {"type": "string"}}}
            return {
                "200": {"description": "The events, as they happen.", "content": kinds},
                "204": {"description": "There are no events after Last-Event-ID, and will be none."},
                "default": failed,
            }
        if binding.name == "Output":
            kinds = {**as_json, "*/*": {"schema": _BINARY}}
            return {
                "200": {
                    "description": "The artefact; with Accept: application/json a page.",
                    "content": kinds,
                },
                "206": {"description": "The range.", "content": {"*/*": {"schema": _BINARY}}},
                "304": {"description": "The artefact is the one of If-None-Match."},
                "416": {"description": "The range is past the end."},
                "default": failed,
            }
        return {"200": {"description": "OK", "content": as_json}, "default": failed}

    def _message(self, name: str) -> dict[str, Any]:
        place, message = self._messages[name]
        properties = {}
        for number, field in enumerate(message.field):
            comment = self._comment(_MESSAGES, place, _PARTS, number)
            if field.HasField("oneof_index") and not field.proto3_optional:
                comment += f" One of `{message.oneof_decl[field.oneof_index].name}`."
            properties[field.json_name] = {**self._schema(message, field), "description": comment}
        return {"type": "object", "description": self._comment(_MESSAGES, place), "properties": properties}

    def _enum(self, place: int, enum: descriptors.EnumDescriptorProto) -> dict[str, Any]:
        values = [
            f"- `{value.name}`: {self._comment(_ENUMS, place, _PARTS, number)}"
            for number, value in enumerate(enum.value)
        ]
        about = "\n".join([self._comment(_ENUMS, place), "", *values])
        return {"type": "string", "enum": [value.name for value in enum.value], "description": about}

    def _schema(self, message: descriptors.DescriptorProto, field: _Field) -> dict[str, Any]:
        for nested in message.nested_type:
            if nested.options.map_entry and field.type_name.endswith(f".{message.name}.{nested.name}"):
                return {"type": "object", "additionalProperties": self._schema(nested, nested.field[1])}
        if field.type_name in _WELL_KNOWN:
            one = _WELL_KNOWN[field.type_name]
        elif field.type_name:
            one = _reference(field.type_name.removeprefix(self._package))
        else:
            one = _SCALARS[field.type]
        return {"type": "array", "items": one} if field.label == _Field.LABEL_REPEATED else dict(one)

    def _comment(self, *path: int) -> str:
        lines = self._comments.get(path, "").splitlines()
        return "\n".join(line.removeprefix(" ") for line in lines).strip()


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
