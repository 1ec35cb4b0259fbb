"""Metrics that are read at each scrape: workers, warm kernels, the history, webhooks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from notebook_runner_server.audit import AuditLog
from notebook_runner_server.execution.interface import Backend, WarmCounts
from notebook_runner_server.runs.shares import Quota
from notebook_runner_server.runs.store import Store
from notebook_runner_server.webhooks.service import RESULTS, WebhookService

SIZE_SECONDS = 60.0
"""How long the measured size of the state folder is reused: measuring it visits all files."""


class StateCollector(Collector):
    """Reads the state of the server on the thread of each scrape, never on the event loop.

    Args:
        backend: The backend.
        store: The store.
        audit: The audit log.
        queue_size: The maximum number of queued runs.
        load: Returns how many runs of the history wait for a worker, and how many have one.
        refusals: How many Starts were refused because of each quota.
        webhooks: Delivers webhooks.
    """

    def __init__(
        self,
        backend: Backend,
        store: Store,
        audit: AuditLog,
        queue_size: int,
        load: Callable[[], tuple[int, int]],
        refusals: Mapping[Quota, int],
        webhooks: WebhookService,
    ) -> None:
        self._backend = backend
        self._store = store
        self._audit = audit
        self._queue_size = queue_size
        self._load = load
        self._refusals = refusals
        self._webhooks = webhooks
        self._size = 0
        self._measured = float("-inf")

    @property
    def kernels(self) -> Iterable[str]:
        """The names of the kernelspecs."""
        return self._backend.kernels

    def collect(self) -> Iterator[Metric]:
        """Yield what there is (called by prometheus_client)."""
        yield _gauge("workers", "Maximum number of concurrent runs.", self._backend.capacity)
        yield _gauge("queue_limit", "Maximum number of queued runs.", self._queue_size)
        yield self._unended_runs()
        blocked = bool(self._backend.problem or not self._backend.capacity or self._store.problem)
        yield _gauge("runs_blocked", "1 while no run can start, else 0; Info says why.", blocked)
        yield CounterMetricFamily(
            "notebook_runner_worker_deaths",
            "Workers that died or had to be ended, and were replaced.",
            value=self._backend.worker_deaths,
        )
        yield CounterMetricFamily(
            "notebook_runner_audit_failures",
            "Lines that could not be written to the file of the audit log.",
            value=self._audit.failures,
        )
        yield from self._warm_kernels()
        refused = CounterMetricFamily(
            "notebook_runner_owner_quota_exceeded",
            "Starts that were refused because of a quota of their owner.",
            labels=["quota"],
        )
        for quota in Quota:
            refused.add_metric([quota.value], self._refusals[quota])
        yield refused
        yield from self._webhook_metrics()
        yield _gauge("store_runs", "Runs in the history.", self._store.count)
        # An unreadable folder must not remove the other metrics from the page.
        with contextlib.suppress(OSError):
            text = "Size of the state folder, at most a minute old."
            yield _gauge("store_bytes", text, self._store_bytes())
            text = "Free space on the state folder's file system."
            yield _gauge("store_free_bytes", text, self._store.free_bytes())

    def _unended_runs(self) -> Metric:
        unended = GaugeMetricFamily(
            "notebook_runner_unended_runs",
            "Runs that wait for a worker or have one, at all servers of the history: each reports the same.",
            labels=["state"],
        )
        queued, active = self._load()
        unended.add_metric(["queued"], queued)
        unended.add_metric(["active"], active)
        return unended

    def _warm_kernels(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily(
            "notebook_runner_warm_kernels_ready",
            "Warm kernels that are ready.",
            labels=["kernelspec"],
        )
        wanted = GaugeMetricFamily(
            "notebook_runner_warm_kernels_wanted", "Warm kernels to keep ready.", labels=["kernelspec"]
        )
        kept = self._backend.warm_counts
        for name in self.kernels:
            warm_counts = kept.get(name, WarmCounts(0, 0))
            ready.add_metric([name], warm_counts.ready)
            wanted.add_metric([name], warm_counts.wanted)
        yield ready
        yield wanted

    def _webhook_metrics(self) -> Iterator[Metric]:
        results = CounterMetricFamily(
            "notebook_runner_webhook_attempts",
            "Attempts to deliver webhooks, and webhooks that were dropped, by receiver and result.",
            labels=["receiver", "result"],
        )
        backlog = GaugeMetricFamily(
            "notebook_runner_webhook_backlog",
            "Webhooks that a receiver still has to get, at most 15 s old.",
            labels=["receiver"],
        )
        age = GaugeMetricFamily(
            "notebook_runner_webhook_oldest_seconds",
            "Age of the oldest webhook that a receiver still has to get; 0: there is none.",
            labels=["receiver"],
        )
        for status in self._webhooks.status:
            for result in RESULTS:
                results.add_metric([status.name, result], status.results[result])
            backlog.add_metric([status.name], status.backlog)
            seconds = time.time() - status.oldest / 1e9 if status.oldest else 0.0
            age.add_metric([status.name], max(seconds, 0.0))
        yield results
        yield backlog
        yield age

    def _store_bytes(self) -> int:
        if time.monotonic() - self._measured >= SIZE_SECONDS:
            # First, so that of two concurrent scrapes only one measures.
            self._measured = time.monotonic()
            self._size = self._store.size()
        return self._size


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"notebook_runner_{name}", text, value=value)
