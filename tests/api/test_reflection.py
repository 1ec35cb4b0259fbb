"""Reflection describes itself and the service, under the names of both of its versions."""

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.api import server as servers

SERVICES = {
    "notebook_runner.v1.NotebookRunner",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
}


def described(name: str) -> str:
    """A file's messages and services as the pool has them."""
    pool: Any = descriptor_pool.Default()
    proto = descriptor_pb2.FileDescriptorProto()
    pool.FindFileByName(name).CopyToProto(proto)
    # For other languages' generators.
    proto.ClearField("options")
    return str(proto)


def test_v1_differs_from_v1alpha_in_nothing_but_its_name() -> None:
    """The same messages, fields, numbers and types; describing it again changes nothing."""
    for _ in range(2):
        servers._describe_reflection_v1()
    name = reflection_pb2.DESCRIPTOR.name
    alpha, v1 = described(name), described(name.replace("v1alpha", "v1"))
    assert "grpc.reflection.v1alpha" in alpha
    assert v1 == alpha.replace("v1alpha", "v1")


async def _asked(version: str, requests: list[Any]) -> list[Any]:
    """What a real server's reflection answers in one stream."""
    server = grpc.aio.server()
    servers._add_reflection(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: Any = channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )
            return [answer async for answer in call(iter(requests), timeout=60)]
    finally:
        await server.stop(None)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_both_versions_describe_everything(version: str) -> None:
    """All services are listed, and each can be looked up by its name, in either version."""
    request: Any = reflection_pb2.ServerReflectionRequest
    symbols = [*sorted(SERVICES), "notebook_runner.v1.StartRequest"]
    asked = [request(list_services="")] + [request(file_containing_symbol=symbol) for symbol in symbols]
    listed, *described = asyncio.run(_asked(version, asked))
    assert {service.name for service in listed.list_services_response.service} == SERVICES
    for symbol, answer in zip(symbols, described, strict=True):
        files = answer.file_descriptor_response.file_descriptor_proto
        protos = [descriptor_pb2.FileDescriptorProto.FromString(file) for file in files]
        package, _, name = symbol.rpartition(".")
        (own,) = [proto for proto in protos if proto.package == package]
        assert name in {one.name for one in own.service} | {one.name for one in own.message_type}
    assert pb.DESCRIPTOR.package == "notebook_runner.v1"
