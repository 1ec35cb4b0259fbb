"""Creates the observers of runs and calls that the settings ask for; the others are not imported."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import structlog

from notebook_runner_server.api.telemetry_interceptor import CallObserver
from notebook_runner_server.audit import AuditLog
from notebook_runner_server.execution.interface import Backend
from notebook_runner_server.listening import ListenError
from notebook_runner_server.observability.canonical_log import CanonicalLog
from notebook_runner_server.runs.observer import Observer
from notebook_runner_server.runs.shares import Quota
from notebook_runner_server.runs.store import Store
from notebook_runner_server.webhooks.service import WebhookService

if TYPE_CHECKING:
    from notebook_runner_server.config import Settings
    from notebook_runner_server.observability.endpoint import Endpoint
    from notebook_runner_server.observability.metrics import Metrics
    from notebook_runner_server.observability.traces import Traces

_log = structlog.get_logger(__name__)


class Telemetry:
    """The observers of a server.

    Args:
        settings: The settings.

    Attributes:
        observers: The observers of runs.
        call_observers: The observers of calls.

    Raises:
        ValueError: Tracing is enabled, but the extra `tracing` is not installed.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        lines = CanonicalLog()
        self.observers: list[Observer] = [lines]
        self.call_observers: list[CallObserver] = [lines]
        self._metrics: Metrics | None = None
        self._endpoint: Endpoint | None = None
        self._traces: Traces | None = None
        if settings.metrics_listen:
            from notebook_runner_server.observability.metrics import Metrics  # noqa: PLC0415 - only if wanted

            self._metrics = Metrics()
            self.observers.append(self._metrics)
            self.call_observers.append(self._metrics)
        if _traces_wanted(settings.trace_endpoint, os.environ):
            self._traces = _traces(settings.trace_endpoint)
            self.observers.append(self._traces)

    def bind(self) -> None:
        """Bind the address of the metrics.

        Raises:
            ListenError: The address cannot be bound.
        """
        if self._metrics is None:
            return
        from notebook_runner_server.observability.endpoint import Endpoint  # noqa: PLC0415 - only if wanted

        host, port = self._settings.metrics_address
        try:
            self._endpoint = Endpoint(host, port, self._metrics.registry)
        except OSError as error:
            raise ListenError("--metrics-listen", self._settings.metrics_listen, error) from error
        shown = self._settings.metrics_listen.rpartition(":")[0]
        _log.info("metrics_started", address=f"{shown}:{self._endpoint.port}", path="/metrics")

    def watch(
        self,
        backend: Backend,
        store: Store,
        load: Callable[[], tuple[int, int]],
        refusals: Mapping[Quota, int],
        audit: AuditLog,
        webhooks: WebhookService,
    ) -> None:
        """Add the metrics of what the server has, once it is open, and of refused Starts."""
        if self._metrics is not None:
            from notebook_runner_server.observability.state_collector import StateCollector  # noqa: PLC0415 - only if wanted

            collector = StateCollector(
                *(backend, store, audit, self._settings.queue, load, refusals, webhooks)
            )
            self._metrics.watch(collector)

    async def close(self) -> None:
        """Send the last spans, and close the port; runs and calls have ended."""
        if self._traces is not None:
            await self._traces.close()
        if self._endpoint is not None:
            await asyncio.to_thread(self._endpoint.close)


def _traces_wanted(endpoint: str, environment: Mapping[str, str]) -> bool:
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if endpoint:
        return True
    named = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    is_named = any(environment.get(name) for name in named)
    return is_named and environment.get("OTEL_TRACES_EXPORTER", "otlp") == "otlp"


def _traces(endpoint: str) -> Traces:
    try:
        from notebook_runner_server.observability.traces import Traces  # noqa: PLC0415 - only if wanted
    except ImportError as error:
        raise ValueError(
            "Traces need OpenTelemetry. Install it with: pip install 'notebook-runner[server,tracing]', "
            "or disable traces with OTEL_SDK_DISABLED=true."
        ) from error
    return Traces(endpoint)
