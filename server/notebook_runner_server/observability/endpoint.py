"""The port that Prometheus scrapes: prometheus_client's own handler, on threads of its own."""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import threading
from http.server import ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import MetricsHandler

MOST_SCRAPES = 8
"""Connections at once; more are closed as they come."""

PATIENCE_SECONDS = 5.0
"""How long a connection may take to ask, and to take its answer."""

_logger = logging.getLogger(__name__)


class Endpoint:
    """Answers scrapes.

    Args:
        host: The address to listen on.
        port: The port; 0: a free one.
        registry: What a scrape reads.

    Attributes:
        port: The port.

    Raises:
        OSError: The address cannot be had.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        bounded = type("Bounded", (_Bounded,), {"address_family": family})
        self._server: _Bounded = bounded((host, port), MetricsHandler.factory(registry))
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering; blocks shortly."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Bounded(ThreadingHTTPServer):
    """Answers so many connections at once and no more, each with a deadline."""

    daemon_threads = True
    block_on_close = False
    # Two servers on one port would take scrapes from each other.
    allow_reuse_port = False
    # A crowd shall be turned away, and not wait in the system's queue.
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        self._places = threading.BoundedSemaphore(MOST_SCRAPES)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection on a thread, if there is room (called by socketserver)."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a connection (called by socketserver)."""
        deadline = threading.Timer(PATIENCE_SECONDS, _cut_off, [request])
        deadline.daemon = True
        deadline.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            deadline.cancel()
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's
        """Say what went wrong, but not of a peer that went away (called by socketserver)."""
        error = sys.exception()
        if not isinstance(error, OSError):
            _logger.error("scrape_failed", exc_info=error)


def _cut_off(request: socket.socket) -> None:
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)
