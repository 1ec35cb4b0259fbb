"""The default backend: worker processes on this machine, each in a `ProcessPoolExecutor` of its own.

A pool breaks as a whole when one of its processes dies, so every worker has its own pool: the death of one
fails one run and no other. A dead worker's pool is replaced before the next run.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import select
import signal
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection

from notebook_runner_server.execution import worker as workers
from notebook_runner_server.execution.interface import (
    Cause,
    Ended,
    ExecutionEvent,
    Failure,
    Job,
)
from notebook_runner_server.execution.link import Link
from notebook_runner_server.execution.processes import (
    KILL_DEADLINE,
    become_subreaper,
    in_own_session,
    kill_descendants,
)

# A fork of a process that serves gRPC crashes or hangs.
_CONTEXT = multiprocessing.get_context("spawn")

RETRY_SECONDS = 1.0
"""How long to wait before a worker that did not start is tried again."""

STUCK_SECONDS = KILL_DEADLINE + 5.0
"""How long a worker may take to end a run before it is ended itself."""


def kill_orphans() -> set[int]:
    """End whatever is below this process in another session: what a dead worker has left.

    What this process starts itself stays in its session; a kernel never is in it.
    """
    return kill_descendants(os.getpid(), spare=in_own_session)


class _Worker:
    """One worker process: a pool with one process, and the connection to it."""

    def __init__(self, *, limit_address_space: bool) -> None:
        self._near, far = socket.socketpair()
        self._far = Connection(far.detach())
        self._pool = ProcessPoolExecutor(
            max_workers=1,
            mp_context=_CONTEXT,
            initializer=workers.initialize,
            initargs=(self._far, limit_address_space),
        )
        self.link: Link | None = None
        self.hello = workers.Hello(0, {})
        self.broken = False

    async def start(self) -> None:
        """Start the process and wait until it can take a job.

        Raises:
            BrokenProcessPool: It died.
        """
        self.link = await Link.open(self._near)
        try:
            self.hello = await asyncio.wrap_future(self._pool.submit(workers.hello))
        finally:
            # Only the worker holds the far end now, so that its death is seen as the end of the link.
            self._far.close()

    def submit(self, job: Job) -> Future[None]:
        return self._pool.submit(workers.execute, job)

    def kill(self) -> None:
        """End the process with SIGKILL; what is below it is left to `kill_orphans`."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.hello.pid, signal.SIGKILL)

    def kill_rest(self) -> set[int]:
        """End what the process has left, when it is gone; blocks."""
        # Its end of the connection closes before its children are handed on.
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.hello.pid)
            try:
                gone = select.poll()
                gone.register(descriptor, select.POLLIN)
                gone.poll(round(KILL_DEADLINE * 1000))
            finally:
                os.close(descriptor)
        return kill_orphans()

    async def close(self) -> None:
        """End the process with all that is below it."""
        if self.link is not None:
            self.link.close()
        else:
            self._near.close()
        await asyncio.to_thread(self._pool.shutdown, wait=True, cancel_futures=True)


class _PoolRun:
    """A run in a worker."""

    def __init__(self, backend: ProcessPoolBackend, worker: _Worker, job: Job) -> None:
        assert worker.link is not None  # noqa: S101 - it was started
        self._backend = backend
        self._worker = worker
        self._link = worker.link
        self._run_id = job.run_id
        self._done: Future[None] | None = None
        self._stuck: asyncio.TimerHandle | None = None
        self._stop_cause: Cause | None = None
        with contextlib.suppress(BrokenProcessPool):
            self._done = worker.submit(job)

    async def events(self) -> AsyncIterator[Sequence[ExecutionEvent]]:
        """Yield what the worker tells; when it dies, the end that it cannot tell itself."""
        ended = False
        try:
            while not ended:
                batch = await self._link.receive() if self._done else []
                ended = bool(batch) and isinstance(batch[-1], Ended)
                if batch:
                    yield batch
                if not ended and (self._done is None or self._link.closed):
                    yield [await self._death()]
                    ended = True
            await self._settled()
        finally:
            if self._stuck is not None:
                self._stuck.cancel()
            if not ended:
                # Nobody follows the run any more, and nobody would learn how it ends.
                self._worker.kill()
                self._worker.broken = True
            self._backend.release(self._worker)

    def stop(self, cause: Cause, grace_period: float) -> None:
        """Send the order to the worker; one that cannot carry it out is ended."""
        self._stop_cause = self._stop_cause or cause
        self._link.send(workers.Stop(self._run_id, cause, grace_period))
        if self._stuck is None:
            loop = asyncio.get_running_loop()
            self._stuck = loop.call_later(grace_period + STUCK_SECONDS, self._worker.kill)

    async def _settled(self) -> None:
        """Wait until the worker can take another job."""
        if self._done is not None:
            try:
                await asyncio.wrap_future(self._done)
            except BrokenProcessPool:
                self._worker.broken = True

    async def _death(self) -> Ended:
        """End what the dead worker left, and say what happened to it."""
        self._worker.broken = True
        self._worker.kill()
        killed = await asyncio.to_thread(self._worker.kill_rest)
        if self._stop_cause is not None:
            # It was to end the run, and whoever asked for that has what it asked for.
            return Ended(Failure(self._stop_cause, "The run was ended, and its worker with it."), len(killed))
        return Ended(Failure(Cause.WORKER_DIED, "The worker process died."), len(killed))


class ProcessPoolBackend:
    """Executes runs in worker processes of this machine.

    Args:
        workers: How many, and so how many runs at once.
        limit_address_space: Limit the kernel's address space to a run's memory limit as well.
    """

    def __init__(self, workers: int, *, limit_address_space: bool = False) -> None:
        self.capacity = workers
        self._limit_address_space = limit_address_space
        self._idle: asyncio.Queue[_Worker] = asyncio.Queue()
        self._next: _Worker | None = None
        self._workers: set[_Worker] = set()
        self._repairs: set[asyncio.Task[None]] = set()
        self._kernels: Mapping[str, str] = {}

    @property
    def kernels(self) -> Mapping[str, str]:
        """The kernelspecs that the newest worker found, by name, and the language of each."""
        return self._kernels

    async def start(self) -> None:
        """Start the workers.

        Raises:
            BrokenProcessPool: One did not start.
        """
        # The second net: what a dead worker leaves is handed to this process, which ends it.
        become_subreaper()
        await asyncio.gather(*(self._add() for _ in range(self.capacity)))

    async def wait_free(self) -> None:
        """Wait until a worker is free, and keep it for the next `submit`."""
        while self._next is None or self._next.link is None or self._next.link.closed:
            if self._next is not None:
                # It died while it had nothing to do.
                self._next.broken = True
                self.release(self._next)
            self._next = await self._idle.get()

    def submit(self, job: Job) -> _PoolRun:
        """Execute a job on the worker that `wait_free` found."""
        worker, self._next = self._next, None
        if worker is None:
            raise RuntimeError("submit was called without wait_free")
        return _PoolRun(self, worker, job)

    def release(self, worker: _Worker) -> None:
        """Take a worker back after its run; a broken one is replaced."""
        if worker.broken:
            task = asyncio.ensure_future(self._replace(worker))
            self._repairs.add(task)
            task.add_done_callback(self._repairs.discard)
        else:
            self._idle.put_nowait(worker)

    async def close(self) -> None:
        """End every worker; nothing is left below this process."""
        for task in self._repairs:
            task.cancel()
        await asyncio.gather(*self._repairs, return_exceptions=True)
        await asyncio.gather(*(worker.close() for worker in self._workers))
        await asyncio.to_thread(kill_orphans)

    async def _add(self) -> None:
        worker = _Worker(limit_address_space=self._limit_address_space)
        try:
            await worker.start()
        except BaseException:
            await worker.close()
            raise
        self._workers.add(worker)
        self._kernels = worker.hello.kernels
        self._idle.put_nowait(worker)

    async def _replace(self, worker: _Worker) -> None:
        self._workers.discard(worker)
        await worker.close()
        await asyncio.to_thread(worker.kill_rest)
        while True:
            try:
                return await self._add()
            except (BrokenProcessPool, OSError):
                # No memory, no process to be had: runs wait until there is.
                await asyncio.sleep(RETRY_SECONDS)
