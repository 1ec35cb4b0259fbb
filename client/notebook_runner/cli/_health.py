"""The command that checks the server's health, for probes and scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import grpc

from notebook_runner._connection import Connection
from notebook_runner._status import to_error

from ._exit import ExitCode
from ._group import usage_errors
from ._types import duration

if TYPE_CHECKING:
    from ._group import Server

__all__ = ["health"]

TIMEOUT = 5.0
"""Time for the response, in seconds; a probe's own time-out must be longer."""


@click.command()
@click.argument("service", default="")
@click.option(
    "--timeout",
    type=duration,
    default=f"{TIMEOUT:g}s",
    show_default=True,
    metavar="TIME",
    help="Maximum time to wait for the response.",
)
@click.pass_context
def health(ctx: click.Context, /, service: str, timeout: float) -> None:
    """Check the server's health, without a token.

    Without SERVICE, checks whether the server can start runs, now or, if it is busy, later. With `readiness`,
    checks whether it answers calls and is not shutting down; with `liveness`, whether its process answers at
    all.
    The exit code is 0 only if the response is SERVING.
    """
    server: Server = ctx.obj
    with usage_errors():
        connection = Connection.resolve(**server.settings)
        channel = connection.channel()
    with channel:
        status = _check(channel, connection.target, service, timeout)
    click.echo(status)
    ctx.exit(ExitCode.SUCCEEDED if status == "SERVING" else ExitCode.UNAVAILABLE)


def _check(channel: grpc.Channel, target: str, service: str, timeout: float) -> str:
    from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: PLC0415 - no other command needs it

    try:
        request = health_pb2.HealthCheckRequest(service=service)
        response = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout)
    except grpc.RpcError as error:
        raise to_error(error, target, timeout) from error
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))
