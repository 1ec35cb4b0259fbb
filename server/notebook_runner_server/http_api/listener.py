"""Serves the HTTP application with uvicorn, on the server's own event loop."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import h11
import uvicorn
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol

from notebook_runner_server.api import tls_files
from notebook_runner_server.api.certificates import WatchedTlsFiles
from notebook_runner_server.api.limits import CallerLimits
from notebook_runner_server.api.tls_files import TlsFiles
from notebook_runner_server.http_api import app
from notebook_runner_server.http_api.gate import HEADER_BYTES
from notebook_runner_server.http_api.gateway import Gateway
from notebook_runner_server.listening import ListenError

HEADER_SECONDS = 10.0
"""Maximum time of a TLS handshake, of the headers of a request, and of the rest of a body whose request has
been answered."""

IDLE_SECONDS = 75
"""Time after which a connection without requests is closed. Above the 60 s of many load balancers: one that
keeps a connection longer than the server may send a request while the server closes it."""

STALLED_SECONDS = 120
"""Time after which a connection whose peer accepts no data is closed."""

BACKLOG = 128
"""Maximum number of connections that wait to be accepted."""


class HttpListener:
    """The HTTP listener.

    Args:
        host: The address to listen on.
        port: The port; 0: a free one.
        limits: The limits of callers.
        files: The TLS files; None: no TLS.
        origins: The origins whose pages may call the server.
        any_host: Whether callers may use any name of this server.
        with_page: Whether to serve the page on which people follow and start runs.
    """

    def __init__(
        self,
        host: str,
        port: int,
        limits: CallerLimits,
        files: TlsFiles | None,
        origins: list[str],
        *,
        any_host: bool,
        with_page: bool,
    ) -> None:
        self._address = host, port
        self._limits = limits
        self._tls = None if files is None else _ReloadedContext(files)
        self._origins = origins
        self._any_host = any_host
        self._with_page = with_page
        self._socket: socket.socket | None = None
        self._gateway: Gateway | None = None
        self._server: uvicorn.Server | None = None

    def bind(self) -> int:
        """Bind the address, and return its port.

        Raises:
            ListenError: The address cannot be bound.
        """
        host, port = self._address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = _LimitedSocket(family, self._limits.max_connections)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit these: peers that are gone or do not read are disconnected.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_SECONDS * 1000)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            raise ListenError("--http-listen", shown, error) from None
        found: int = self._socket.getsockname()[1]
        return found

    async def start(self, private_socket: Path) -> None:
        """Start to answer requests.

        Args:
            private_socket: The private socket of the gRPC server.
        """
        assert self._socket is not None  # noqa: S101 - bind() was called
        self._gateway = Gateway(private_socket, self._limits.max_message_bytes)
        config = uvicorn.Config(
            app.create(self._gateway, self._origins, any_host=self._any_host, with_page=self._with_page),
            http=TimedProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            # A caller could say that it is another one.
            proxy_headers=False,
            server_header=False,
            date_header=False,
            backlog=BACKLOG,
            h11_max_incomplete_event_size=HEADER_BYTES,
            timeout_keep_alive=IDLE_SECONDS,
        )
        # Its lines are about single connections; what fails here is logged by `gate`.
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        # In place of its `startup`, which has no time-out for handshakes, and of its main loop, which handles
        # signals and polls.
        created = await asyncio.get_running_loop().create_server(
            partial(TimedProtocol, config=config, server_state=server.server_state, app_state={}),
            sock=self._socket,
            backlog=BACKLOG,
            ssl=None if self._tls is None else self._tls.context,
            ssl_handshake_timeout=None if self._tls is None else HEADER_SECONDS,
        )
        server.servers = [created]
        self._server = server

    async def stop(self, grace: float) -> None:
        """Stop listening, and let open requests end for `grace` seconds."""
        if self._server is not None:
            self._server.config.timeout_graceful_shutdown = round(grace)
            await self._server.shutdown()
        if self._socket is not None:
            self._socket.close()
        if self._gateway is not None:
            await self._gateway.close()


class _ReloadedContext:
    """A TLS context for uvicorn that has the newest valid files with each new connection."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._watched = WatchedTlsFiles(files)
        self.context = self._current = self._made()
        # Called at the start of each handshake, also if the client names no server.
        self.context.sni_callback = self._choose

    def _made(self) -> ssl.SSLContext:
        context = tls_files.server_context(self._watched.contents, self._files)
        context.set_alpn_protocols(["http/1.1"])
        return context

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        if self._watched.refresh():
            self._current = self._made()
        if self._current is not self.context:
            connection.context = self._current


class _LimitedSocket(socket.socket):
    """A listening socket that closes connections above a maximum as it accepts them: before TLS begins.

    Args:
        family: The family of its address.
        max_connections: Maximum number of open connections.
    """

    def __init__(self, family: socket.AddressFamily, max_connections: int) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self._max_connections = max_connections
        self._open = 0

    @override
    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection (called by asyncio).

        Raises:
            ConnectionAbortedError: There are too many; it is closed.
        """
        accepted, address = super().accept()
        if self._open >= self._max_connections:
            accepted.close()
            raise ConnectionAbortedError("too many connections")
        self._open += 1
        return _Connection(accepted, self._release), address

    def _release(self) -> None:
        self._open -= 1


class _Connection(socket.socket):
    """An accepted connection.

    Args:
        accepted: The connection, which this object replaces.
        on_close: Called once, when it is closed or forgotten.
    """

    def __init__(self, accepted: socket.socket, on_close: Any) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, accepted.detach())
        self._closed_once = weakref.finalize(self, on_close)

    @override
    def close(self) -> None:
        """Close the connection (called by asyncio)."""
        super().close()
        self._closed_once()


class TimedProtocol(H11Protocol):
    """uvicorn's protocol with a limit of the time that a peer may take for what it has begun to send."""

    _timer: asyncio.TimerHandle | None = None

    @override
    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request (called by asyncio)."""
        super().connection_made(transport)
        self._watch()

    @override
    def data_received(self, data: bytes) -> None:
        """Handle what has arrived (called by asyncio)."""
        try:
            super().data_received(data)
        except h11.LocalProtocolError:
            # What follows an answered request is no HTTP, which uvicorn would tell in a second response.
            self.transport.abort()
        self._watch()

    @override
    def on_response_complete(self) -> None:
        """Let the rest of the request arrive, so that the peer reads the response (called by uvicorn)."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._watch()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection (called by asyncio)."""
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Begin to wait for the rest of a request, or stop waiting for it.

        The application waits for the body of a request itself, until it has answered.
        """
        is_answered = self.cycle is not None and self.cycle.response_complete
        waits = self.conn.their_state is h11.IDLE or (self.conn.their_state is h11.SEND_BODY and is_answered)
        if not waits or self.transport.is_closing():
            self._forget()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
