"""The dispatcher: gives queued runs to workers, in the order of `runs.queue`, and follows each to its end."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable

from notebook_runner_server.errors import StorageFullError
from notebook_runner_server.execution.interface import Backend, Cause, Failure, Job, RunHandle
from notebook_runner_server.runs.active import ActiveRun
from notebook_runner_server.runs.model import Run, RunState
from notebook_runner_server.runs.patience import patient
from notebook_runner_server.runs.queue import RunQueue
from notebook_runner_server.runs.shares import ShareRules
from notebook_runner_server.runs.store import Store

SAVE_INTERVAL = 1.0
"""Seconds between two attempts to record a start or an end on a full disk."""

_NOT_STARTED = "The run was stopped before it started."
_logger = logging.getLogger(__name__)


class Dispatcher:
    """Holds the runs that have not ended.

    Args:
        store: Where their notebooks are.
        backend: Executes them; it gets one run for each free worker and no more.
        rules: Returns which share each owner has.
    """

    def __init__(self, store: Store, backend: Backend, rules: Callable[[], ShareRules] = ShareRules) -> None:
        self._store = store
        self._backend = backend
        self._active: dict[str, ActiveRun] = {}
        self._rules = rules
        # Each owner's groups, as of its newest run that has not ended: its share counts without a call, too.
        self._groups: dict[str, tuple[str, ...]] = {}
        self._queue = RunQueue(self._max_active)
        # Set when a run may have become the next one.
        self._queued = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._followers: set[asyncio.Task[None]] = set()
        self._savers: set[asyncio.Task[None]] = set()
        self._draining = False

    @property
    def waiting(self) -> int:
        """How many runs are queued."""
        return len(self._queue)

    @property
    def delayed(self) -> int:
        """How many of these runs wait for a time, and not for a worker."""
        return self._queue.delayed

    def start(self) -> None:
        """Begin to give runs to workers."""
        self._task = asyncio.create_task(self._run())

    def add(self, active: ActiveRun, delay: float = 0.0) -> None:
        """Add a run to the queue, which may start after a delay in seconds."""
        self._hold(active)
        self._queue.add(active, delay)
        if self._draining:
            # It repeats a run that was interrupted, and starts after the next start of the server.
            active.log.close()
        self._queued.set()

    def _hold(self, active: ActiveRun) -> None:
        self._active[active.run.run_id] = active
        self._groups[active.run.owner] = active.options.owner_groups

    def wake(self) -> None:
        """Look again which run may start: shares have changed."""
        self._queue.shares_changed()
        self._queued.set()

    def follow(self, active: ActiveRun, handle: RunHandle) -> None:
        """Follow a run that an earlier server has begun."""
        self._hold(active)
        self._follow(active, lambda: handle)

    def find(self, run_id: str) -> ActiveRun | None:
        """Return a run that has not ended; None: not found."""
        return self._active.get(run_id)

    def newest(self, owner: str | None) -> str:
        """Return the id of an owner's newest run that has a worker, else of the newest queued one.

        Args:
            owner: The owner; None: anyone.

        Returns:
            The id; empty: there is no such run.
        """
        unended = [
            one
            for one in self._active.values()
            if not one.run.state.is_terminal and owner in (None, one.run.owner)
        ]
        started = [one for one in unended if one not in self._queue]
        newest = max(started or unended, key=lambda one: one.log.position, default=None)
        return newest.run.run_id if newest else ""

    def queue_position(self, active: ActiveRun) -> int | None:
        """Return how many runs start before this one; None: it is not queued."""
        return self._queue.position(active, self._at_work)

    def position_of_new(self, run: Run, delay: float = 0.0) -> int:
        """Return how many queued runs would start before a run that is added now, with this delay."""
        return self._queue.position_of_new(run.owner, run.priority, self._at_work(), delay)

    def starting_with_new(self, owner: str, priority: int, free: int) -> Counter[str]:
        """Return how many runs of each owner start immediately if one is added while workers are free."""
        return self._queue.starting_with_new(owner, priority, self._at_work(), free)

    def load(self, owner: str) -> tuple[int, int]:
        """Return how many runs of an owner have a worker, and how many wait for one."""
        return self._at_work()[owner], self._queue.count(owner)

    def _max_active(self, owner: str) -> int | None:
        return self._rules().share(owner, self._groups.get(owner, ())).max_active

    def _at_work(self) -> Counter[str]:
        """Return how many runs of each owner have a worker."""
        started = (one for one in self._active.values() if one not in self._queue)
        return Counter(one.run.owner for one in started if not one.settled.is_set())

    def unended(self) -> list[Run]:
        """Return the runs that have not ended, oldest first."""
        return [one.run for one in self._active.values() if not one.run.state.is_terminal]

    async def stop(self, active: ActiveRun, cause: Cause, grace_period: float, *, wait: bool = True) -> None:
        """End a run, and return when none of its processes is left.

        Args:
            active: The run.
            cause: The cause of its failure.
            grace_period: Seconds between an interrupt and the kill; zero: kill immediately.
            wait: Whether to wait for the processes even if a later server would end them, because the state
                KILLING is durable.
        """
        if active in self._queue:
            self._queue.remove(active)
            await self.finish(active, Failure(cause, _NOT_STARTED))
        else:
            await active.stop(cause, grace_period)
            if wait or active.run.state is not RunState.KILLING:
                await active.settled.wait()

    async def drain(self, hurry: asyncio.Event, drain_timeout: float) -> None:
        """Start no more runs, let those that have a worker finish, and end those that are not in time.

        Runs that survive a restart are left to the next server.

        Args:
            hurry: When it is set, the runs are ended immediately.
            drain_timeout: Seconds that the runs may take.
        """
        self._draining = True
        for waiting in self._active.values() if self._backend.survives_restart else self._queue:
            waiting.log.close()
        if self._backend.survives_restart:
            self._backend.leave()
            return
        started = [run for run in self._active.values() if run not in self._queue]
        settled = asyncio.ensure_future(_all_settled(started))
        hurried = asyncio.ensure_future(hurry.wait())
        await asyncio.wait({settled, hurried}, timeout=drain_timeout, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        await asyncio.gather(
            *(self.stop(run, Cause.SERVER_STOPPED, 0.0) for run in started if not run.settled.is_set())
        )
        await settled
        for active in self._active.values():
            if active.is_held:
                _logger.error("run_end_lost", extra=active.run_context.ids)
                active.log.close()

    async def close(self) -> None:
        """Wait until the runs that had a worker are followed to their end."""
        if self._task is not None:
            self._task.cancel()
        if self._timer is not None:
            self._timer.cancel()
        for task in self._savers:
            task.cancel()
        for task in self._followers if self._backend.survives_restart else ():
            task.cancel()
        await asyncio.gather(*self._followers, *self._savers, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await self._queued.wait()
            await self._backend.wait_for_worker()
            if self._draining:
                return
            self._queued.clear()
            if (active := self._queue.take(self._at_work())) is not None:
                self._queued.set()
                if not await self._launch(active):
                    await asyncio.sleep(SAVE_INTERVAL)
            elif (seconds := self._queue.seconds_to_next()) is not None:
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = asyncio.get_running_loop().call_later(seconds, self._queued.set)

    async def _launch(self, active: ActiveRun) -> bool:
        """Give a run to a worker, or end it; false: the disk is full, and the run is back in the queue."""
        try:
            # The start is durable before a worker gets the run.
            _, job = await asyncio.gather(active.move(RunState.STARTING), self._job(active))
        except StorageFullError:
            if active.stop_requested is None:
                self._requeue(active)
                return False
        except Exception as error:
            _logger.exception("run_start_failed", extra=active.run_context.ids)
            message = f"The run's notebook or files could not be read from the state folder: {error}"
            await self.finish(active, Failure(Cause.STORAGE_FAILED, message))
            return True
        if active.stop_requested is not None:
            await self.finish(active, Failure(active.stop_requested[0], _NOT_STARTED))
            return True
        self._follow(active, lambda: self._backend.submit(job))
        # The task takes the worker when it begins.
        await asyncio.sleep(0)
        return True

    def _requeue(self, active: ActiveRun) -> None:
        self._queue.add(active)
        if self._draining:
            active.log.close()
            active.settled.set()

    async def _job(self, active: ActiveRun) -> Job:
        folder = self._store.folder(active.run.run_id)
        segments = await self._store.segments(active.log.position, 0)
        options = active.options
        notebook, files = await asyncio.to_thread(
            lambda: (b"".join(folder.notebook(segments)), folder.input_files())
        )
        return Job(
            run_id=active.run.run_id,
            notebook=notebook,
            kernel_name=active.run.kernel_name,
            working_folder=options.working_folder or str(folder.work),
            run_folder=str(folder.work),
            limits=options.limits,
            allow_errors=options.allow_errors,
            # The caller's own variables win.
            environment={**active.run_context.variables, **options.environment},
            files=files,
            is_private=not options.working_folder,
            display_data_bytes=options.display_data_bytes,
        )

    def _follow(self, active: ActiveRun, begin: Callable[[], RunHandle]) -> None:
        task = asyncio.create_task(self._follow_to_end(active, begin))
        self._followers.add(task)
        task.add_done_callback(self._followers.discard)

    async def _follow_to_end(self, active: ActiveRun, begin: Callable[[], RunHandle]) -> None:
        try:
            await active.follow(begin())
        except Exception as error:
            _logger.exception("run_follow_failed", extra=active.run_context.ids)
            message = f"Internal error: the server could not follow the run: {error}"
            await active.finish(Failure(Cause.WORKER_DIED, message))
        finally:
            self._release(active)

    async def finish(self, active: ActiveRun, failure: Failure) -> None:
        """End a run that no worker executes."""
        self._hold(active)
        await active.finish(failure)
        self._release(active)

    def _release(self, active: ActiveRun) -> None:
        """Drop a run that has ended, once its end is durable."""
        if active.is_held:
            task = asyncio.create_task(self._save_end(active))
            self._savers.add(task)
            task.add_done_callback(self._savers.discard)
        else:
            self._drop(active)
        # Its owner may start another run now.
        self._queued.set()

    async def _save_end(self, active: ActiveRun) -> None:
        with patient():
            while active.is_held:
                await asyncio.sleep(SAVE_INTERVAL)
                await active.save_end()
        self._drop(active)

    def _drop(self, active: ActiveRun) -> None:
        self._active.pop(active.run.run_id, None)
        owner = active.run.owner
        if all(one.run.owner != owner for one in self._active.values()):
            self._groups.pop(owner, None)


async def _all_settled(runs: list[ActiveRun]) -> None:
    for run in runs:
        await run.settled.wait()
