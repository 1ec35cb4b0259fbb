"""The gRPC server: services, limits, keepalive, health and reflection."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as pb_grpc
from notebook_runner_server.api.auth_interceptor import AuthInterceptor
from notebook_runner_server.api.certificates import Certificates
from notebook_runner_server.api.error_interceptor import ErrorInterceptor
from notebook_runner_server.api.errors import UNKNOWN_SERVICE, abort_with
from notebook_runner_server.api.response_limiter import ResponseLimiter
from notebook_runner_server.api.servicer import Servicer
from notebook_runner_server.api.telemetry_interceptor import CallObserver, TelemetryInterceptor
from notebook_runner_server.api.tokens import Tokens

SERVICE = pb.DESCRIPTOR.services_by_name["NotebookRunner"].full_name

LIVENESS = "liveness"
"""What health calls the process itself: it serves until the end, also while runs finish before a stop. The
empty name and SERVICE tell whether runs can start."""

READINESS = "readiness"
"""What health calls the calls themselves: they are answered until the server drains, also while no run can
start, so that a probe that asks for it does not cut off those who read a run or end one."""

MESSAGE_OVERHEAD = 1024 * 1024
"""What a Start may have beside the notebook, in bytes."""

LEAST_READ_BYTES = 64 * 1024 * 1024
"""gRPC reads messages up to twice what is accepted, and up to this size at least: it refuses larger ones by
a status without details. One that is refused takes no more memory than one that is accepted, for that is
there twice: as bytes and parsed."""

LARGEST_READ_BYTES = 2**31 - 1
"""No setting of gRPC can be larger."""

MIN_PING_SECONDS = 10
"""How often a client may ping: grpc's own default of 5 min cuts off clients that watch their connection."""

KEEPALIVE_SECONDS = 60
"""How long a connection may be silent before it has to answer a ping: a peer that is gone frees its place."""

KEEPALIVE_ANSWER_SECONDS = 20
"""How long it may take to answer."""

IDLE_SECONDS = 600
"""How long a connection without a call stays open; clients open it again with their next call."""

HANDSHAKE_SECONDS = 10
"""How long a new connection may take until it speaks HTTP/2; gRPC's own default is two minutes."""

METADATA_BYTES = 8 * 1024
"""The headers that a call may carry; from here on gRPC refuses some, and all over twice as many."""

CALLS_PER_CONNECTION = 200
"""Calls that one connection may have open at once; a client holds more back until one ends. A flood on one
connection gets no more than so many places before everybody else's calls."""

MOST_WATCHES = 1000
"""Streams of health that may be open at once: anybody may open them."""

_RUNS = ("", SERVICE)
_HEALTH_NAMES = (*_RUNS, READINESS, LIVENESS)

_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"


@dataclass(frozen=True)
class CallerLimits:
    """What callers may take of the server.

    Attributes:
        max_notebook_bytes: The largest notebook that a Start may carry.
        max_connections: Connections that may be open at once; more are closed as they come.
    """

    max_notebook_bytes: int
    max_connections: int

    @property
    def max_message_bytes(self) -> int:
        """The largest message that is accepted."""
        return self.max_notebook_bytes + MESSAGE_OVERHEAD


class ApiServer:
    """Listens, and answers with the services of the contract.

    Args:
        servicer: The service NotebookRunner.
        bounds: What callers may take.
        tokens: The tokens that are valid; None: callers need none.
        certificates: TLS; None: without.
        observers: Who watches the calls.
        with_reflection: Serve reflection as well.
        with_channelz: Serve channelz as well.
    """

    def __init__(
        self,
        servicer: Servicer,
        bounds: CallerLimits,
        tokens: Tokens | None,
        certificates: Certificates | None,
        observers: Iterable[CallObserver],
        *,
        with_reflection: bool,
        with_channelz: bool,
    ) -> None:
        self._certificates = certificates
        self._server = grpc.aio.server(
            interceptors=[
                TelemetryInterceptor(observers),
                AuthInterceptor(tokens),
                ErrorInterceptor(bounds.max_message_bytes),
                ResponseLimiter(),
            ],
            options=_options(bounds),
        )
        self._health = _Health()
        pb_grpc.add_NotebookRunnerServicer_to_server(servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if with_channelz:
            channelz.add_channelz_servicer(self._server)
        if with_reflection:
            _add_reflection(self._server)

    def bind(self, address: str) -> int:
        """Take an address, and return its port; calls wait until `start`.

        Raises:
            RuntimeError: The address cannot be had.
        """
        if self._certificates is None:
            return self._server.add_insecure_port(address)
        return self._server.add_secure_port(address, self._certificates.credentials)

    async def start(self) -> None:
        """Begin to answer calls."""
        await self._server.start()

    async def say_serving(self) -> None:
        """Tell health checks that calls are served."""
        for service in _HEALTH_NAMES:
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def say_draining(self) -> None:
        """Tell health checks that no more runs are taken; the process itself is still well."""
        await self.say_runs_start(False)
        await self._health.set(READINESS, health_pb2.HealthCheckResponse.NOT_SERVING)

    async def say_runs_start(self, can: bool) -> None:
        """Tell health checks whether runs can start; other calls are answered in any case."""
        status = health_pb2.HealthCheckResponse.SERVING if can else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in _RUNS:
            await self._health.set(service, status)

    async def stop(self, grace: float) -> None:
        """Stop listening; calls that have not ended after `grace` seconds are cut off."""
        await self._server.stop(grace)


class _Health(health.aio.HealthServicer):  # type: ignore[misc] # it has no types
    """The standard service, with the method that grpc's own leaves out and a bound on its streams."""

    def __init__(self) -> None:
        super().__init__()
        self._watches = 0

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: N802 - grpc's
        """Tell the health of a service, and each change of it."""
        if self._watches >= MOST_WATCHES:
            message = f"{MOST_WATCHES} streams of health are open, as many as this server allows."
            code = grpc.StatusCode.RESOURCE_EXHAUSTED
            await abort_with(context, code, message, "TOO_MANY_STREAMS", {"limit": str(MOST_WATCHES)})
        self._watches += 1
        try:
            await super().Watch(request, context)
        finally:
            self._watches -= 1

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> Any:  # noqa: N802 - grpc's
        """Answer the health of a service."""
        if request.service not in self._server_status:
            message = f"Health has no service of this name. It has: {', '.join(_HEALTH_NAMES[1:])}, and ''."
            code = grpc.StatusCode.NOT_FOUND
            await abort_with(context, code, message, UNKNOWN_SERVICE, {"service": request.service})
        return await super().Check(request, context)

    async def List(  # noqa: N802 - grpc's
        self,
        request: health_pb2.HealthListRequest,  # noqa: ARG002 - grpc's signature
        context: Any,
    ) -> health_pb2.HealthListResponse:
        """Tell the health of all services."""
        asked = {name: health_pb2.HealthCheckRequest(service=name) for name in _HEALTH_NAMES}
        statuses = {name: await self.Check(one, context) for name, one in asked.items()}
        return health_pb2.HealthListResponse(statuses=statuses)


def _options(bounds: CallerLimits) -> list[tuple[str, int]]:
    read = max(2 * bounds.max_message_bytes, LEAST_READ_BYTES)
    return [
        ("grpc.max_receive_message_length", min(read, LARGEST_READ_BYTES)),
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_SECONDS * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_ANSWER_SECONDS * 1000),
        ("grpc.max_connection_idle_ms", IDLE_SECONDS * 1000),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS * 1000),
        ("grpc.max_concurrent_streams", CALLS_PER_CONNECTION),
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * METADATA_BYTES),
        ("grpc.max_allowed_incoming_connections", bounds.max_connections),
    ]


def _add_reflection(server: grpc.aio.Server) -> None:
    """Serve reflection as v1alpha and as v1, which differ in nothing but the name."""
    names = [SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME, _REFLECTION_V1]
    servicer = reflection.aio.ReflectionServicer(names)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    _describe_reflection_v1()
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handlers = grpc.method_handlers_generic_handler(_REFLECTION_V1, {"ServerReflectionInfo": handler})
    server.add_generic_rpc_handlers((handlers,))


def _describe_reflection_v1() -> None:
    """Make v1 known to reflection itself: grpcio ships v1alpha alone."""
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name = file.name.replace("v1alpha", "v1")
    file.package = file.package.replace("v1alpha", "v1")
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace("v1alpha", "v1")
    for method in file.service[0].method:
        method.input_type = method.input_type.replace("v1alpha", "v1")
        method.output_type = method.output_type.replace("v1alpha", "v1")
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
