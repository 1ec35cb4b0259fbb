"""Serve the same MiB for every Output over bare gRPC, and print the port."""

import asyncio
from typing import Any

import grpc

from notebook_runner.v1 import notebook_runner_pb2 as pb

PAGE = bytes(1024 * 1024)


async def output(request: pb.OutputRequest, context: Any) -> pb.OutputResponse:  # noqa: ARG001 - grpc's signature
    """Return a page."""
    return pb.OutputResponse(content=PAGE)


async def main() -> None:
    """Serve until the process is ended."""
    server = grpc.aio.server()
    method = grpc.unary_unary_rpc_method_handler(
        output,
        request_deserializer=pb.OutputRequest.FromString,
        response_serializer=pb.OutputResponse.SerializeToString,
    )
    name = "notebook_runner.v1.NotebookRunner"
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(name, {"Output": method})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


asyncio.run(main())
