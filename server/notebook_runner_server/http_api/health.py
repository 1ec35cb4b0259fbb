"""Health checks as HTTP statuses, for probes and load balancers that do not use gRPC."""

from __future__ import annotations

from grpc_health.v1 import health_pb2
from starlette.requests import Request
from starlette.responses import Response

from notebook_runner_server.api.server import LIVENESS, READINESS
from notebook_runner_server.http_api.gateway import Gateway
from notebook_runner_server.http_api.transcoding import to_json

HEALTH_SERVICES = {"/livez": LIVENESS, "/readyz": READINESS, "/healthz": ""}
"""The health service that each path reports."""


async def health(gateway: Gateway, request: Request) -> Response:
    """Answer a request for the health of the server: 200 if it is SERVING, or else 503.

    Raises:
        grpc.aio.AioRpcError: The gRPC server did not answer.
    """
    answer = await gateway.health(HEALTH_SERVICES[request.url.path], request)
    is_serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    return Response(to_json(answer), 200 if is_serving else 503, media_type="application/json")
