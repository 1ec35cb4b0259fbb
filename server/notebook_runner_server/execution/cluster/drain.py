"""Drains a Dask worker: it gets no further runs, and its runs may finish.

Kubernetes executes it in the worker's container before it stops the pod:

    python -m notebook_runner_server.execution.cluster.drain SECONDS

Dask's variables name the scheduler (DASK_SCHEDULER_ADDRESS) and the worker (DASK_WORKER_NAME).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from typing import Any

import dask
from distributed.core import rpc
from distributed.security import Security

LOOK_SECONDS = 1.0
"""Seconds between two checks of the worker."""


async def drain(scheduler: str, name: str, seconds: float) -> None:
    """Drain a worker, and return when it no longer has any run.

    Args:
        scheduler: Dask's address of the scheduler.
        name: The worker's name.
        seconds: The time limit.

    Raises:
        OSError: The scheduler cannot be reached.
        TimeoutError: A run continues after that time.
    """
    arguments = Security().get_connection_args("client")
    async with asyncio.timeout(seconds), rpc(scheduler, connection_args=arguments) as remote:
        # It stays connected, and its runs with it.
        drained = await remote.retire_workers(names=[name], close_workers=False, remove=False)
        sys.stdout.write(f"draining: {', '.join(drained)}\n")
        sys.stdout.flush()
        while await _have_runs(remote, drained):  # noqa: ASYNC110 - Dask has no event for it
            await asyncio.sleep(LOOK_SECONDS)


async def _have_runs(scheduler: Any, workers: Iterable[str]) -> bool:
    tasks = await scheduler.processing(workers=None)
    # A worker that is gone has none.
    return any(tasks.get(address) for address in workers)


if __name__ == "__main__":
    asked = dask.config.get("scheduler-address"), dask.config.get("worker-name")
    asyncio.run(drain(*asked, seconds=float(sys.argv[1])))
