"""Bad calls to Progress, Output, Kill and List, and bytes that are no message at all."""

from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, artefact, follow, history, inline, perform, start
from tests.support.errors import refused
from tests.support.server import Server

pytestmark = pytest.mark.long

UNARY: dict[str, type[Message]] = {
    "Start": pb.StartRequest,
    "Output": pb.OutputRequest,
    "Kill": pb.KillRequest,
    "List": pb.ListRequest,
    "Get": pb.GetRequest,
    "Delete": pb.DeleteRequest,
}
INVALID_FIELD = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
RUN_NOT_FOUND = (grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND")
IDS = ["no-such-run", "../../etc/passwd", "a\0b", "x" * 10_000, "Ünï", " ", "%s", "'; DROP TABLE runs; --"]
GARBAGE = [b"\xff\xff\xff\xff", b"\x0a\x02\xff\xfe", b"\x0a\x7f", b"\x00", b"\x0a" * 1000, b"{}"]


def is_unreadable(kind: type[Message], data: bytes) -> bool:
    """Whether the bytes are no message of this kind; one's text may be another's unknown field."""
    try:
        kind.FromString(data)
    except DecodeError:
        return True
    return False


def progress(server: Server, **fields: Any) -> list[pb.ProgressResponse]:
    """All of a stream."""
    request = pb.ProgressRequest(**fields)
    return list(server.stub.Progress(request, timeout=SECONDS))


def output(server: Server, **fields: Any) -> pb.OutputResponse:
    """One page."""
    return server.stub.Output(pb.OutputRequest(**fields), timeout=SECONDS)


def kill(server: Server, **fields: Any) -> pb.KillResponse:
    """Ends a run."""
    return server.stub.Kill(pb.KillRequest(**fields), timeout=SECONDS)


def delete(server: Server, **fields: Any) -> pb.DeleteResponse:
    """Deletes a run."""
    return server.stub.Delete(pb.DeleteRequest(**fields), timeout=SECONDS)


@pytest.mark.parametrize("call", [progress, output, kill, delete])
@pytest.mark.parametrize("run_id", IDS)
def test_a_run_that_does_not_exist(server: Server, call: Callable[..., object], run_id: str) -> None:
    """An id that no run has is NOT_FOUND, whatever it looks like."""
    refusal = refused(lambda: call(server, run_id=run_id))
    assert refusal.kind == RUN_NOT_FOUND
    assert len(refusal.message) < 1000


def test_no_run_at_all(make_server: Callable[..., Server]) -> None:
    """On a new server there is no newest run, and no notebook to run by default."""
    server = make_server()
    for call in (progress, output, kill):
        assert refused(partial(call, server)).kind == RUN_NOT_FOUND
    assert list(server.stub.List(pb.ListRequest(), timeout=SECONDS).runs) == []
    refusal = refused(lambda: start(server.stub, pb.StartRequest()))
    assert refusal.kind == (grpc.StatusCode.NOT_FOUND, "NOTEBOOK_NOT_FOUND")
    assert history(server.stub) == []


@pytest.mark.parametrize("beyond", [1, 1000, 2**62])
def test_an_offset_past_the_end(server: Server, beyond: int) -> None:
    """Whoever reads behind the last byte is told where it is."""
    run = perform(server.stub, inline("1")).run
    size = len(artefact(server.stub, run.run_id))
    refusal = refused(lambda: output(server, run_id=run.run_id, offset=size + beyond))
    assert refusal.kind == (grpc.StatusCode.OUT_OF_RANGE, "OFFSET_PAST_END")
    assert str(size) in refusal.message


@pytest.mark.parametrize("name", ["pdf?", "no-such-format", "../html", "HTML ", "a\0b", "x" * 10_000])
def test_an_unknown_format(server: Server, name: str) -> None:
    """A format that is not served is refused, and the message names those that are."""
    run = perform(server.stub, inline("1")).run
    refusal = refused(lambda: output(server, run_id=run.run_id, format=name))
    assert refusal.kind == (grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_FORMAT")
    assert "html" in refusal.message
    assert artefact(server.stub, run.run_id, format="html")


FIELDS: dict[str, tuple[Callable[..., object], dict[str, Any]]] = {
    "after_sequence": (progress, {"after_sequence": -1}),
    "offset": (output, {"offset": -1}),
    "max_bytes": (output, {"max_bytes": -1}),
    "as_of_sequence": (output, {"as_of_sequence": -1}),
    "grace_period": (kill, {"grace_period": Duration(seconds=-1)}),
    "grace_period, absurd": (kill, {"grace_period": Duration(seconds=10**18)}),
    "grace_period, nanoseconds": (kill, {"grace_period": Duration(nanos=-(10**9))}),
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields(server: Server, name: str) -> None:
    """A number that can be none is refused, and the field is named."""
    call, fields = FIELDS[name]
    run = perform(server.stub, inline("1")).run
    refusal = refused(lambda: call(server, run_id=run.run_id, **fields))
    assert refusal.kind == INVALID_FIELD
    assert refusal.fields == [name.partition(",")[0]]
    assert list(follow(server.stub, run.run_id))[-1].run_changed == run


def test_a_negative_page_size(server: Server) -> None:
    """List refuses a size below zero."""
    refusal = refused(lambda: server.stub.List(pb.ListRequest(page_size=-1), timeout=SECONDS))
    assert refusal.kind == INVALID_FIELD
    assert refusal.fields == ["page_size"]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_bytes_that_are_no_message(server: Server, garbage: bytes) -> None:
    """A request that cannot be read is the caller's mistake, in every call."""
    before = history(server.stub)
    for method, kind in UNARY.items():
        if is_unreadable(kind, garbage):
            assert refused(partial(server.raw, method, garbage)).kind == INVALID_FIELD
    assert refused(lambda: list(server.raw_stream("Progress", garbage))).kind == INVALID_FIELD
    assert history(server.stub) == before
    assert perform(server.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED
