"""The server's connection to a Dask scheduler, which is restored whenever it ends, and its workers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

import distributed
from distributed.comm.addressing import get_address_host_port
from distributed.comm.core import Comm, connect
from distributed.protocol.pickle import dumps
from distributed.security import Security

from notebook_runner_server.execution import worker_protocol
from notebook_runner_server.execution.cluster import messages
from notebook_runner_server.execution.cluster.messages import Channel, Description, HostOptions, LeaseAddress
from notebook_runner_server.execution.cluster.worker import RESOURCE, install
from notebook_runner_server.execution.interface import WarmCounts

_log = logging.getLogger(__name__)


class Workers:
    """The workers of a cluster, by their addresses.

    Args:
        options: The options of each worker.

    Attributes:
        kernels: The kernelspecs of the newest worker with their languages.
        leases: Where the runs are that workers had when they were first asked, by the run's id.
    """

    def __init__(self, options: HostOptions) -> None:
        self._options = options
        self.kernels: Mapping[str, str] = {}
        self.leases: dict[str, LeaseAddress] = {}
        self._descriptions: dict[str, Description] = {}
        self._metrics: Mapping[str, Mapping[str, Any]] = {}
        self._running: frozenset[str] = frozenset()
        self._refused: set[str] = set()

    @property
    def usable(self) -> frozenset[str]:
        """The addresses of the workers that accept runs."""
        # Called from other threads, too.
        there = tuple(self._descriptions.items())
        return frozenset(address for address, one in there if one.slots and address in self._running)

    @property
    def slots(self) -> int:
        """Number of runs that they can execute concurrently."""
        return sum(
            one.slots for address, one in tuple(self._descriptions.items()) if address in self._running
        )

    @property
    def warm_counts(self) -> Mapping[str, WarmCounts]:
        """The warm kernels by kernelspec, as of the last heartbeats."""
        counts: dict[str, WarmCounts] = {}
        for address in self.usable:
            for name, (ready, wanted) in (
                self._metrics.get(address, {}).get(messages.WARM_KERNELS, {}).items()
            ):
                before = counts.get(name, WarmCounts(0, 0))
                counts[name] = WarmCounts(before.ready + ready, before.wanted + wanted)
        return counts

    @property
    def unknown(self) -> frozenset[str]:
        """The addresses of the workers that have not answered."""
        return frozenset(self._metrics.keys() - self._descriptions.keys() - self._refused)

    def update(self, there: Mapping[str, Mapping[str, Any]]) -> None:
        """Take the scheduler's list of workers."""
        for gone in self._descriptions.keys() - there.keys():
            del self._descriptions[gone]
        self.leases = {run_id: lease for run_id, lease in self.leases.items() if lease.address in there}
        self._metrics = {address: one["metrics"] for address, one in there.items()}
        # Another worker may get the address later.
        self._refused &= there.keys()
        # A worker that is drained or short of memory finishes its runs, and accepts no more.
        self._running = frozenset(address for address, one in there.items() if one["status"] == "running")

    def installed(self, address: str, answer: object) -> None:
        """Take a worker's answer to `install`, if the worker is still connected."""
        if address not in self._metrics:
            return
        match answer:
            case {"status": "OK", "result": bytes(data)}:
                description = worker_protocol.decode(data)
                assert isinstance(description, Description)  # noqa: S101 - what it answers
                self._take(address, description)
            case {"exception_text": why}:
                self.refuse(address, str(why))

    def _take(self, address: str, description: Description) -> None:
        if description.problem:
            self.refuse(address, description.problem)
            return
        self._descriptions[address] = description
        if description.options.shared() != self._options.shared():
            about = {"worker": address}
            _log.warning("dask_worker_keeps_earlier_settings", extra=about)
        self.kernels = description.kernels
        self.leases.update(
            {run_id: LeaseAddress(address, lease) for run_id, lease in description.leases.items()}
        )

    def refuse(self, address: str, why: str) -> None:
        """Use a worker no more until it is connected again."""
        _log.error("dask_worker_refused", extra={"worker": address, "why": why})
        self._descriptions.pop(address, None)
        self._refused.add(address)


CONNECT_SECONDS = 5.0
"""Seconds that one attempt to reach the scheduler or a worker may take."""

START_SECONDS = 10.0
"""Seconds that the start of a server waits for the workers to answer."""

INSTALL_SECONDS = 60.0
"""Seconds that the installation on a worker may take."""

RETRY_SECONDS = 0.5
"""Seconds between two attempts to reach the scheduler."""

QUIET_SECONDS = 10.0
"""Seconds between two log lines about an unreachable scheduler."""

LOOK_SECONDS = 1.0
"""Seconds between two updates of the workers; changes that Dask reports are seen immediately."""

_log = logging.getLogger(__name__)


class SchedulerConnection:
    """A client of a scheduler, replaced whenever the scheduler was lost.

    Args:
        address: Dask's address of the scheduler.
        options: The options of each worker.

    Attributes:
        topic: The topic of this server, to which workers publish leases.
        workers: The workers.
        options: The options of each worker, encoded.
    """

    def __init__(self, address: str, options: HostOptions) -> None:
        self._address = address
        self._security = Security()
        self.topic = f"notebook-runner-{secrets.token_hex(8)}"
        self.workers = Workers(options)
        self._changed = asyncio.Condition()
        self._client: distributed.Client | None = None
        self._expected: dict[str, asyncio.Future[LeaseAddress]] = {}
        self._workers_changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._tried = False
        self._closing = False
        self._quiet_until = 0.0
        self._releasing: set[asyncio.Task[None]] = set()
        self.options = worker_protocol.encode(options)
        self._installing_on: dict[str, asyncio.Task[None]] = {}
        self._updated = False
        self._spares: dict[str, asyncio.Task[Comm]] = {}

    @property
    def all_known(self) -> bool:
        """Whether every connected worker has answered."""
        return self._updated and not self.workers.unknown

    @property
    def connection_arguments(self) -> dict[str, Any]:
        """The arguments for a connection to a worker."""
        arguments: dict[str, Any] = self._security.get_connection_args("client")
        return arguments

    async def start(self) -> None:
        """Connect, and wait a while for the workers; attempts continue in the background."""
        self._task = asyncio.create_task(self._keep())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                await self.until(lambda: self._tried or self.all_known)

    async def close(self) -> None:
        """Disconnect; runs continue."""
        self._closing = True
        if self._task is not None:
            # Dask may turn this into an error of its own.
            self._task.cancel()
            await asyncio.wait([self._task])
        asking = tuple(self._installing_on.values())
        for one in asking:
            one.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await self._drop_spares(tuple(self._spares))

    async def until(self, condition: Any) -> None:
        """Wait until a condition holds, which is checked whenever the workers change."""
        async with self._changed:
            await self._changed.wait_for(condition)

    async def changed(self) -> None:
        """Check the conditions of all waiting tasks."""
        async with self._changed:
            self._changed.notify_all()

    async def client(self) -> distributed.Client:
        """Wait for a connected client, and return it."""
        await self.until(lambda: self._client is not None)
        assert self._client is not None  # noqa: S101 - as waited for
        return self._client

    def expect(self, nonce: str) -> asyncio.Future[LeaseAddress]:
        """Return a future for the lease with this nonce."""
        return self._expected.setdefault(nonce, asyncio.get_running_loop().create_future())

    def forget(self, nonce: str) -> None:
        """Stop expecting a lease, which is released if it comes."""
        self._expected.pop(nonce, None)

    async def channel(self, lease: LeaseAddress, after: int, seconds: float) -> Channel:
        """Connect to a run.

        Args:
            lease: The run's lease.
            after: The number of the last known batch.
            seconds: The time limit.

        Raises:
            OSError: The worker cannot be reached.
        """
        comm = await self._comm(lease.address, seconds, is_first=after == 0)
        try:
            hello = {"op": messages.ATTACH, "reply": False, "lease": lease.lease, "after": after}
            await comm.write(hello)
        except BaseException:
            comm.abort()
            raise
        return Channel(comm)

    async def _comm(self, address: str, seconds: float, *, is_first: bool) -> Comm:
        """Return a connection to a worker: for a new run, the one made ahead, if it is open."""
        spare = self._spares.get(address)
        if is_first and spare is not None and spare.done():
            self._prepare(address)
            if (comm := await _opened(spare)) is not None and not comm.closed():
                return comm
        opened: Comm = await connect(address, timeout=seconds, **self.connection_arguments)
        return opened

    def _prepare(self, address: str) -> None:
        """Connect to a worker ahead of the next run, which need not wait for TLS then."""
        self._spares[address] = asyncio.create_task(
            connect(address, timeout=CONNECT_SECONDS, **self.connection_arguments)
        )

    async def _drop_spares(self, addresses: Iterable[str]) -> None:
        for spare in [self._spares.pop(address) for address in addresses]:
            spare.cancel()
            if (comm := await _opened(spare)) is not None:
                comm.abort()

    async def is_refused(self, lease: LeaseAddress) -> bool:
        """Return whether the worker's port refuses connections, for which Dask's connect would try again."""
        host, port = get_address_host_port(lease.address)
        try:
            async with asyncio.timeout(RETRY_SECONDS):
                _, writer = await asyncio.open_connection(host, port)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        writer.close()
        return False

    async def _keep(self) -> None:
        while not self._closing:
            try:
                await self._connected()
            except Exception as error:  # noqa: BLE001 - Dask's errors have no common base class
                self._log_unreachable(str(error))
            finally:
                self.workers.update({})
                self._updated, self._tried = False, True
            await self.changed()
            await asyncio.sleep(RETRY_SECONDS)

    def _log_unreachable(self, why: str) -> None:
        """Log why the scheduler is unreachable, but not at each attempt."""
        now = asyncio.get_running_loop().time()
        if now < self._quiet_until:
            return
        self._quiet_until = now + QUIET_SECONDS
        hint = " (do server and cluster have certificates of the same CA?)" if "SSL" in why else ""
        _log.warning("dask_scheduler_unreachable", extra={"scheduler": self._address, "why": why + hint})

    async def _connected(self) -> None:
        """Connect to the scheduler, and return when it is lost."""
        arguments = self.connection_arguments
        # An unused connection, whose end shows that the scheduler is gone.
        lifeline = await connect(self._address, timeout=CONNECT_SECONDS, **arguments)
        client = distributed.Client(
            self._address,
            asynchronous=True,
            security=self._security,
            timeout=CONNECT_SECONDS,
            set_as_default=False,
        )
        try:
            await client
            client.subscribe_topic(self.topic, self._on_lease)
            client.subscribe_topic("all", self._on_worker_event)
            await self._update_workers(client)
            self._client = client
            await self.changed()
            _log.info("dask_scheduler_connected", extra={"scheduler": self._address})
            gone = asyncio.ensure_future(lifeline.read())
            looking = asyncio.ensure_future(self._watch_workers(client))
            try:
                await asyncio.wait([gone, looking], return_when=asyncio.FIRST_COMPLETED)
                await (looking if looking.done() else gone)
            finally:
                gone.cancel()
                looking.cancel()
                await asyncio.gather(gone, looking, return_exceptions=True)
        finally:
            # A client that is being closed must not be used.
            self._client = None
            lifeline.abort()
            if client.status == "running":
                client.unsubscribe_topic("all")
            with contextlib.suppress(TimeoutError, OSError):
                await client.close(timeout=CONNECT_SECONDS)

    def _on_lease(self, event: tuple[float, Mapping[str, str]]) -> None:
        """Take a lease that a worker published."""
        published = event[1]
        lease = LeaseAddress(published["address"], published["lease"])
        expected = self._expected.pop(published["nonce"], None)
        if expected is not None and not expected.done():
            expected.set_result(lease)
        else:
            self.release(lease)

    def release(self, lease: LeaseAddress) -> None:
        """Release a lease; one that cannot be reached expires."""

        async def release() -> None:
            with contextlib.suppress(OSError):
                channel = await self.channel(lease, 0, CONNECT_SECONDS)
                await channel.send(messages.Release())
                await channel.until_closed(CONNECT_SECONDS)

        task = asyncio.ensure_future(release())
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    def _on_worker_event(self, event: tuple[float, Any]) -> None:
        change = event[1]
        if isinstance(change, Mapping) and change.get("action") in {"add-worker", "remove-worker"}:
            self._workers_changed.set()

    async def _watch_workers(self, client: distributed.Client) -> None:
        while True:
            self._workers_changed.clear()
            await self._update_workers(client)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._workers_changed.wait()

    async def _update_workers(self, client: distributed.Client) -> None:
        """Update the list of workers, and install on the new ones."""
        assert client.scheduler is not None  # noqa: S101 - it is connected
        all_there = (await client.scheduler.identity(n_workers=-1))["workers"]
        there = {where: one for where, one in all_there.items() if one["resources"].get(RESOURCE, 0) >= 1}
        self.workers.update(there)
        await self._drop_spares(self._spares.keys() - self.workers.usable)
        for address in self.workers.usable - self._spares.keys():
            self._prepare(address)
        for address in self.workers.unknown - self._installing_on.keys():
            self._installing_on[address] = asyncio.create_task(self._install(address))
        self._updated = True
        await self.changed()

    async def _install(self, address: str) -> None:
        """Make a worker execute notebooks, and take its description."""
        request = {"op": "run", "function": dumps(install), "args": dumps((messages.VERSION, self.options))}
        try:
            async with asyncio.timeout(INSTALL_SECONDS):
                comm = await connect(address, timeout=CONNECT_SECONDS, **self.connection_arguments)
                try:
                    await comm.write(request)
                    self.workers.installed(address, await comm.read())
                finally:
                    comm.abort()
        except (OSError, TimeoutError):
            pass  # The next update tries again, if the worker is still connected.
        finally:
            del self._installing_on[address]
            await self.changed()


async def _opened(connecting: asyncio.Task[Comm]) -> Comm | None:
    """Return a connection, once it is made; None: it failed, or was cancelled."""
    await asyncio.wait([connecting])
    return None if connecting.cancelled() or connecting.exception() else connecting.result()
