"""Bad notebooks, names, paths and numbers: each is refused with its reason and leaves nothing behind."""

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import grpc
import nbformat
import pytest
from google.protobuf.duration_pb2 import Duration

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import duration, history, inline, perform, started, struct
from tests.support.errors import refused
from tests.support.notebooks import code, content, notebook
from tests.support.server import Server

pytestmark = pytest.mark.long

INVALID = grpc.StatusCode.INVALID_ARGUMENT
MISSING = grpc.StatusCode.NOT_FOUND
NOTEBOOK_BYTES = 100_000
DEEP = 10_000
SENTENCE_CHARACTERS = 15


class Bad(NamedTuple):
    """A request, how it is refused, what the message has to mention, and which field is at fault."""

    request: pb.StartRequest
    code: grpc.StatusCode
    reason: str
    says: str = ""
    field: str = ""


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a small limit, and a notebook root in which traps lie."""
    folder = tmp_path_factory.mktemp("traps")
    root, outside = folder / "root", folder / "outside"
    (root / "folder").mkdir(parents=True)
    outside.mkdir()
    for place in (root, root / "folder", outside):
        nbformat.write(notebook("'good'"), place / "good.ipynb")
    (root / "bad.ipynb").write_text("this is no notebook")
    (root / "large.ipynb").write_bytes(content("#" * NOTEBOOK_BYTES))
    (root / "folder.ipynb").mkdir()
    (root / "link.ipynb").symlink_to(outside / "good.ipynb")
    (root / "linked").symlink_to(outside)
    (root / "loop.ipynb").symlink_to(root / "loop.ipynb")
    os.mkfifo(root / "pipe.ipynb")
    options = ["--notebook-root", str(root), "--max-notebook-bytes", str(NOTEBOOK_BYTES)]
    with Server(tmp_path_factory.mktemp("state"), *options) as running:
        assert perform(running.stub, pb.StartRequest(notebook_path="good.ipynb"))
        yield running


def attempt(server: Server, request: pb.StartRequest) -> None:
    """Starts what should not start; if it does, it is ended for the sake of the other tests."""
    with started(server.stub, request):
        pass


def holds(server: Server, bad: Bad) -> None:
    """The request is refused as it should be, no run comes of it, and the next good one works."""
    before = history(server.stub)
    refusal = refused(lambda: attempt(server, bad.request))
    assert refusal.kind == (bad.code, bad.reason), refusal
    assert bad.says in refusal.message
    assert not bad.field or bad.field in [field.partition("[")[0] for field in refusal.fields]
    assert len(refusal.message) >= SENTENCE_CHARACTERS
    assert history(server.stub) == before
    good = perform(server.stub, pb.StartRequest(notebook_path="good.ipynb")).run
    assert good.state == pb.RUN_STATE_SUCCEEDED


def cells(*wrong: Any, **top: Any) -> bytes:
    """A notebook of format 4.5 with these cells, whatever they are."""
    document = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": list(wrong), **top}
    return json.dumps(document).encode()


def nested(opening: bytes, closing: bytes, around: bytes) -> bytes:
    """Brackets within brackets, in the place of `0` in a document."""
    return around.replace(b"0", opening * DEEP + b"1" + closing * DEEP, 1)


CELL: dict[str, Any] = {
    "cell_type": "code",
    "id": "a",
    "metadata": {},
    "source": "",
    "outputs": [],
    "execution_count": None,
}
CONTENTS = {
    "nothing": b"",
    "no JSON": b"this is no notebook",
    "half a notebook": content("1")[:-20],
    "a list": b"[1, 2]",
    "a text": b'"notebook"',
    "null": b"null",
    "a number": b"1",
    "an empty object": b"{}",
    "another object": b'{"a": 1}',
    "two documents": b"{} {}",
    "no UTF-8": b'{"nbformat": 4, "cells": ["\xff\xfe"]}',
    "UTF-16": content("1").decode().encode("utf-16"),
    "zero bytes": bytes(100),
    "format 2": cells(CELL, nbformat=2, nbformat_minor=0),
    "format 99": cells(CELL, nbformat=99),
    "format in words": cells(CELL, nbformat="four"),
    "cells that are no list": cells(cells=5),
    "a cell that is no object": cells(5),
    "a cell without a type": cells({key: value for key, value in CELL.items() if key != "cell_type"}),
    "a cell without source": cells({key: value for key, value in CELL.items() if key != "source"}),
    "a source that is a number": cells({**CELL, "source": 5}),
    "a source with a number in it": cells({**CELL, "source": ["a", 5]}),
    "a kernelspec whose name is a number": cells(CELL, metadata={"kernelspec": {"name": 5}}),
    "metadata that is a list": cells(CELL, metadata=[]),
    "a deep list": nested(b"[", b"]", b"0"),
    "a deep object": nested(b'{"a":', b"}", b"0"),
    "deep metadata": nested(b"[", b"]", b'{"nbformat":4,"nbformat_minor":5,"cells":[],"metadata":{"a":0}}'),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_what_is_no_notebook(strict: Server, name: str) -> None:
    """Bytes that are no valid notebook are refused at once, with what is wrong."""
    request = pb.StartRequest(notebook_content=CONTENTS[name])
    holds(strict, Bad(request, INVALID, "INVALID_NOTEBOOK"))


TAGGED = (code("alpha = 1\nbeta: int = 2", "parameters"), "alpha")
PLACES = {
    "absolute": ("/etc/passwd", "PATH_OUTSIDE_ROOT"),
    "absolute, in no root": ("/good.ipynb", "PATH_OUTSIDE_ROOT"),
    "up": ("../outside/good.ipynb", "PATH_OUTSIDE_ROOT"),
    "down and up": ("folder/../../outside/good.ipynb", "PATH_OUTSIDE_ROOT"),
    "up and in again": ("folder/../good.ipynb", "PATH_OUTSIDE_ROOT"),
    "a zero byte": ("good.ipynb\0", "PATH_OUTSIDE_ROOT"),
    "a link to a file outside": ("link.ipynb", "PATH_OUTSIDE_ROOT"),
    "a link to a folder outside": ("linked/good.ipynb", "PATH_OUTSIDE_ROOT"),
    "missing": ("missing.ipynb", "NOTEBOOK_NOT_FOUND"),
    "missing folder": ("missing/good.ipynb", "NOTEBOOK_NOT_FOUND"),
    "a folder": ("folder.ipynb", "NOTEBOOK_NOT_FOUND"),
    "below a file": ("good.ipynb/good.ipynb", "NOTEBOOK_NOT_FOUND"),
    "the root itself": (".", "NOTEBOOK_NOT_FOUND"),
    "a name too long for a file": ("x" * 300, "NOTEBOOK_NOT_FOUND"),
    "a name too long for a path": ("x" * 5000, "NOTEBOOK_NOT_FOUND"),
    "a long way": ("x/" * 5000, "NOTEBOOK_NOT_FOUND"),
}


@pytest.mark.parametrize("name", PLACES)
def test_paths(strict: Server, name: str) -> None:
    """No path leads out of the notebook root, and one to nothing says so."""
    path, reason = PLACES[name]
    code_of = {"PATH_OUTSIDE_ROOT": INVALID, "NOTEBOOK_NOT_FOUND": MISSING}
    holds(strict, Bad(pb.StartRequest(notebook_path=path), code_of[reason], reason))


def test_a_link_to_itself(strict: Server) -> None:
    """A path that never arrives anywhere is refused as well."""
    refusal = refused(lambda: attempt(strict, pb.StartRequest(notebook_path="loop.ipynb")))
    assert refusal.reason in {"PATH_OUTSIDE_ROOT", "NOTEBOOK_NOT_FOUND"}


def test_a_file_that_is_no_notebook(strict: Server) -> None:
    """A file under the root is judged like the bytes of a request."""
    holds(strict, Bad(pb.StartRequest(notebook_path="bad.ipynb"), INVALID, "INVALID_NOTEBOOK"))


def test_a_pipe_under_the_root(strict: Server) -> None:
    """A named pipe is no notebook, and nobody waits for somebody to write into it."""
    refusal = refused(lambda: attempt(strict, pb.StartRequest(notebook_path="pipe.ipynb")))
    assert refusal.reason in {"INVALID_NOTEBOOK", "NOTEBOOK_NOT_FOUND"}


@pytest.mark.parametrize("request_of", [lambda: inline("#" * NOTEBOOK_BYTES), lambda: _at("large.ipynb")])
def test_too_large(strict: Server, request_of: Callable[[], pb.StartRequest]) -> None:
    """A notebook over the limit is refused, and the message names the limit."""
    exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
    holds(strict, Bad(request_of(), exhausted, "NOTEBOOK_TOO_LARGE", str(NOTEBOOK_BYTES)))


def _at(path: str, **fields: Any) -> pb.StartRequest:
    return pb.StartRequest(notebook_path=path, **fields)


@pytest.mark.parametrize("name", ["no-such-kernel", "../../etc", "python3\0", "x" * 10_000, "Ünï"])
def test_unknown_kernel(strict: Server, name: str) -> None:
    """A kernelspec that is not installed is refused, and the message names those that are."""
    holds(strict, Bad(inline("1", kernel_name=name), INVALID, "UNKNOWN_KERNEL", "python3"))


def test_unknown_kernel_in_the_notebook(strict: Server) -> None:
    """The same where the notebook names the kernelspec."""
    data = content("1", kernelspec={"name": "no-such-kernel", "display_name": "None"})
    request = pb.StartRequest(notebook_content=data)
    holds(strict, Bad(request, INVALID, "UNKNOWN_KERNEL", "no-such-kernel"))


def test_unknown_parameter(strict: Server) -> None:
    """A parameter that the notebook does not have is refused, with the names of those it has."""
    request = inline(*TAGGED, parameters=struct({"alpha": 1, "gamma": 2}))
    holds(strict, Bad(request, INVALID, "UNKNOWN_PARAMETER", "gamma"))
    refusal = refused(lambda: attempt(strict, request))
    assert sorted(name.strip() for name in refusal.metadata["known"].split(",")) == ["alpha", "beta"]


@pytest.mark.parametrize("name", ["no name", "class", "a; import os", "", "a.b", "1a", "a\nb", "a\0b"])
def test_parameter_that_is_no_name(strict: Server, name: str) -> None:
    """A parameter that could not be assigned is refused before it becomes code."""
    holds(
        strict, Bad(inline("1", parameters=struct({name: 1})), INVALID, "INVALID_FIELD", field="parameters")
    )


DURATIONS = {
    "negative": duration(-1),
    "a bit negative": Duration(nanos=-1),
    "absurd": Duration(seconds=10**18),
    "beyond what a duration can be": Duration(seconds=315_576_000_001),
    "too many nanoseconds": Duration(seconds=1, nanos=2_000_000_000),
    "of two signs": Duration(seconds=1, nanos=-1),
}


@pytest.mark.parametrize("field", ["run_timeout", "cell_timeout", "output_timeout", "retention"])
def test_durations(strict: Server, field: str) -> None:
    """A time that is none is refused, and the field is named."""
    requests = [_at("good.ipynb", **{field: value}) for value in DURATIONS.values()]
    refusals = [refused(partial(attempt, strict, request)) for request in requests]
    assert {refusal.kind for refusal in refusals} == {(INVALID, "INVALID_FIELD")}
    assert {name for refusal in refusals for name in refusal.fields} == {field}
    holds(strict, Bad(requests[-1], INVALID, "INVALID_FIELD", field=field))


FIELDS: dict[str, dict[str, Any]] = {
    "memory_limit_bytes": {"memory_limit_bytes": -1},
    "request_id": {"request_id": "x" * 129},
    "labels, many": {"labels": {str(number): "" for number in range(65)}},
    "labels, long key": {"labels": {"x" * 129: ""}},
    "labels, long value": {"labels": {"x": "x" * 129}},
    "environment, no name": {"environment": {"": "x"}},
    "environment, equals sign": {"environment": {"A=B": "x"}},
    "environment, zero byte in the name": {"environment": {"A\0B": "x"}},
    "environment, zero byte": {"environment": {"A": "x\0y"}},
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields(strict: Server, name: str) -> None:
    """A value outside what the contract allows is refused, and the field is named."""
    field = name.partition(",")[0]
    holds(strict, Bad(inline("1", **FIELDS[name]), INVALID, "INVALID_FIELD", field=field))


@pytest.mark.parametrize("uri", ["s3://bucket/x.ipynb", "file:///etc/passwd", "x", "://"])
def test_uri_that_nobody_allowed(strict: Server, uri: str) -> None:
    """Without a scheme that the operator allowed no URI is read, and none is written."""
    holds(strict, Bad(pb.StartRequest(notebook_uri=uri), INVALID, "URI_NOT_ALLOWED", field="notebook_uri"))
    holds(strict, Bad(inline("1", output_uri=uri), INVALID, "URI_NOT_ALLOWED", field="output_uri"))


@pytest.mark.parametrize("exact", [False, True])
def test_too_many_values(strict: Server, exact: bool) -> None:
    """Values are small, and many: each answer about the run would have to convert them all."""
    many = {"alpha": [[1.0] * 5000, {"x": [None] * 5000}]}
    fields = {"parameters_json": json.dumps(many)} if exact else {"parameters": struct(many)}
    holds(strict, Bad(inline(*TAGGED, **fields), INVALID, "INVALID_FIELD", "10000"))
