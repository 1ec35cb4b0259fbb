"""How the server has Dask lease a slot on a worker for a run."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import Any

import distributed

from notebook_runner_server.execution.cluster import worker
from notebook_runner_server.execution.cluster.link import Link
from notebook_runner_server.execution.cluster.messages import Place


class LostError(Exception):
    """Nothing goes on of the run any more, or nothing will; the message says why."""


async def lease(link: Link, client: distributed.Client, run_id: str) -> Place | None:
    """Return a lease on a worker that takes runs, which is nothing yet without the job.

    Args:
        link: The cluster.
        client: Of its scheduler.
        run_id: The run that it is for.

    Returns:
        None: the scheduler was gone, or there are other workers now; try again.

    Raises:
        LostError: No worker could take it.
    """
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
