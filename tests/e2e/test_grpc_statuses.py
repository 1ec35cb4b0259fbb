"""Statuses that gRPC would make by itself carry the contract's details, wherever the server can give them."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from notebook_runner import Client, InvalidRequest
from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.api.limits import SMALL_MESSAGE
from tests.support.calls import SECONDS, history, inline, perform
from tests.support.errors import refused
from tests.support.server import SERVICE, Server

pytestmark = pytest.mark.long

LIMIT = 1024 * 1024
OVERHEAD = 1024 * 1024
FILES = 1024 * 1024
ACCEPTED = LIMIT + FILES + OVERHEAD
TOO_LARGE = grpc.StatusCode.RESOURCE_EXHAUSTED
UNARY = ("Start", "Output", "Kill", "List", "Get", "Delete", "Info")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that takes notebooks of 1 MiB."""
    options = ["--max-notebook-bytes", str(LIMIT), "--max-input-files-bytes", str(FILES), "--queue", "3"]
    with Server(tmp_path_factory.mktemp("state"), *options) as running:
        yield running


def padding(size: int) -> bytes:
    """A message of so many bytes that every call can parse: one unknown field."""
    head = b"\xfa\x7f"  # field 2047, length-delimited
    length, rest = b"", size - 2 - 5
    for shift in range(5):
        length += bytes([(rest >> (7 * shift)) & 0x7F | (0x80 if shift < 4 else 0)])
    return head + length + b"x" * rest


@pytest.mark.parametrize("size", [ACCEPTED + 1, 2 * ACCEPTED, 2 * ACCEPTED + 1, 60 * 1024 * 1024])
def test_a_message_that_is_too_large(small: Server, size: int) -> None:
    """Each call refuses it by the contract's reason and names both sizes, far beyond what is accepted."""
    for method in UNARY:
        refusal = refused(partial(small.raw, method, padding(size)))
        start = "NOTEBOOK_TOO_LARGE", ACCEPTED
        reason, limit = start if method == "Start" else ("REQUEST_TOO_LARGE", SMALL_MESSAGE)
        assert refusal.kind == (TOO_LARGE, reason)
        assert refusal.metadata == {"bytes": str(size), "limit_bytes": str(limit)}
    refusal = refused(lambda: list(small.raw_stream("Progress", padding(size))))
    assert refusal.kind == (TOO_LARGE, "REQUEST_TOO_LARGE")


def test_a_message_of_just_the_accepted_size(small: Server) -> None:
    """The limit itself is accepted, and a notebook that is too large within it is refused as before."""
    assert pb.ListResponse.FromString(small.raw("List", padding(SMALL_MESSAGE)))
    further = refused(partial(small.raw, "List", padding(SMALL_MESSAGE + 1)))
    assert further.kind == (TOO_LARGE, "REQUEST_TOO_LARGE")
    start = pb.StartRequest(notebook_content=b" " * (LIMIT + 1)).SerializeToString()
    assert refused(partial(small.raw, "Start", start)).kind == (TOO_LARGE, "NOTEBOOK_TOO_LARGE")
    assert perform(small.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED


@pytest.mark.parametrize("size", [2 * LIMIT, 40 * LIMIT, 70 * LIMIT])
def test_the_client_says_what_is_too_large(small: Server, size: int) -> None:
    """A notebook beyond every limit is an InvalidRequest, also where gRPC itself refuses it."""
    before = history(small.stub)
    with Client(small.target) as client, pytest.raises(InvalidRequest, match="max-notebook-bytes") as caught:
        client.start(b" " * size)
    assert caught.value.code is TOO_LARGE
    assert history(small.stub) == before


@pytest.mark.parametrize("path", ["NoSuchMethod", "start", ""])
def test_a_method_that_does_not_exist(server: Server, path: str) -> None:
    """Unary or as a stream, it is UNIMPLEMENTED with a reason and the methods that there are."""
    unary: Callable[..., Any] = server.channel.unary_unary(SERVICE + path)
    stream: Callable[..., Any] = server.channel.stream_stream(SERVICE + path)
    for call in (lambda: unary(b"x", timeout=SECONDS), lambda: list(stream(iter([b"x"]), timeout=SECONDS))):
        refusal = refused(call)
        assert refusal.kind == (grpc.StatusCode.UNIMPLEMENTED, "UNKNOWN_METHOD")
        assert "Progress" in refusal.message


def test_a_service_that_does_not_exist(server: Server) -> None:
    """The same for another service, and for a later version of this one."""
    for path in ("/other.Service/Call", "/notebook_runner.v2.NotebookRunner/Start"):
        call: Callable[..., Any] = server.channel.unary_unary(path)
        assert refused(partial(call, b"", timeout=SECONDS)).reason == "UNKNOWN_METHOD"


def test_health_of_a_service_that_does_not_exist(server: Server) -> None:
    """It is NOT_FOUND, as the health protocol says, with the names that can be asked for."""
    health = health_pb2_grpc.HealthStub(server.channel)
    request = health_pb2.HealthCheckRequest(service="no.such.Service")
    refusal = refused(lambda: health.Check(request, timeout=SECONDS))
    assert refusal.kind == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_SERVICE")
    assert "liveness" in refusal.message


@pytest.mark.parametrize("method", ["Info", "Start", "Kill", "Output", "List", "Get", "Delete", "Progress"])
def test_a_call_without_its_message(server: Server, method: str) -> None:
    """It is refused at once: it would wait for ever, and hold a place."""
    kind = server.channel.stream_stream if method == "Progress" else server.channel.stream_unary
    call: Any = kind(f"{SERVICE}{method}")
    refusal = refused(lambda: list(call(iter(()))) if method == "Progress" else call(iter(())))
    assert refusal.kind == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert "ended without its request" in refusal.message
