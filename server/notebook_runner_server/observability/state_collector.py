"""Metrics that are read at each scrape: workers, warm kernels, the history."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from notebook_runner_server.audit import AuditLog
from notebook_runner_server.execution.interface import Backend, WarmCounts
from notebook_runner_server.runs.shares import Quota
from notebook_runner_server.runs.store import Store

SIZE_SECONDS = 60.0
"""How long the measured size of the state folder is reused: measuring it visits all files."""


class StateCollector(Collector):
    """Reads the state of the server on the thread of each scrape, never on the event loop.

    Args:
        backend: The backend.
        store: The store.
        audit: The audit log.
        queue_size: The maximum number of queued runs.
        refusals: How many Starts were refused because of each quota.
    """

    def __init__(
        self,
        backend: Backend,
        store: Store,
        audit: AuditLog,
        queue_size: int,
        refusals: Mapping[Quota, int],
    ) -> None:
        self._backend = backend
        self._store = store
        self._audit = audit
        self._queue_size = queue_size
        self._refusals = refusals
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
        yield _gauge("store_runs", "Runs in the history.", self._store.count)
        # An unreadable folder must not remove the other metrics from the page.
        with contextlib.suppress(OSError):
            text = "Size of the state folder, at most a minute old."
            yield _gauge("store_bytes", text, self._store_bytes())
            text = "Free space on the state folder's file system."
            yield _gauge("store_free_bytes", text, self._store.free_bytes())

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

    def _store_bytes(self) -> int:
        if time.monotonic() - self._measured >= SIZE_SECONDS:
            # First, so that of two concurrent scrapes only one measures.
            self._measured = time.monotonic()
            self._size = self._store.size()
        return self._size


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"notebook_runner_{name}", text, value=value)
