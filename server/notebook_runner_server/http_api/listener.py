"""Serves the HTTP application with uvicorn, on the server's own event loop."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from notebook_runner_server.api import tls_files
from notebook_runner_server.api.certificates import WatchedTlsFiles
from notebook_runner_server.api.limits import CallerLimits
from notebook_runner_server.api.tls_files import TlsFiles
from notebook_runner_server.http_api import app
from notebook_runner_server.http_api.gateway import Gateway

HEADER_BYTES = 16 * 1024
"""Maximum size of the headers of a request."""

HEADER_SECONDS = 10.0
"""Maximum time that the headers of a request may take to arrive."""

IDLE_SECONDS = 60
"""Time after which a connection without requests is closed."""

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
            OSError: The address cannot be bound.
        """
        host, port = self._address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit these: peers that are gone or do not read are disconnected.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_SECONDS * 1000)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise OSError(error.errno, f"--http-listen {host}:{port}: {error.strerror}") from None
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
            http=_limited(self._limits.max_connections),
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
        config.ssl = None if self._tls is None else self._tls.context
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        # Without its main loop, which handles signals and polls.
        await server.startup(sockets=[self._socket])
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


def _limited(max_connections: int) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol with a limit of connections, and of the time that headers may take."""

    class LimitedProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            if len(self.connections) >= max_connections:
                self.transport = transport
                transport.abort()
                return
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """Begin to wait for the rest of a request's headers, or stop waiting for them."""
            if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
                self._forget()
            elif self._timer is None:
                self._timer = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

        def _forget(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return LimitedProtocol
