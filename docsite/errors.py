"""Generate the page of errors from the server's tree of reasons and the client's tree of exceptions."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from typing_extensions import override

from docsite.tables import table
from notebook_runner import RpcFailed
from notebook_runner import errors as client_errors
from notebook_runner._status import to_error
from notebook_runner.cli._exit import code_of_error
from notebook_runner_server.api import errors as api
from notebook_runner_server.errors import RunnerError


def markdown() -> str:
    """Return the page's generated part."""
    parts = ["## By status"]
    for status, kinds in _by_status():
        rows = (_row(kind, status) for kind in kinds)
        parts += [
            f"### {status.name}",
            table(["reason", "meaning", "in Python", "exit code"], rows),
        ]
    parts += ["## In Python", _tree()]
    return "\n\n".join(parts)


def _by_status() -> Iterator[tuple[grpc.StatusCode, list[type[RunnerError]]]]:
    found: dict[grpc.StatusCode, list[type[RunnerError]]] = {}
    for kind in _leaves(RunnerError):
        status = next(status for branch, status in api._CODES.items() if issubclass(kind, branch))  # noqa: SLF001 - the one place that maps them
        found.setdefault(status, []).append(kind)
    yield from sorted(found.items(), key=lambda item: item[0].value[0])


def _leaves(kind: type[RunnerError]) -> Iterator[type[RunnerError]]:
    if hasattr(kind, "reason"):
        yield kind
    for below in kind.__subclasses__():
        yield from _leaves(below)


def _row(kind: type[RunnerError], status: grpc.StatusCode) -> tuple[str, str, str, str]:
    raised = to_error(_Answer(status, kind.reason))
    name = type(raised).__name__
    meaning = (inspect.getdoc(kind) or "").partition("\n\n")[0]
    return (
        # The anchor is the reason in lower case.
        f"`{kind.reason}`{{ #{kind.reason.lower()} }}",
        meaning,
        f"[`{name}`](python.md#notebook_runner.{name})",
        str(int(code_of_error(raised))),
    )


class _Answer(grpc.RpcError):
    """A failed call with a reason, as gRPC raises it in the client."""

    def __init__(self, status: grpc.StatusCode, reason: str) -> None:
        super().__init__()
        self._status = status
        self._reason = reason

    @override
    def code(self) -> grpc.StatusCode:
        return self._status

    @override
    def details(self) -> str:
        return ""

    @override
    def trailing_metadata(self) -> Any:
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.ErrorInfo(reason=self._reason, domain=api.DOMAIN))
        status = status_pb2.Status(code=self._status.value[0], details=[detail])
        return ((api.DETAILS_KEY, status.SerializeToString()),)


def _tree() -> str:
    """Return the tree in the docstring of the client's errors, with the text around it."""
    text = inspect.getdoc(client_errors) or ""
    intro, _, rest = text.partition("::\n\n")
    drawing, _, after = rest.partition("\n\n")
    if RpcFailed.__name__ not in drawing:
        raise ValueError("the docstring of notebook_runner.errors contains no tree of exceptions")
    return f"{intro.strip()}\n\n```text\n{inspect.cleandoc(drawing)}\n```\n\n{after.strip()}"
