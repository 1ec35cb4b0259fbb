"""The plugin of Dask workers: a process pool with warm kernels, as a server has itself.

A server installs it on each worker, which must have this package in the same version.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import secrets
from dataclasses import replace
from pathlib import Path

from distributed import Reschedule, Worker, WorkerPlugin, get_worker
from distributed.comm.core import Comm
from distributed.core import Status

from notebook_runner_server.confinement.policy import SandboxConfig
from notebook_runner_server.execution.cluster import messages
from notebook_runner_server.execution.cluster.lease import Lease, WorkerRunFolder
from notebook_runner_server.execution.cluster.messages import Channel, Description, HostOptions
from notebook_runner_server.execution.interface import Cause
from notebook_runner_server.execution.pool import ProcessPoolBackend
from notebook_runner_server.execution.worker_protocol import decode, encode

RESOURCE = "notebook"
"""The resource of a Dask worker: number of concurrent runs."""

PLUGIN = "notebook-runner"

CLOSE_SECONDS = 5.0
"""Seconds that a worker that is closed waits until the servers have the ends of its runs."""


def _private_folder(local_directory: Path) -> Path:
    """Create a folder of this plugin in a Dask worker's folder, and return its path without links."""
    folder = local_directory.resolve() / PLUGIN
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


class NotebookHost(WorkerPlugin):
    """Makes a Dask worker execute notebooks.

    Args:
        options: The options of the worker.
    """

    name = PLUGIN

    def __init__(self, options: HostOptions) -> None:
        self._options = options

    async def setup(self, worker: Worker) -> None:
        """Start the worker processes (called by Dask)."""
        # A nanny's worker is a daemon, which may not start processes.
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
        self.problem = ""
        try:
            await self._pool.start()
        except Exception as error:  # noqa: BLE001 - the server logs it
            self.problem, self._slots = str(error) or type(error).__name__, 0
        worker.handlers[messages.ATTACH] = self.attach
        worker.metrics[messages.WARM_KERNELS] = self._warm_counts

    def _sandbox(self, worker: Worker) -> SandboxConfig:
        # The cluster's key allows everything on the cluster.
        names = ("tls_client_key", "tls_scheduler_key", "tls_worker_key")
        keys: list[str | None] = [getattr(worker.security, name, None) for name in names]
        hidden = (Path(key).absolute() for key in keys if key)
        return replace(self._options.sandbox, hidden=(*self._options.sandbox.hidden, *hidden))

    async def teardown(self, worker: Worker) -> None:
        """End all runs and worker processes (called by Dask)."""
        worker.handlers.pop(messages.ATTACH, None)
        worker.metrics.pop(messages.WARM_KERNELS, None)
        for lease in self._leases.values():
            lease.stop(Cause.WORKER_DIED, 0.0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await asyncio.gather(*(lease.over.wait() for lease in self._leases.values()))
        await self._pool.close()

    def reserve(self, run_id: str) -> str:
        """Reserve a slot, and return the name of its lease."""
        name = secrets.token_hex(8)
        # A folder that no other lease has used.
        folder = WorkerRunFolder(
            self._folder / "runs" / name, self._options.max_files_bytes, self._options.sandbox.root
        )
        self._leases[name] = Lease(run_id, self._pool, self._admitted, self._options.timeout, folder)
        return name

    async def keep(self, name: str, nonce: str, topic: str) -> None:
        """Publish the address of a lease to the server, and keep its slot until it is released."""
        lease = self._leases[name]
        try:
            where = {"nonce": nonce, "address": self._worker.contact_address, "lease": name}
            self._worker.log_event(topic, where)
            await lease.over.wait()
        finally:
            del self._leases[name]
            await asyncio.to_thread(lease.folder.remove)

    def has_options(self, options: HostOptions) -> bool:
        """Return whether these are the options of this worker, apart from the hidden paths of one server."""
        return options.shared() == self._options.shared()

    @property
    def is_unused(self) -> bool:
        """Whether no slot is leased."""
        return not self._leases

    @property
    def _runs(self) -> dict[str, str]:
        return {lease.run_id: name for name, lease in self._leases.items() if lease.has_job}

    def describe(self) -> Description:
        """Return the state of this worker."""
        return Description(self._options, self._slots, self._pool.kernels, self._runs, self.problem)

    def _warm_counts(self, _: Worker) -> dict[str, tuple[int, int]]:
        """Return the metric of warm kernels (called by Dask twice a second)."""
        return {name: (one.ready, one.wanted) for name, one in self._pool.warm_counts.items()}

    async def attach(self, comm: Comm, lease: str, after: int) -> None:
        """Connect a server to its run (called by Dask); only the run uses the connection from here on."""
        channel = Channel(comm)
        found = self._leases.get(lease)
        try:
            if found is None or found.is_expired:
                await channel.send(messages.UnknownLease())
                await channel.until_closed(CLOSE_SECONDS)
            else:
                await found.serve(channel, after)
        except OSError:
            pass  # The server is gone, or has reconnected.
        finally:
            channel.close()


# Concurrent servers must not replace what the other one is about to start.
_installing = asyncio.Lock()

# A worker in another state ends, and starts nothing.
_OPEN = Status.running, Status.paused


async def lease(run_id: str, nonce: str, topic: str, options: bytes) -> tuple[str, str] | None:
    """Lease a slot for a run; the function of a Dask task.

    A worker has the options of one server at a time. While runs of a server with other options are on it, it
    takes no run: with the wrong options, that run might be confined less than its server requires.

    Args:
        run_id: The run.
        nonce: Identifies this attempt to get a slot.
        topic: The server's topic.
        options: The server's options for workers, encoded.

    Returns:
        The worker's address, and why it cannot execute runs with these options (empty: it has others now);
        None: it leased a slot, which is free again.

    Raises:
        Reschedule: The worker ends.
    """
    dask_worker = get_worker()
    decoded = _decoded(options)
    host = await _ensure_installed(dask_worker, decoded)
    if dask_worker.status not in _OPEN:
        raise Reschedule
    if not host.has_options(decoded):
        return dask_worker.address, ""
    if host.problem:
        return dask_worker.address, host.problem
    # Nothing was awaited since: no other server has replaced the host.
    await host.keep(host.reserve(run_id), nonce, topic)
    return None


async def install(version: str, options: bytes, dask_worker: Worker) -> bytes:
    """Install the plugin on a Dask worker, unless it is installed, and return the worker's state.

    Executed by Dask on the worker. A plugin of the scheduler would keep workers without this package from
    starting and stopping.

    Args:
        version: The server's version.
        options: The worker's options, encoded.
        dask_worker: The worker (passed by Dask).

    Returns:
        The worker's `Description`, encoded.

    Raises:
        RuntimeError: The worker has another version.
    """
    if version != messages.VERSION:
        raise RuntimeError(
            f"version {messages.VERSION} differs from the server's {version}; install the same version"
        )
    host = await _ensure_installed(dask_worker, _decoded(options))
    return encode(host.describe())


async def _ensure_installed(dask_worker: Worker, options: HostOptions) -> NotebookHost:
    """Return the worker's plugin, which has these options unless a run uses another server's.

    Raises:
        Reschedule: The worker ends, and has no plugin any longer.
    """
    async with _installing:
        host = dask_worker.plugins.get(PLUGIN)
        is_outdated = isinstance(host, NotebookHost) and host.is_unused and not host.has_options(options)
        if dask_worker.status in _OPEN and (is_outdated or not isinstance(host, NotebookHost)):
            host = NotebookHost(options)
            await dask_worker.plugin_add(host, PLUGIN, catch_errors=False)
        if not isinstance(host, NotebookHost):
            raise Reschedule
        return host


def _decoded(options: bytes) -> HostOptions:
    decoded = decode(options)
    assert isinstance(decoded, HostOptions)  # noqa: S101 - what a server of this version sends
    return decoded
