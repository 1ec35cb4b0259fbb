"""The addresses of callers, also of those whose calls the HTTP listener hands on.

The listener calls the server over a private socket, where the connection's address says nothing. So it hands
on the address of its own caller in a header, with a key that only this process knows. Nobody else can set the
header: not over TCP, where it is ignored, and not over the socket, where calls without the key are refused.
"""

from __future__ import annotations

import hmac
import secrets
from typing import Any

import grpc

from notebook_runner_server.api.errors import BAD_TOKEN, abort_with
from notebook_runner_server.api.interceptor import Continuation, Handler, Interceptor

HEADER = "x-notebook-runner-peer"
"""The header: the key, a space, and the address as gRPC writes it."""

_KEY = secrets.token_urlsafe(32)
_SOCKET = "unix:"


def header(address: str) -> tuple[str, str]:
    """Return the header that hands on the address of a caller."""
    return HEADER, f"{_KEY} {address}"


def peer_of(context: Any) -> str:
    """Return the address of the caller of a call, as gRPC writes it."""
    peer: str = context.peer()
    return _handed_on(context.invocation_metadata()) or peer if peer.startswith(_SOCKET) else peer


class PrivateSocketInterceptor(Interceptor):
    """Refuses the calls of everyone but the HTTP listener; the outermost interceptor of the private socket.

    Notebooks run as the server's user, so they can connect to the socket.
    """

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Check a call (called by grpc)."""
        if _handed_on(handler_call_details.invocation_metadata):
            return await continuation(handler_call_details)
        return grpc.stream_stream_rpc_method_handler(_refuse)


async def _refuse(_requests: Any, context: Any) -> None:
    message = "This socket is for the server's own HTTP listener. Call the address of --listen."
    await abort_with(context, grpc.StatusCode.UNAUTHENTICATED, message, BAD_TOKEN, {})


def _handed_on(metadata: Any) -> str:
    """Return the address that the HTTP listener hands on; empty: the call is not the listener's."""
    values = [value for name, value in metadata or () if name == HEADER]
    key, _, address = str(values[0]).partition(" ") if len(values) == 1 else ("", "", "")
    return address if hmac.compare_digest(key.encode(), _KEY.encode()) else ""
