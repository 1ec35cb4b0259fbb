"""A lease of a slot on a Dask worker whose worker processes are all taken, or being replaced."""

import asyncio
from pathlib import Path

from distributed.comm.core import Comm, connect, listen

from notebook_runner_server.execution.cluster.lease import Lease, WorkerRunFolder
from notebook_runner_server.execution.cluster.messages import Batch, Channel, Release
from notebook_runner_server.execution.interface import Cause, Ended
from notebook_runner_server.execution.worker_protocol import Stop
from tests.execution.pools import Pool, until_said
from tests.execution.pools import end as end_event

ENDLESS = "print('here', flush=True)\nimport time; time.sleep(100000)"


async def end_of(channel: Channel) -> Ended:
    """How the run of a lease has ended."""
    while True:
        match await channel.receive():
            case Batch(events=[*_, Ended() as end]):
                return end


def test_a_kill_does_not_wait_for_a_worker_process(tmp_path: Path) -> None:
    """The run ends, and is not executed later; the slot is free again."""

    async def play(pool: Pool) -> None:
        other = await until_said(pool, ENDLESS, "")
        lease = Lease(
            "late", pool.backend, asyncio.Lock(), 600.0, WorkerRunFolder(tmp_path / "lease", 0, None)
        )

        async def serve(comm: Comm) -> None:
            await lease.serve(Channel(comm), 0)

        async with listen("inproc://", serve) as listener:
            channel = Channel(await connect(listener.contact_address))
            await channel.send(pool.job("1"))
            await channel.send(Stop("", Cause.KILL_REQUESTED, 0.0))
            async with asyncio.timeout(60):
                end = await end_of(channel)
            assert end.failure is not None
            assert end.failure.cause is Cause.KILL_REQUESTED
            await channel.send(Release())
            await lease.over.wait()
            channel.close()
        await other.aclose()
        # Nobody waits for the worker process any more: the next run gets it.
        assert end_event(await pool.execute("1")).failure is None

    with Pool(tmp_path) as pool:
        pool.do(play(pool))
