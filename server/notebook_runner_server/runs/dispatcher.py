"""The dispatcher: gives queued runs to workers, in the order of `runs.queue`, and follows each to its end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from notebook_runner_server.errors import StorageFullError
from notebook_runner_server.execution.interface import Backend, Cause, Failure, Job, RunHandle
from notebook_runner_server.runs.active import ActiveRun
from notebook_runner_server.runs.model import Run, RunState
from notebook_runner_server.runs.patience import patient
from notebook_runner_server.runs.problems import ProblemLogger
from notebook_runner_server.runs.queue import RunQueue
from notebook_runner_server.runs.replicas import ClaimedError, OutdatedError
from notebook_runner_server.runs.shares import ShareRules
from notebook_runner_server.runs.store import Store

SAVE_INTERVAL = 1.0
"""Seconds between two attempts to record a start or an end on a full disk."""

_MAX_MISCOUNTS = 5
"""After so many, the share of an owner is what this server knows of it."""

_NOT_STARTED = "The run was stopped before it started."
_logger = ProblemLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunElsewhere:
    """A run that another server executes.

    Attributes:
        position: Its position in the store.
        run: The run, in a state that may be outdated.
        server_id: The server.
    """

    position: int
    run: Run
    server_id: str


class Dispatcher:
    """Holds the runs that have not ended.

    Args:
        store: Where their notebooks are.
        backend: Executes them; it gets one run for each free worker and no more.
        rules: Returns which share each owner has.

    Attributes:
        on_lost: Called with a queued run that another server has claimed.
        catch_up: Waits until this server knows which runs others have claimed by now.
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
        self._clock: Callable[[], float] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._followers: set[asyncio.Task[None]] = set()
        self._savers: set[asyncio.Task[None]] = set()
        self._draining = False
        # Whether what waits in the queue is followed no more.
        self._closes_logs = False
        # The runs that other servers of the history execute.
        self._elsewhere: dict[str, RunElsewhere] = {}
        self.on_lost: Callable[[ActiveRun], object] = lambda _: None
        # How often the history had more runs of an owner at work than this server, which was up to date.
        self._miscounts: Counter[str] = Counter()
        self.catch_up: Callable[[], Awaitable[None]] = _nothing

    @property
    def waiting(self) -> int:
        """How many runs are queued."""
        return len(self._queue)

    @property
    def delayed(self) -> int:
        """How many of these runs wait for a time, and not for a worker."""
        return self._queue.delayed

    @property
    def total_load(self) -> tuple[int, int]:
        """How many runs wait for a worker, and how many have one, at all servers of the history.

        May be asked on any thread. Runs that wait for a time are left out.
        """
        queued = len(self._queue)
        active = len(self._active) - queued + len(self._elsewhere)
        delayed = self._queue.delayed_at(self._clock()) if self._clock is not None else 0
        return max(queued - delayed, 0), max(active, 0)

    def start(self) -> None:
        """Begin to give runs to workers."""
        self._clock = asyncio.get_running_loop().time
        self._task = asyncio.create_task(self._run())

    def add(self, active: ActiveRun, delay: float = 0.0) -> None:
        """Add a run to the queue, which may start after a delay in seconds."""
        self._hold(active)
        self._queue.add(active, delay)
        if self._closes_logs:
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

    def lose(self, active: ActiveRun) -> None:
        """Let go of a queued run that another server has claimed, or that has ended there."""
        if active in self._queue:
            self._queue.remove(active)
        self._drop(active)
        active.leave()
        self.on_lost(active)

    def lose_waiting(self, run_id: str) -> None:
        """Let go of a run if it waits for a worker here, although another server has claimed it."""
        active = self._active.get(run_id)
        if active is not None and active in self._queue:
            self.lose(active)

    @property
    def positions(self) -> set[int]:
        """The positions in the store of the runs that this server has."""
        return {active.log.position for active in self._active.values()}

    def set_elsewhere(self, run_id: str, found: RunElsewhere | None) -> bool:
        """Record that another server executes a run; None: that none does.

        Returns:
            Whether another server has executed it.
        """
        before = self._elsewhere.pop(run_id, None)
        if found is not None:
            self._elsewhere[run_id] = found
            if before is None:
                self._queue.take_turn(found.run.owner)
        self._queue.shares_changed()
        # Its owner may start another run now.
        self._queued.set()
        return before is not None

    def find_elsewhere(self, run_id: str) -> Run | None:
        """Return a run that another server executes, in a state that may be outdated; None: not found."""
        found = self._elsewhere.get(run_id)
        return None if found is None else found.run

    def clear_elsewhere(self) -> None:
        """Forget all runs of other servers, before they are recorded again."""
        self._elsewhere.clear()

    def newest(self, owner: str | None) -> str:
        """Return the id of an owner's newest run that has a worker, else of the newest queued one.

        Args:
            owner: The owner; None: anyone.

        Returns:
            The id; empty: there is no such run.
        """
        unended = [
            (one not in self._queue, one.log.position, one.run)
            for one in self._active.values()
            if not one.run.state.is_terminal
        ]
        unended += [(True, one.position, one.run) for one in self._elsewhere.values()]
        candidates = [one for one in unended if owner in (None, one[2].owner)]
        newest = max(candidates, key=lambda one: one[:2], default=None)
        return newest[2].run_id if newest else ""

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
        here = Counter(one.run.owner for one in started if not one.settled.is_set())
        return here + Counter(one.run.owner for one in self._elsewhere.values())

    def unended(self) -> list[Run]:
        """Return the runs that have not ended, those of this server first, oldest first."""
        here = [one.run for one in self._active.values() if not one.run.state.is_terminal]
        return here + [one.run for one in self._elsewhere.values()]

    def executing_here(self) -> list[Run]:
        """Return the runs that have a worker of this server."""
        started = (one.run for one in self._active.values() if one not in self._queue)
        return [run for run in started if not run.state.is_terminal]

    def executing_at(self, server_ids: Collection[str]) -> int:
        """Return how many runs some other servers execute."""
        return sum(one.server_id in server_ids for one in self._elsewhere.values())

    async def stop(self, active: ActiveRun, cause: Cause, grace_period: float, *, wait: bool = True) -> None:
        """End a run, and return when none of its processes is left, or another server has claimed it.

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
            if active in self._queue:
                # It could not start, and waits again.
                self._queue.remove(active)
                await self.finish(active, Failure(cause, _NOT_STARTED))
            elif wait or active.run.state is not RunState.KILLING:
                await active.settled.wait()

    async def drain(self, hurry: asyncio.Event, drain_timeout: float, *, is_alone: bool = True) -> None:
        """Start no more runs, let those that have a worker finish, and end those that are not in time.

        Runs that survive a restart are left to the next server.

        Args:
            hurry: When it is set, the runs are ended immediately.
            drain_timeout: Seconds that the runs may take.
            is_alone: Whether no other server executes what waits meanwhile. Otherwise, these runs are
                followed here until the drain is over.
        """
        self._draining = True
        if is_alone:
            self._close_logs()
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
        self._close_logs()
        for active in self._active.values():
            if active.is_held:
                _logger.error("run_end_lost", extra=active.run_context.ids)
                active.log.close()

    def _close_logs(self) -> None:
        """End the readers of runs that do not end here."""
        self._closes_logs = True
        for waiting in list(self._active.values()) if self._backend.survives_restart else self._queue:
            waiting.log.close()

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
            job = await self._begin(active)
        except StorageFullError:
            if active.stop_requested is None:
                self._requeue(active)
                return False
        except ClaimedError:
            self.lose(active)
            # Before the next run is taken: its owner may have no more.
            await self.catch_up()
            return True
        except OutdatedError:
            if active.stop_requested is None:
                self._requeue(active)
                await self.catch_up()
                self._compare_count(active.run.owner)
                return True
        except Exception as error:
            _logger.exception("run_start_failed", extra=active.run_context.ids)
            message = f"The run's notebook or files could not be read from the state folder: {error}"
            await self.finish(active, Failure(Cause.STORAGE_FAILED, message))
            return True
        if active.stop_requested is not None:
            await self.finish(active, Failure(active.stop_requested[0], _NOT_STARTED))
            return True
        self._miscounts.pop(active.run.owner, None)
        self._follow(active, lambda: self._backend.submit(job))
        # The task takes the worker when it begins.
        await asyncio.sleep(0)
        return True

    async def _begin(self, active: ActiveRun) -> Job:
        """Make the start of a run durable, before a worker gets it, and return its job."""
        is_checked = self._miscounts[active.run.owner] < _MAX_MISCOUNTS
        max_active = self._max_active(active.run.owner) if is_checked else None
        move = active.move(RunState.STARTING, max_active)
        moved, job = await asyncio.gather(move, self._job(active), return_exceptions=True)
        # In this order: of a run that another server has claimed, the notebook may be gone.
        if isinstance(moved, BaseException):
            raise moved
        if isinstance(job, BaseException):
            raise job
        return job

    def _compare_count(self, owner: str) -> None:
        """Take note when an owner has fewer runs at work, as far as is known here, than the history says.

        Some of them may be damaged, and must not keep the others from starting forever.
        """
        max_active = self._max_active(owner)
        if max_active is None or self._at_work()[owner] < max_active:
            self._miscounts[owner] += 1
        else:
            self._miscounts.pop(owner, None)

    def _requeue(self, active: ActiveRun) -> None:
        self._queue.add(active)
        if self._closes_logs:
            active.log.close()
        if self._draining:
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
        """End a run that no worker executes, or let go of it, because another server has claimed it."""
        self._hold(active)
        try:
            await active.finish(failure)
        except ClaimedError:
            self.lose(active)
        else:
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
        problem = ""
        with patient():
            while active.is_held:
                await asyncio.sleep(SAVE_INTERVAL)
                try:
                    await active.save_end()
                except ClaimedError:
                    self.lose(active)
                    return
                except Exception as error:
                    # The next attempt may succeed; until then, the log has each problem once.
                    if repr(error) != problem:
                        _logger.exception("run_end_failed", extra=active.run_context.ids)
                    problem = repr(error)
        self._drop(active)

    def _drop(self, active: ActiveRun) -> None:
        self._active.pop(active.run.run_id, None)
        owner = active.run.owner
        if all(one.run.owner != owner for one in self._active.values()):
            self._groups.pop(owner, None)


async def _nothing() -> None:
    """Return immediately: there are no other servers."""


async def _all_settled(runs: list[ActiveRun]) -> None:
    for run in runs:
        await run.settled.wait()
