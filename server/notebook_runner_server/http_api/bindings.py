"""The HTTP paths of the contract's calls, read from its `google.api.http` options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.api import annotations_pb2
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from notebook_runner.v1 import notebook_runner_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["NotebookRunner"]


@dataclass(frozen=True)
class Binding:
    """The path of a call.

    Attributes:
        verb: The HTTP method.
        path: The path, with the names of the request's fields in braces.
        has_body: Whether the body is the request, except for the fields in the path.
        method: The call.
    """

    verb: str
    path: str
    has_body: bool
    method: MethodDescriptor

    @property
    def name(self) -> str:
        """The name of the call, such as "Start"."""
        return self.method.name

    @property
    def grpc_path(self) -> str:
        """The path of the call in gRPC."""
        return f"/{SERVICE.full_name}/{self.method.name}"

    def request(self) -> Any:
        """Return an empty request."""
        return message_factory.GetMessageClass(self.method.input_type)()

    def response(self, data: bytes) -> Message:
        """Parse a response."""
        return message_factory.GetMessageClass(self.method.output_type).FromString(data)


def bindings() -> list[Binding]:
    """Return the paths of all calls, in the order of the contract."""
    rules = ((method, method.GetOptions().Extensions[annotations_pb2.http]) for method in SERVICE.methods)
    return [
        Binding(
            rule.WhichOneof("pattern").upper(),
            getattr(rule, rule.WhichOneof("pattern")),
            rule.body == "*",
            method,
        )
        for method, rule in rules
    ]
