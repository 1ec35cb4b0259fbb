"""The HTTP endpoint for Prometheus: prometheus_client's handler, on separate threads."""

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

MAX_SCRAPES = 8
"""Maximum number of connections; further ones are closed."""

SCRAPE_SECONDS = 5.0
"""Maximum duration of a connection."""

_logger = logging.getLogger(__name__)


class Endpoint:
    """Serves the metrics of a registry.

    Args:
        host: The address to listen on.
        port: The port; 0: a free one.
        registry: The metrics.

    Attributes:
        port: The port.

    Raises:
        OSError: The address cannot be bound.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        bounded = type("Bounded", (_Bounded,), {"address_family": family})
        self._server: _Bounded = bounded((host, port), MetricsHandler.factory(registry))
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving; blocks briefly."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Bounded(ThreadingHTTPServer):
    """Limits the number and the duration of connections."""

    daemon_threads = True
    block_on_close = False
    # Otherwise two servers on one port would take scrapes from each other.
    allow_reuse_port = False
    # Excess connections must be closed instead of waiting in the system's queue.
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        self._slots = threading.BoundedSemaphore(MAX_SCRAPES)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection on a thread, or close it if there are too many (called by socketserver)."""
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handle a connection (called by socketserver)."""
        deadline = threading.Timer(SCRAPE_SECONDS, _cut_off, [request])
        deadline.daemon = True
        deadline.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            deadline.cancel()
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's
        """Log an error, except for peers that disconnected (called by socketserver)."""
        error = sys.exception()
        if not isinstance(error, OSError):
            _logger.error("scrape_failed", exc_info=error)


def _cut_off(request: socket.socket) -> None:
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)
