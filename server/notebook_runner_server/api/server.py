"""The gRPC server: services, limits, keepalive, health and reflection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as pb_grpc
from notebook_runner_server import listening
from notebook_runner_server.api.audit_interceptor import AuditInterceptor
from notebook_runner_server.api.auth_interceptor import AuthInterceptor
from notebook_runner_server.api.certificates import Certificates
from notebook_runner_server.api.error_interceptor import ErrorInterceptor
from notebook_runner_server.api.errors import UNKNOWN_SERVICE, abort_with
from notebook_runner_server.api.limits import CallerLimits
from notebook_runner_server.api.peers import PrivateSocketInterceptor
from notebook_runner_server.api.response_limiter import ResponseLimiter
from notebook_runner_server.api.serialized_responses import SerializedResponses
from notebook_runner_server.api.servicer import Servicer
from notebook_runner_server.api.telemetry_interceptor import CallObserver, TelemetryInterceptor
from notebook_runner_server.audit import AuditLog

SERVICE = pb.DESCRIPTOR.services_by_name["NotebookRunner"].full_name

LIVENESS = "liveness"
"""The health service for liveness: SERVING until the process ends, even while runs finish before a stop. The
empty name and SERVICE report whether runs can start."""

READINESS = "readiness"
"""The health service for readiness: SERVING until the server drains, even while no run can start, so that a
probe does not cut off callers that read or kill runs."""

MIN_READ_BYTES = 64 * 1024 * 1024
"""Minimum of gRPC's limit of a message, which is otherwise twice the size that is accepted: gRPC refuses
larger messages with a status without details. A refused message takes no more memory than an accepted one,
which exists twice, as bytes and parsed."""

MAX_READ_BYTES = 2**31 - 1
"""Maximum of gRPC's settings."""

MIN_PING_SECONDS = 10
"""Minimum interval of a client's pings; gRPC's default, 5 min, disconnects clients that use keepalive."""

KEEPALIVE_SECONDS = 60
"""Time without data after which the server pings a connection, to detect peers that are gone."""

KEEPALIVE_ANSWER_SECONDS = 20
"""Time that a peer has to answer a ping."""

IDLE_SECONDS = 600
"""Time after which a connection without calls is closed; clients reconnect with their next call."""

HANDSHAKE_SECONDS = 10
"""Time that a new connection has for the handshake; gRPC's default is two minutes."""

METADATA_BYTES = 8 * 1024
"""Maximum size of the headers of a call: gRPC refuses some larger calls, and all over twice the size."""

CALLS_PER_CONNECTION = 200
"""Maximum number of open calls per connection; clients queue further ones. It limits how many calls of a
flood on one connection are handled before those of others."""

MAX_WATCHES = 1000
"""Maximum number of open health streams, which need no token."""

_RUNS = ("", SERVICE)
_HEALTH_NAMES = (*_RUNS, READINESS, LIVENESS)

_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"


class ApiServer:
    """The gRPC server with the services of the contract.

    Args:
        servicer: The service NotebookRunner.
        limits: The limits of callers.
        auth: Checks who calls.
        certificates: The TLS certificates; None: no TLS.
        observers: The observers of calls.
        audit_log: The audit log.
        with_reflection: Serve reflection.
        with_channelz: Serve channelz.
    """

    def __init__(
        self,
        servicer: Servicer,
        limits: CallerLimits,
        auth: AuthInterceptor,
        certificates: Certificates | None,
        observers: Iterable[CallObserver],
        audit_log: AuditLog,
        *,
        with_reflection: bool,
        with_channelz: bool,
    ) -> None:
        self._certificates = certificates
        self._limits = limits
        self._audit = AuditInterceptor(audit_log)
        self._interceptors: list[Any] = [
            TelemetryInterceptor(observers),
            *([self._audit] if audit_log.is_on else []),
            auth,
            ErrorInterceptor(limits.max_message_bytes),
            ResponseLimiter(),
            SerializedResponses(),
        ]
        self._servicer = servicer
        self._health = _Health()
        self._private: grpc.aio.Server | None = None
        self._server = grpc.aio.server(interceptors=self._interceptors, options=_options(limits))
        self._add_services(self._server)
        if with_channelz:
            from grpc_channelz.v1 import channelz  # noqa: PLC0415 - rarely on, and takes a MB

            channelz.add_channelz_servicer(self._server)
        if with_reflection:
            _add_reflection(self._server)

    def bind(self, address: str) -> int:
        """Bind the address of `--listen`, and return its port; calls wait until `start`.

        Raises:
            ListenError: The address cannot be bound.
        """
        # gRPC does not say why it cannot bind an address.
        listening.check("--listen", address)
        if self._certificates is None:
            return self._server.add_insecure_port(address)
        return self._server.add_secure_port(address, self._certificates.credentials)

    def bind_private(self, path: Path) -> None:
        """Bind a socket for the HTTP listener, whose calls are answered like all others; `start` starts it.

        It is a server of its own, because one connection has the calls of all callers of the listener.

        Raises:
            RuntimeError: The path cannot be bound.
        """
        interceptors = [PrivateSocketInterceptor(), *self._interceptors]
        self._private = grpc.aio.server(interceptors=interceptors, options=_message_options(self._limits))
        self._add_services(self._private)
        self._private.add_insecure_port(f"unix:{path}")

    def _add_services(self, server: grpc.aio.Server) -> None:
        pb_grpc.add_NotebookRunnerServicer_to_server(self._servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)

    async def start(self) -> None:
        """Start to handle calls."""
        await self._server.start()
        if self._private is not None:
            await self._private.start()

    async def report_serving(self) -> None:
        """Report to health checks that the server is ready."""
        for service in _HEALTH_NAMES:
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def report_draining(self) -> None:
        """Report to health checks that the server takes no more runs; it stays live."""
        await self.report_runs_start(False)
        await self._health.set(READINESS, health_pb2.HealthCheckResponse.NOT_SERVING)

    async def report_runs_start(self, can: bool) -> None:
        """Report to health checks whether runs can start; other calls work in any case."""
        status = health_pb2.HealthCheckResponse.SERVING if can else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in _RUNS:
            await self._health.set(service, status)

    async def stop(self, grace: float) -> None:
        """Stop listening, and cancel calls that have not ended after `grace` seconds."""
        servers = [one for one in (self._server, self._private) if one is not None]
        await asyncio.gather(*(one.stop(grace) for one in servers))
        self._audit.close()


class _Health(health.aio.HealthServicer):  # type: ignore[misc] # it has no types
    """The standard health service, with `List` and a limit of streams."""

    def __init__(self) -> None:
        super().__init__()
        self._watches = 0

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: N802 - grpc's
        """Stream the health of a service."""
        if self._watches >= MAX_WATCHES:
            message = f"Too many open health streams ({MAX_WATCHES}). Try again later, or call Check."
            code = grpc.StatusCode.RESOURCE_EXHAUSTED
            await abort_with(context, code, message, "TOO_MANY_STREAMS", {"limit": str(MAX_WATCHES)})
        self._watches += 1
        try:
            await super().Watch(request, context)
        finally:
            self._watches -= 1

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> Any:  # noqa: N802 - grpc's
        """Return the health of a service."""
        if request.service not in self._server_status:
            names = ", ".join(repr(name) for name in _HEALTH_NAMES)
            message = f"Unknown service {request.service[:100]!r}. Available: {names}."
            code = grpc.StatusCode.NOT_FOUND
            await abort_with(context, code, message, UNKNOWN_SERVICE, {"service": request.service})
        return await super().Check(request, context)

    async def List(  # noqa: N802 - grpc's
        self,
        request: health_pb2.HealthListRequest,  # noqa: ARG002 - grpc's signature
        context: Any,
    ) -> health_pb2.HealthListResponse:
        """Return the health of all services."""
        asked = {name: health_pb2.HealthCheckRequest(service=name) for name in _HEALTH_NAMES}
        statuses = {name: await self.Check(one, context) for name, one in asked.items()}
        return health_pb2.HealthListResponse(statuses=statuses)


def _message_options(limits: CallerLimits) -> list[tuple[str, int]]:
    read = max(2 * limits.max_message_bytes, MIN_READ_BYTES)
    return [
        ("grpc.max_receive_message_length", min(read, MAX_READ_BYTES)),
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * METADATA_BYTES),
    ]


def _options(limits: CallerLimits) -> list[tuple[str, int]]:
    return [
        *_message_options(limits),
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_SECONDS * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_ANSWER_SECONDS * 1000),
        ("grpc.max_connection_idle_ms", IDLE_SECONDS * 1000),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS * 1000),
        ("grpc.max_concurrent_streams", CALLS_PER_CONNECTION),
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
    ]


def _add_reflection(server: grpc.aio.Server) -> None:
    """Serve reflection as v1alpha and as v1, which differ only in their names."""
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
    """Register the descriptor of v1, because grpcio ships v1alpha only."""
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
