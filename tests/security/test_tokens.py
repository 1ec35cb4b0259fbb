"""Who may call what with which token: refusals and what they tell, in unary and in streaming calls."""

import itertools
import secrets
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, inline
from tests.support.errors import refused
from tests.support.secure import BAD, MISSING, TOO_LITTLE, Guarded, Metadata, bearer
from tests.support.server import SERVICE, Server

Call = Callable[[Server, Metadata], Any]


def unary(method: str, request: Any = b"") -> Call:
    """A call that sends bytes and wants one answer."""

    def call(server: Server, metadata: Metadata) -> Any:
        made: Any = server.channel.unary_unary(method)
        return made(request, metadata=metadata, timeout=SECONDS)

    return call


def reflection(version: str) -> Call:
    """A question to reflection."""

    def call(server: Server, metadata: Metadata) -> Any:
        made: Any = server.channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        return list(made(iter([question]), metadata=metadata, timeout=SECONDS))

    return call


def progress(server: Server, metadata: Metadata) -> Any:
    """All events of the newest run."""
    return list(server.stub.Progress(pb.ProgressRequest(), metadata=metadata, timeout=SECONDS))


def channelz(server: Server, metadata: Metadata) -> Any:
    """A question to channelz."""
    stub = channelz_pb2_grpc.ChannelzStub(server.channel)
    return stub.GetServers(channelz_pb2.GetServersRequest(), metadata=metadata, timeout=SECONDS)


READING: dict[str, Call] = {
    "Progress": progress,
    "Output": unary(SERVICE + "Output"),
    "List": unary(SERVICE + "List"),
    "Get": unary(SERVICE + "Get"),
    "reflection v1": reflection("v1"),
    "reflection v1alpha": reflection("v1alpha"),
}
RUNNING: dict[str, Call] = {
    "Start": unary(SERVICE + "Start", inline("1").SerializeToString()),
    "Kill": unary(SERVICE + "Kill"),
    "Delete": unary(SERVICE + "Delete"),
    "channelz": channelz,
    "an unknown method": unary(SERVICE + "Sudo"),
    "an unknown service": unary("/no.such.Service/Call"),
}
EVERYTHING = READING | RUNNING


def wrong(token: str) -> dict[str, Metadata]:
    """Everything that comes close to a valid credential and is none."""
    swapped = token.swapcase()
    values = {
        "truncated": f"Bearer {token[:-1]}",
        "longer": f"Bearer {token}a",
        "other case": f"Bearer {swapped}",
        "two": f"Bearer {token} {token}",
        "quoted": f'Bearer "{token}"',
        "other scheme": f"Basic {token}",
        "no scheme": token,
        "no space": f"Bearer{token}",
        "no token": "Bearer ",
        "scheme alone": "Bearer",
        "empty": "",
        "another": f"Bearer {secrets.token_urlsafe(32)}",
        "its sum": "Bearer sha256:" + "0" * 64,
    }
    single: dict[str, Metadata] = {name: (("authorization", value),) for name, value in values.items()}
    valid = ("authorization", f"Bearer {token}")
    return single | {"twice": (valid, valid), "a wrong one as well": (valid, ("authorization", "Bearer no"))}


WRONG = list(wrong("x" * 40))


@pytest.mark.parametrize("name", EVERYTHING)
def test_without_a_token(guarded: Guarded, name: str) -> None:
    """Every call but health is refused without a token, a method that does not exist in the same way."""
    assert refused(lambda: EVERYTHING[name](guarded.server, ())).kind == MISSING
    binary: Metadata = (("authorization-bin", f"Bearer {guarded.run}".encode()),)
    assert refused(lambda: EVERYTHING[name](guarded.server, binary)).kind == MISSING


@pytest.mark.parametrize("how", WRONG)
@pytest.mark.parametrize("name", ["List", "Progress", "Start", "an unknown method", "reflection v1"])
def test_a_wrong_token(guarded: Guarded, name: str, how: str) -> None:
    """What is not exactly a valid credential is none, in unary and in streaming calls."""
    refusal = refused(lambda: EVERYTHING[name](guarded.server, wrong(guarded.run)[how]))
    assert refusal.kind == BAD
    assert guarded.run not in refusal.message


@pytest.mark.parametrize("name", RUNNING)
def test_a_token_that_may_only_read(guarded: Guarded, name: str) -> None:
    """The scope read starts nothing, ends nothing, and learns of nothing else."""
    refusal = refused(lambda: RUNNING[name](guarded.server, bearer(guarded.read)))
    assert refusal.kind == TOO_LITTLE
    assert refusal.message == (
        "This call needs a token with the scope run (the caller's only scope is read)."
    )


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER ", "Bearer    "])
def test_a_valid_token(guarded: Guarded, scheme: str) -> None:
    """A token opens what its scope names; the scheme is written in any case, with one space or several."""
    server, metadata = guarded.server, (("authorization", scheme + guarded.run),)
    started = server.stub.Start(inline("1"), metadata=metadata, timeout=SECONDS).run
    reading: Metadata = (("authorization", scheme + guarded.read),)
    assert progress(server, reading)[-1].run_changed.run_id == started.run_id
    for call in READING.values():
        assert call(server, reading) is not None
        assert call(server, metadata) is not None
    assert channelz(server, metadata).server
    with pytest.raises(grpc.RpcError) as unknown:
        RUNNING["an unknown method"](server, metadata)
    assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_health_is_open(guarded: Guarded) -> None:
    """A probe needs no token, and a wrong one does it no harm."""
    stub = health_pb2_grpc.HealthStub(guarded.server.channel)
    request = health_pb2.HealthCheckRequest()
    for metadata in [(), *wrong(guarded.run).values()]:
        assert stub.Check(request, metadata=metadata, timeout=SECONDS).status == 1
    watch = stub.Watch(request, timeout=SECONDS)
    assert next(iter(watch)).status == 1
    watch.cancel()


@pytest.mark.parametrize("method", ["Check", "Watch", "List"])
def test_health_tells_nothing_else(guarded: Guarded, method: str) -> None:
    """Whatever anybody sends to health, no text of the server's own errors is answered or fills the log."""
    call: Any = guarded.server.channel.unary_stream(f"/grpc.health.v1.Health/{method}")
    refusal = refused(lambda: list(call(b"\xff\xff\xff", timeout=SECONDS)))
    assert refusal.kind == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    stub = health_pb2_grpc.HealthStub(guarded.server.channel)
    statuses = stub.List(health_pb2.HealthListRequest(), timeout=SECONDS).statuses
    assert {name: one.status for name, one in statuses.items()} == {
        "": 1,
        SERVICE.strip("/"): 1,
        "liveness": 1,
        "readiness": 1,
    }
    assert "Traceback" not in guarded.server.tail()


def test_what_the_log_tells(guarded: Guarded) -> None:
    """At start the log names the tokens' owners and what is on, never a token or its sum."""
    (access,) = [entry for entry in guarded.server.log if entry["event"] == "access_configured"]
    assert access["tokens"] == ["ci"]
    assert (access["tls"], access["mtls"], access["reflection"]) == (False, False, True)
    text = guarded.server.tail()
    sums = [line.rpartition(":")[2] for line in guarded.file.read_text().splitlines()]
    assert not [secret for secret in [guarded.run, guarded.read, *sums] if secret in text]


def test_reflection_can_be_off(make_server: Callable[..., Server]) -> None:
    """Without reflection nobody is told what there is."""
    server = make_server("--reflection", "off")
    for version in ("v1", "v1alpha"):
        with pytest.raises(grpc.RpcError) as caught:
            reflection(version)(server, ())
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_refusal_waits_for_no_request(guarded: Guarded) -> None:
    """Who is refused is told so at once, whatever is still to be sent: nothing of it is kept."""
    call: Any = guarded.server.channel.stream_unary(SERVICE + "Start")
    assert refused(lambda: call(itertools.repeat(b"x" * 65536), timeout=SECONDS)).kind == MISSING
