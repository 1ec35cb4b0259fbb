"""Connections to Dask workers that are made ahead of the runs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from distributed.comm.core import Comm
from distributed.core import Server

from notebook_runner_server.execution.cluster import messages
from notebook_runner_server.execution.cluster import scheduler as module
from notebook_runner_server.execution.cluster.messages import Channel, LeaseAddress
from notebook_runner_server.execution.cluster.scheduler import SchedulerConnection
from tests.execution.host_options import OPTIONS

pytestmark = pytest.mark.integration

SECONDS = 60.0


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives a busy machine time for each connection."""
    monkeypatch.setattr(module, "CONNECT_SECONDS", SECONDS)


class FakeWorker(Server):
    """Dask's own server with the one handler that a run needs.

    Attributes:
        attached: The address of the other side of each connection over which a run came, in order.
    """

    def __init__(self) -> None:
        super().__init__({messages.ATTACH: self.attach})  # type: ignore[no-untyped-call]
        self.attached: asyncio.Queue[str] = asyncio.Queue()

    async def attach(self, comm: Comm, lease: str, after: int) -> None:  # noqa: ARG002 - called by name
        """Keep the connection until the other side closes it."""
        self.attached.put_nowait(comm.peer_address)
        await Channel(comm).until_closed(SECONDS)


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[SchedulerConnection, FakeWorker]]:
    """A connection to no scheduler, with one to a worker made ahead; no connection is left at the end."""
    worker = FakeWorker()
    await worker.listen("tcp://127.0.0.1:0")  # type: ignore[no-untyped-call]
    scheduler = SchedulerConnection("tcp://127.0.0.1:1", OPTIONS)
    scheduler._prepare(worker.address)
    try:
        yield scheduler, worker
        comm = await ahead(scheduler, worker)
    finally:
        await scheduler.close()
        await worker.close()
    assert comm.closed()


async def ahead(scheduler: SchedulerConnection, worker: FakeWorker) -> Comm:
    """The connection that was made ahead."""
    return await asyncio.shield(scheduler._spares[worker.address])


async def used(scheduler: SchedulerConnection, worker: FakeWorker, after: int = 0) -> str:
    """The address from which a run comes to the worker."""
    channel = await scheduler.channel(LeaseAddress(worker.address, "lease"), after, SECONDS)
    address = await worker.attached.get()
    channel.close()
    return address


async def test_a_run_takes_the_connection_made_ahead() -> None:
    """The next run has another one, which is made meanwhile."""
    async with connected() as (scheduler, worker):
        for _ in range(3):
            comm = await ahead(scheduler, worker)
            assert await used(scheduler, worker) == comm.local_address


async def test_a_run_that_goes_on_has_a_new_connection() -> None:
    """Its old one broke, and so may have those of the same age."""
    async with connected() as (scheduler, worker):
        comm = await ahead(scheduler, worker)
        assert await used(scheduler, worker, after=1) != comm.local_address
        assert not comm.closed()


async def test_a_connection_that_was_closed_is_not_taken() -> None:
    """The run has a new one."""
    async with connected() as (scheduler, worker):
        comm = await ahead(scheduler, worker)
        comm.abort()
        assert await used(scheduler, worker) != comm.local_address


async def test_a_connection_that_cannot_be_made_ahead_harms_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that refuses one may accept the next."""
    async with connected() as (scheduler, worker):
        (await ahead(scheduler, worker)).abort()
        with monkeypatch.context() as impatient:
            # Dask's connect tries again until then.
            impatient.setattr(module, "CONNECT_SECONDS", 0.1)
            scheduler._prepare("tcp://127.0.0.1:1")
        failed = scheduler._spares[worker.address] = scheduler._spares.pop("tcp://127.0.0.1:1")
        await asyncio.wait([failed])
        assert await used(scheduler, worker)
