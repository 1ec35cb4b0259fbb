"""How a run gets its place on a cluster: Dask leases a slot, or the run is found where it was begun."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import Any

import distributed

from notebook_runner_server.execution.cluster import worker
from notebook_runner_server.execution.cluster.link import SchedulerConnection
from notebook_runner_server.execution.cluster.messages import LeaseAddress
from notebook_runner_server.execution.interface import Cause


class LostError(Exception):
    """Nothing goes on of a run any more, or nothing will; the message says why.

    Args:
        why: A sentence.
        cause: What the run's failure names.
    """

    def __init__(self, why: str, cause: Cause = Cause.WORKER_DIED) -> None:
        super().__init__(why)
        self.cause = cause


async def found(link: SchedulerConnection, run_id: str, deadline: float) -> LeaseAddress:
    """Return where a run is that an earlier server has begun.

    Args:
        link: The cluster.
        run_id: The run.
        deadline: When workers that do not answer are waited for no longer, by the event loop's clock.

    Raises:
        LostError: It is nowhere.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(deadline):
            await link.until(lambda: run_id in link.workers.left or link.all_asked)
    place = link.workers.left.get(run_id)
    if place is None:
        raise LostError("The server died while the run went on, and no worker has it.", Cause.SERVER_DIED)
    return place


async def leased(link: SchedulerConnection, run_id: str) -> LeaseAddress:
    """Have Dask lease a slot of a worker that takes runs; a lease without the job is nothing.

    Raises:
        LostError: Dask could not.
    """
    place = None
    while place is None:
        await link.until(lambda: link.workers.usable)
        place = await _leased(link, await link.client(), run_id)
    return place


async def _leased(link: SchedulerConnection, client: distributed.Client, run_id: str) -> LeaseAddress | None:
    """Return a lease; None: the scheduler was gone, or there are other workers now."""
    usable, nonce = link.workers.usable, secrets.token_hex(8)
    expected = link.expect(nonce)
    future = client.submit(
        worker.lease,
        run_id,
        nonce,
        link.topic,
        key=f"notebook-run-{run_id}-{nonce}",
        pure=False,
        retries=0,
        workers=list(usable),
        resources={worker.RESOURCE: 1},
    )
    # It outlives this server, whose next one finds the run.
    distributed.fire_and_forget(future)
    over = asyncio.ensure_future(future)
    others = asyncio.ensure_future(link.until(lambda: link.workers.usable != usable))
    try:
        await asyncio.wait([expected, over, others], return_when=asyncio.FIRST_COMPLETED)
        if over.done() and not expected.done():
            _check(over)
        return expected.result() if expected.done() else None
    except asyncio.CancelledError:
        if expected.done():
            link.release(expected.result())
        raise
    finally:
        link.forget(nonce)
        for one in (over, others):
            one.cancel()
        await asyncio.gather(over, others, return_exceptions=True)
        if not expected.done():
            with contextlib.suppress(OSError):
                await client.cancel([future], force=True)


def _check(over: asyncio.Future[Any]) -> None:
    """Look why a lease has ended that nobody told of."""
    error = None if over.cancelled() else over.exception()
    if error is not None and not isinstance(error, distributed.client.FutureCancelledError):
        raise LostError(f"No Dask worker could take the run: {error}")
