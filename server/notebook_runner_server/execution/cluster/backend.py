"""The backend on a Dask cluster: Dask says where a run may go, and the run host there executes it."""

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
"""How Dask has what an operator writes."""


class ClusterBackend:
    """Executes runs on the workers of a Dask cluster that have the resource `notebook`.

    Args:
        executor: The scheduler, as dask://HOST:PORT or dask+tls://HOST:PORT.
        options: What each worker is told.
        most: Runs at once; zero: as many as the workers take.

    Attributes:
        worker_deaths: How many workers have died that had a run; an idle one is Dask's own matter.
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
        # It belongs to the event loop, which a backend is made before.
        if self._scheduler is None:
            self._scheduler = SchedulerConnection(self._address, self._options)
        return self._scheduler

    @property
    def capacity(self) -> int:
        """How many runs the workers that are there now execute at once, for this server."""
        slots = self._cluster.workers.slots
        return min(slots, self._most) if self._most else slots

    @property
    def problem(self) -> str:
        """Nothing: a cluster without workers is waited for."""
        return ""

    @property
    def kernels(self) -> Mapping[str, str]:
        """The kernelspecs that the newest worker has, by name, and the language of each."""
        return self._cluster.workers.kernels

    @property
    def warm_counts(self) -> Mapping[str, WarmCounts]:
        """The kernels that the workers keep, by kernelspec, as their last heartbeats told."""
        return self._cluster.workers.warm_counts

    async def start(self) -> None:
        """Begin to connect; a cluster that is not there yet is waited for by the runs."""
        # What an export leaves is handed to this process, which ends it.
        confine.become_subreaper()
        await self._cluster.start()
        # Dask's modules stay: each look for garbage among them would hold the event loop for some 50 ms.
        gc.collect()
        gc.freeze()

    async def wait_for_worker(self) -> None:
        """Wait until a worker has a free slot."""
        await self._cluster.until(lambda: len(self._runs) < self.capacity)

    def submit(self, job: Job) -> ClusterRun:
        """Execute a job on a worker of Dask's choice."""
        return self._follow(job.run_id, job, 0)

    def find(self, run_id: str, mark: int) -> ClusterRun:
        """Follow a run that an earlier server has begun; one that is nowhere ends as INTERRUPTED."""
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

    def leave(self) -> None:
        """Let the runs go on without this server."""
        for run in self._runs:
            run.leave()

    async def close(self) -> None:
        """Let go of the cluster; runs that go on are found again by the next server."""
        await self._cluster.close()
