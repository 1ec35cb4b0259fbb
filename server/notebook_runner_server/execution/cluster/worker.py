"""What is installed in each Dask worker: the worker processes with warm kernels that a server has itself.

A server has each worker install it; this package has to be there, in the same version.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any

from distributed import Worker, WorkerPlugin, get_worker
from distributed.comm.core import Comm

from notebook_runner_server.confinement.policy import SandboxConfig
from notebook_runner_server.execution.cluster import messages
from notebook_runner_server.execution.cluster.lease import Lease, WorkerRunFolder
from notebook_runner_server.execution.cluster.messages import Channel, Description, HostOptions
from notebook_runner_server.execution.interface import Cause
from notebook_runner_server.execution.pool import ProcessPoolBackend
from notebook_runner_server.execution.worker_protocol import decode, encode

RESOURCE = "notebook"
"""The resource of a Dask worker that says how many runs it may have at once."""

PLUGIN = "notebook-runner"

CLOSE_SECONDS = 5.0
"""How long a worker that is closed waits until the servers know how its runs have ended."""


def _private_folder(local_directory: Path) -> Path:
    """Make a folder of this program's own in a Dask worker's, and return it without links."""
    folder = local_directory.resolve() / PLUGIN
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


class NotebookHost(WorkerPlugin):
    """Makes a Dask worker one that executes notebooks.

    Args:
        options: What the server tells each.
    """

    name = PLUGIN

    def __init__(self, options: HostOptions) -> None:
        self._options = options

    async def setup(self, worker: Worker) -> None:
        """Start the worker processes (called by Dask)."""
        # A nanny's worker is a daemon, which may not start processes; the nanny does not need it to be one.
        multiprocessing.current_process().daemon = False
        self._worker = worker
        self._slots = min(int(worker.state.total_resources.get(RESOURCE, 0)), worker.state.nthreads)
        self._leases: dict[str, Lease] = {}
        self._admitted = asyncio.Lock()
        self._folder = folder = _private_folder(Path(worker.local_directory))
        self._pool = ProcessPoolBackend(
            self._slots,
            folder / "scratch",
            limit_address_space=self._options.limit_address_space,
            interrupt_grace=self._options.interrupt_grace,
            warm=self._options.warm,
            sandbox=self._sandbox(worker),
        )
        self._problem = ""
        try:
            await self._pool.start()
        except Exception as error:  # noqa: BLE001 - whatever it is, the server says it
            self._problem, self._slots = str(error) or type(error).__name__, 0
        worker.handlers[messages.ATTACH] = self.attach
        worker.metrics[messages.WARM_KERNELS] = self._warm_counts

    def _sandbox(self, worker: Worker) -> SandboxConfig:
        # Who has the cluster's key may do anything on the cluster.
        names = ("tls_client_key", "tls_scheduler_key", "tls_worker_key")
        keys: list[str | None] = [getattr(worker.security, name, None) for name in names]
        hidden = (Path(key).absolute() for key in keys if key)
        return replace(self._options.sandbox, hidden=(*self._options.sandbox.hidden, *hidden))

    async def teardown(self, worker: Worker) -> None:
        """End all runs and the worker processes (called by Dask)."""
        worker.handlers.pop(messages.ATTACH, None)
        worker.metrics.pop(messages.WARM_KERNELS, None)
        for lease in self._leases.values():
            lease.stop(Cause.WORKER_DIED, 0.0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await asyncio.gather(*(lease.over.wait() for lease in self._leases.values()))
        await self._pool.close()

    async def lease(self, run_id: str, nonce: str, topic: str) -> None:
        """Lease a slot: tell the server where it is, and keep it until it is not needed any more."""
        name = secrets.token_hex(8)
        # Of another lease nothing may be found.
        folder = WorkerRunFolder(
            self._folder / "runs" / name, self._options.max_files_bytes, self._options.sandbox.root
        )
        lease = self._leases[name] = Lease(run_id, self._pool, self._admitted, self._options.timeout, folder)
        try:
            where = {"nonce": nonce, "address": self._worker.contact_address, "lease": name}
            self._worker.log_event(topic, where)
            await lease.over.wait()
        finally:
            del self._leases[name]
            await asyncio.to_thread(folder.remove)

    def is_outdated(self, options: HostOptions) -> bool:
        """Tell whether a server has other settings, and no slot is leased to an earlier one."""
        return options.shared() != self._options.shared() and not self._leases

    @property
    def _runs(self) -> dict[str, str]:
        return {lease.run_id: name for name, lease in self._leases.items() if lease.has_job}

    def describe(self) -> Description:
        """Say what this worker has."""
        return Description(self._options, self._slots, self._pool.kernels, self._runs, self._problem)

    def _warm_counts(self, _: Worker) -> dict[str, tuple[int, int]]:
        """Say which kernels are kept (called by Dask, which tells the scheduler twice a second)."""
        return {name: (one.ready, one.wanted) for name, one in self._pool.warm_counts.items()}

    async def attach(self, comm: Comm, lease: str, after: int) -> None:
        """Give a server its run (called by Dask); the connection is the run's alone from here on."""
        channel = Channel(comm)
        found = self._leases.get(lease)
        try:
            if found is None or found.is_expired:
                await channel.send(messages.UnknownLease())
                await channel.until_closed(CLOSE_SECONDS)
            else:
                await found.serve(channel, after)
        except OSError:
            pass  # The server is gone, or has another connection.
        finally:
            channel.close()


async def lease(run_id: str, nonce: str, topic: str) -> None:
    """Lease a slot for a run; a task of Dask's.

    Args:
        run_id: The run.
        nonce: Names this try to get a slot.
        topic: Where to tell the server.
    """
    worker: Any = get_worker()
    await worker.plugins[PLUGIN].lease(run_id, nonce, topic)


# Servers that come at once do not replace what the other is about to start.
_installing = asyncio.Lock()


async def install(version: str, options: bytes, dask_worker: Worker) -> bytes:
    """Make a Dask worker one that executes notebooks, if it is none, and say what it has.

    Dask executes it there; it is not a plugin of the scheduler's, for a worker that lacks this package would
    neither start nor end with one.

    Args:
        version: The server's.
        options: What it tells each worker, encoded.
        dask_worker: The worker (given by Dask).

    Returns:
        Its `Description`, encoded.

    Raises:
        RuntimeError: It has another version.
    """
    if version != messages.VERSION:
        raise RuntimeError(
            f"version {messages.VERSION} differs from the server's {version}; install the same version"
        )
    decoded = decode(options)
    assert isinstance(decoded, HostOptions)  # noqa: S101 - what a server of this version sends
    async with _installing:
        host = dask_worker.plugins.get(PLUGIN)
        if not isinstance(host, NotebookHost) or host.is_outdated(decoded):
            host = NotebookHost(decoded)
            await dask_worker.plugin_add(host, PLUGIN, catch_errors=False)
        return encode(host.describe())
