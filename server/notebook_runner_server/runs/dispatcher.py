"""Brings queued runs to workers, first come, first served, and follows each to its end."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from notebook_runner_server.errors import StorageFullError
from notebook_runner_server.execution.interface import Backend, Cause, Failure, Job, RunHandle
from notebook_runner_server.runs.active import ActiveRun
from notebook_runner_server.runs.model import Run, RunState
from notebook_runner_server.runs.store import Store

SAVE_INTERVAL = 1.0
"""Seconds between two tries to store the start or the end of a run that the store could not take."""

_NOT_STARTED = "The run was ended before it started."
_logger = logging.getLogger(__name__)


class Dispatcher:
    """Holds the runs that have not ended.

    Args:
        store: Where their notebooks are.
        backend: What executes them; it is given one run for each free worker and no more.
    """

    def __init__(self, store: Store, backend: Backend) -> None:
        self._store = store
        self._backend = backend
        self._active: dict[str, ActiveRun] = {}
        self._queue: deque[ActiveRun] = deque()
        self._queued = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._driving: set[asyncio.Task[None]] = set()
        self._saving: set[asyncio.Task[None]] = set()
        self._draining = False

    @property
    def waiting(self) -> int:
        """How many runs wait for a worker."""
        return len(self._queue)

    def start(self) -> None:
        """Begin to bring runs to workers."""
        self._task = asyncio.create_task(self._run())

    def add(self, active: ActiveRun) -> None:
        """Take a run in at the end of the queue."""
        self._active[active.run.run_id] = active
        self._queue.append(active)
        self._queued.set()

    def follow(self, active: ActiveRun, handle: RunHandle) -> None:
        """Take in a run that an earlier server has begun, and follow it on."""
        self._active[active.run.run_id] = active
        self._drive(active, lambda: handle)

    def find(self, run_id: str) -> ActiveRun | None:
        """Return a run that has not ended; None: there is no such one."""
        return self._active.get(run_id)

    def newest(self) -> str:
        """Return the id of the newest run that has a worker, else of the newest queued one; empty: no run."""
        going_on = [one for one in self._active.values() if not one.run.state.is_terminal]
        started = [one for one in going_on if one not in self._queue]
        newest = max(started or going_on, key=lambda one: one.log.position, default=None)
        return newest.run.run_id if newest else ""

    def place(self, active: ActiveRun) -> int | None:
        """Return how many runs start before this one; None: it waits no longer."""
        return self._queue.index(active) if active in self._queue else None

    def going_on(self) -> list[Run]:
        """Return the runs that have not ended, oldest first."""
        return [one.run for one in self._active.values() if not one.run.state.is_terminal]

    async def stop(self, active: ActiveRun, cause: Cause, grace_period: float) -> None:
        """End a run, and return when no process of it is left.

        Args:
            active: The run.
            cause: What its failure shall name.
            grace_period: Seconds that the cell may take after an interrupt; zero: end it now.
        """
        if active in self._queue:
            self._queue.remove(active)
            await self.end(active, Failure(cause, _NOT_STARTED))
        else:
            await active.stop(cause, grace_period)
            await active.settled.wait()

    async def drain(self, hurry: asyncio.Event, drain_timeout: float) -> None:
        """Start no more, let the runs that have a worker finish, and end those that do not in time.

        Runs that outlive the server are left to the next one.

        Args:
            hurry: When it is set, the runs are ended without waiting longer.
            drain_timeout: Seconds that the runs may take.
        """
        self._draining = True
        for waiting in self._active.values() if self._backend.survives_restart else self._queue:
            waiting.log.close()
        if self._backend.survives_restart:
            self._backend.leave()
            return
        started = [run for run in self._active.values() if run not in self._queue]
        ended = asyncio.ensure_future(_all_settled(started))
        hurried = asyncio.ensure_future(hurry.wait())
        await asyncio.wait({ended, hurried}, timeout=drain_timeout, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        await asyncio.gather(
            *(self.stop(run, Cause.SERVER_STOPPED, 0.0) for run in started if not run.settled.is_set())
        )
        await ended
        for held in self._active.values():
            if held.is_held:
                _logger.error(
                    "the end of a run could not be written before the stop", extra=held.run_context.ids
                )
                held.log.close()

    async def close(self) -> None:
        """Wait until the runs that had a worker are followed to their end."""
        if self._task is not None:
            self._task.cancel()
        for task in self._saving:
            task.cancel()
        for task in self._driving if self._backend.survives_restart else ():
            task.cancel()
        await asyncio.gather(*self._driving, *self._saving, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await self._queued.wait()
            await self._backend.wait_for_worker()
            if self._draining:
                return
            if self._queue:
                if not await self._launch(self._queue.popleft()):
                    await asyncio.sleep(SAVE_INTERVAL)
            else:
                self._queued.clear()

    async def _launch(self, active: ActiveRun) -> bool:
        """Give a run to a worker, or end it; tell whether it waits no longer."""
        try:
            # It is durable that the run was begun before a worker has it.
            _, job = await asyncio.gather(active.move(RunState.STARTING), self._job(active))
        except StorageFullError:
            if active.stop_requested is None:
                self._wait_on(active)
                return False
        except Exception as error:
            _logger.exception("a run could not be started", extra=active.run_context.ids)
            await self.end(active, Failure(Cause.STORAGE_FAILED, f"The run could not be read: {error}"))
            return True
        if active.stop_requested is not None:
            await self.end(active, Failure(active.stop_requested[0], _NOT_STARTED))
            return True
        self._drive(active, lambda: self._backend.submit(job))
        # The worker is taken when the task has begun.
        await asyncio.sleep(0)
        return True

    def _wait_on(self, active: ActiveRun) -> None:
        """Put a run back whose start could not be written."""
        self._queue.appendleft(active)
        if self._draining:
            active.log.close()
            active.settled.set()

    async def _job(self, active: ActiveRun) -> Job:
        folder = self._store.folder(active.run.run_id)
        parts = await self._store.parts(active.log.position, 0)
        order = active.order
        return Job(
            run_id=active.run.run_id,
            notebook=await asyncio.to_thread(lambda: b"".join(folder.notebook(parts))),
            kernel_name=active.run.kernel_name,
            working_folder=order.working_folder or str(folder.work),
            run_folder=str(folder.work),
            limits=order.limits,
            allow_errors=order.allow_errors,
            # What the caller names itself comes first.
            environment={**active.run_context.variables, **order.environment},
        )

    def _drive(self, active: ActiveRun, begin: Callable[[], RunHandle]) -> None:
        task = asyncio.create_task(self._followed(active, begin))
        self._driving.add(task)
        task.add_done_callback(self._driving.discard)

    async def _followed(self, active: ActiveRun, begin: Callable[[], RunHandle]) -> None:
        try:
            await active.follow(begin())
        except Exception as error:
            _logger.exception("a run could not be followed", extra=active.run_context.ids)
            await active.end(Failure(Cause.WORKER_DIED, f"The server could not follow the run: {error}"))
        finally:
            self._forget(active)

    async def end(self, active: ActiveRun, failure: Failure) -> None:
        """End a run that nobody executes, also one that an earlier server has left."""
        self._active[active.run.run_id] = active
        await active.end(failure)
        self._forget(active)

    def _forget(self, active: ActiveRun) -> None:
        """Let go of a run that has ended; one whose end waits for room is told from here."""
        if active.is_held:
            task = asyncio.create_task(self._save(active))
            self._saving.add(task)
            task.add_done_callback(self._saving.discard)
        else:
            self._active.pop(active.run.run_id, None)

    async def _save(self, active: ActiveRun) -> None:
        while active.is_held:
            await asyncio.sleep(SAVE_INTERVAL)
            await active.save()
        self._active.pop(active.run.run_id, None)


async def _all_settled(runs: list[ActiveRun]) -> None:
    for run in runs:
        await run.settled.wait()
