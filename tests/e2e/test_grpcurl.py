"""The service from outside: a real grpcurl, reflection and health, with nothing but the address."""

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, inline, reach, started
from tests.support.gate import Gate
from tests.support.notebooks import content, parsed, printed
from tests.support.progress import checked
from tests.support.server import Server

Answer = TypeVar("Answer", bound=Message)
PROGRAM = str(Path(sys.executable).with_name("grpcurl"))
NAME = "notebook_runner.v1.NotebookRunner"
REFLECTION = "grpc.reflection.{}.ServerReflection"


def grpcurl(server: Server, *arguments: str, data: Any = None) -> str:
    """Runs the program against the server; answers what it printed."""
    sent = [] if data is None else ["-d", json.dumps(data)]
    command = [PROGRAM, "-plaintext", *sent, server.target, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    text: str = done.stdout
    return text


def call(server: Server, method: str, kind: type[Answer], **data: Any) -> list[Answer]:
    """Calls one method of the service; answers its messages, read from the printed JSON."""
    text = grpcurl(server, f"{NAME}/{method}", data=data)
    return [ParseDict(each, kind()) for each in documents(text)]


def documents(text: str) -> list[Any]:
    """All JSON documents of a text, one after the other."""
    decoder, found, place = json.JSONDecoder(), [], 0
    while text[place:].strip():
        place += len(text[place:]) - len(text[place:].lstrip())
        document, place = decoder.raw_decode(text, place)
        found.append(document)
    return found


def test_list_and_describe(server: Server) -> None:
    """Reflection tells the services and the methods, with no file of the contract at hand."""
    services = grpcurl(server, "list").split()
    methods = grpcurl(server, "list", NAME).split()
    assert {NAME, "grpc.health.v1.Health", REFLECTION.format("v1alpha")} <= set(services)
    assert methods == [
        f"{NAME}.{each}"
        for each in ("Delete", "Get", "Info", "Kill", "List", "Output", "Progress", "Start", "Watch")
    ]
    assert "rpc Progress" in grpcurl(server, "describe", NAME)
    assert "google.protobuf.Struct parameters" in grpcurl(
        server, "describe", "notebook_runner.v1.StartRequest"
    )


def test_start_follow_and_read(server: Server) -> None:
    """A run is started with parameters, followed to its end, and its notebook read."""
    run = call(server, "Start", pb.StartResponse, parameters={"who": "grpcurl"})[0].run
    events = call(server, "Progress", pb.ProgressResponse, run_id=run.run_id)
    told = list(checked(events, pb.ProgressRequest(run_id=run.run_id)))
    assert told[-1].run_changed.state == pb.RUN_STATE_SUCCEEDED
    page = call(server, "Output", pb.OutputResponse, run_id=run.run_id)[0]
    assert printed(parsed(page.content), 2) == "hello grpcurl\n"
    assert page.total_bytes == page.next_offset


def test_start_inline_and_list(server: Server) -> None:
    """A notebook is sent as base64, and its run is found by its label."""
    data = base64.b64encode(content("1 / 0")).decode()
    started_run = {"notebook_content": data, "labels": {"from": "grpcurl"}}
    run = call(server, "Start", pb.StartResponse, **started_run)[0].run
    ended = call(server, "Progress", pb.ProgressResponse)[-1].run_changed
    assert ended.failure.exception_name == "ZeroDivisionError"
    asked = {"labels": {"from": "grpcurl"}, "states": ["RUN_STATE_FAILED"]}
    assert call(server, "List", pb.ListResponse, **asked)[0].runs[0].run_id == run.run_id
    report = call(server, "Output", pb.OutputResponse, format="error")[0]
    assert b"ZeroDivisionError" in report.content


def test_kill(server: Server, gate: Gate) -> None:
    """A run is killed by its id."""
    with started(server.stub, inline(gate.source)) as run:
        reach(server.stub, run.run_id, "cell_started")
        answer = call(server, "Kill", pb.KillResponse, run_id=run.run_id, grace_period="0s")[0]
    assert answer.run.state == pb.RUN_STATE_KILLED
    assert answer.processes_ended >= 1


def test_refusals_can_be_read(server: Server) -> None:
    """An error is shown with its status and a message that helps."""
    command = [PROGRAM, "-plaintext", "-d", '{"run_id": "nobody"}', server.target, f"{NAME}/Output"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode != 0
    assert "NotFound" in done.stderr
    assert "nobody" in done.stderr


@pytest.mark.parametrize("service", ["", NAME, "liveness"])
def test_health(server: Server, service: str) -> None:
    """Health answers for the server and for the service, once and as a stream."""
    answer = json.loads(grpcurl(server, "grpc.health.v1.Health/Check", data={"service": service}))
    assert answer == {"status": "SERVING"}
    stub = health_pb2_grpc.HealthStub(server.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


def test_health_of_an_unknown_service(server: Server) -> None:
    """Nobody vouches for a service that is not there."""
    stub = health_pb2_grpc.HealthStub(server.channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=SECONDS)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_in_both_versions(server: Server, version: str) -> None:
    """Old and new tools find the service: both versions of reflection are served, and say so."""
    method = server.channel.stream_stream(
        f"/{REFLECTION.format(version)}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    answer = next(method(iter([asked]), timeout=SECONDS))
    names = {service.name for service in answer.list_services_response.service}
    assert {NAME, "grpc.health.v1.Health", REFLECTION.format(version)} <= names


def test_info(server: Server) -> None:
    """What the server is and has can be read with nothing but its address."""
    info = call(server, "Info", pb.InfoResponse)[0]
    assert {"html", "pdf", "error"} <= set(info.formats)
    assert [kernel.name for kernel in info.kernels if kernel.is_default] == ["python3"]
