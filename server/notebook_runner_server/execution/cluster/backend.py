"""The backend on a Dask cluster: Dask leases a slot, and the worker process there executes the run."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Mapping

from notebook_runner_server.confinement import confine
from notebook_runner_server.execution.cluster.messages import HostOptions
from notebook_runner_server.execution.cluster.run import ClusterRun
from notebook_runner_server.execution.cluster.scheduler import SchedulerConnection
from notebook_runner_server.execution.interface import Job, WarmCounts

SCHEMES = {"dask": "tcp", "dask+tls": "tls"}
"""Dask's schemes for those of `--executor`."""


class ClusterBackend:
    """Executes runs on the workers of a Dask cluster that have the resource `notebook`.

    Args:
        executor: The scheduler, as dask://HOST:PORT or dask+tls://HOST:PORT.
        options: The options of each worker.
        most: Maximum of concurrent runs; zero: as many as the workers take.

    Attributes:
        worker_deaths: Number of workers that died with a run; Dask replaces idle ones.
    """

    survives_restart = True

    def __init__(self, executor: str, options: HostOptions, most: int = 0) -> None:
        scheme, _, where = executor.partition("://")
        self._address = f"{SCHEMES[scheme]}://{where}"
        self._options = options
        self._most = most
        self._scheduler: SchedulerConnection | None = None
        self._runs: set[ClusterRun] = set()
        self.worker_deaths = 0
        self._waking: set[asyncio.Task[None]] = set()

    @property
    def _cluster(self) -> SchedulerConnection:
        # Created on the event loop, which a backend is older than.
        if self._scheduler is None:
            self._scheduler = SchedulerConnection(self._address, self._options)
        return self._scheduler

    @property
    def capacity(self) -> int:
        """Number of runs that the connected workers can execute concurrently for this server."""
        slots = self._cluster.workers.slots
        return min(slots, self._most) if self._most else slots

    @property
    def problem(self) -> str:
        """Empty: runs wait for a cluster without workers."""
        return ""

    @property
    def kernels(self) -> Mapping[str, str]:
        """The kernelspecs of the newest worker with their languages."""
        return self._cluster.workers.kernels

    @property
    def warm_counts(self) -> Mapping[str, WarmCounts]:
        """The warm kernels of the workers, by kernelspec, as of their last heartbeats."""
        return self._cluster.workers.warm_counts

    async def start(self) -> None:
        """Begin to connect; runs wait for a cluster that is not reachable yet."""
        # Processes that an export leaves are handed to this process, which kills them.
        confine.become_subreaper()
        await self._cluster.start()
        # Dask's modules stay: each garbage collection of them would block the event loop for some 50 ms.
        gc.collect()
        gc.freeze()

    async def wait_for_worker(self) -> None:
        """Wait until a worker has a free slot."""
        await self._cluster.until(lambda: len(self._runs) < self.capacity)

    def submit(self, job: Job) -> ClusterRun:
        """Execute a job on a worker that Dask chooses."""
        return self._follow(job.run_id, job, 0)

    def find(self, run_id: str, mark: int) -> ClusterRun:
        """Follow a run of an earlier server; a run that no worker has ends as INTERRUPTED."""
        return self._follow(run_id, None, mark)

    def _follow(self, run_id: str, job: Job | None, mark: int) -> ClusterRun:
        run = ClusterRun(self._cluster, run_id, job, mark, self._options.timeout, self._release)
        self._runs.add(run)
        return run

    def _release(self, run: ClusterRun) -> None:
        self._runs.discard(run)
        self.worker_deaths += run.worker_died
        task = asyncio.ensure_future(self._cluster.changed())
        self._waking.add(task)
        task.add_done_callback(self._waking.discard)

    def set_deadline(self, moment: float) -> None:
        """Do nothing: the leases of runs are those of `cluster.lease`."""

    def leave(self) -> None:
        """Let the runs continue without this server."""
        for run in self._runs:
            run.leave()

    async def close(self) -> None:
        """Disconnect; the next server finds the runs that continue."""
        await self._cluster.close()
