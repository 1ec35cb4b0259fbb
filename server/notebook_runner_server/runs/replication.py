"""What a server knows of the runs of other servers on the same history, and does for them.

It follows the changes of all runs (`changes`). A run that another server has admitted waits here, too: the
server that has a free worker first claims it. Of a run that another server executes, this one knows that it
takes a worker, and reads its events while somebody here follows it.

Hints say when to look. They may be lost, so this server also looks again after `LOOK_SECONDS`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NoReturn
from weakref import WeakSet, WeakValueDictionary

from notebook_runner_server.errors import (
    CursorExpiredError,
    DamagedRunError,
    NotReadyError,
    RunnerError,
    ShuttingDownError,
)
from notebook_runner_server.execution.interface import Cause
from notebook_runner_server.runs.active import ActiveRun
from notebook_runner_server.runs.changes import WatchCursor
from notebook_runner_server.runs.dispatcher import Dispatcher, RunElsewhere
from notebook_runner_server.runs.history_sizes import HistorySizes
from notebook_runner_server.runs.log import RunLog
from notebook_runner_server.runs.model import Change, ChangeFilter, Run, RunState
from notebook_runner_server.runs.patience import patient
from notebook_runner_server.runs.problems import ProblemLogger
from notebook_runner_server.runs.replicas import LOOK_SECONDS, KillRequest, Replicas, Topic
from notebook_runner_server.runs.retention import Readers
from notebook_runner_server.runs.store import Store
from notebook_runner_server.runs.tables import RunRecord
from notebook_runner_server.runs.waiters import Waiters

_logger = ProblemLogger(__name__)
_ALL = ChangeFilter()


class Replication:
    """Keeps up with the other servers.

    Args:
        store: The history.
        replicas: The servers.
        dispatcher: The runs of this server, and what it knows of others.
        readers: Who reads runs here.
        sizes: The sizes of owners' histories.
        admitting: Held while a run is in the store and not yet in the queue.
        recover: Lets a queued run wait for a worker of this server, and ends a run of a server that is gone.
    """

    def __init__(
        self,
        store: Store,
        replicas: Replicas,
        dispatcher: Dispatcher,
        readers: Readers,
        sizes: HistorySizes,
        admitting: asyncio.Lock,
        recover: Callable[[RunRecord], Awaitable[object]],
    ) -> None:
        self._store = store
        self._replicas = replicas
        self._dispatcher = dispatcher
        self._readers = readers
        self._sizes = sizes
        self._admitting = admitting
        self._recover = recover
        self._on_found: Callable[[Run], object] = lambda _: None
        self._cursor = WatchCursor("", 0)
        self._seen = Waiters()
        self._hints = {topic: asyncio.Event() for topic in Topic}
        self._written: set[int] = set()
        self._looked_for_events = 0.0
        self._logs: WeakValueDictionary[int, RunLog] = WeakValueDictionary()
        # All that somebody may read. A run has two if it was read here before it began to wait here.
        self._followed: WeakSet[RunLog] = WeakSet()
        self._killing: dict[tuple[int, float], asyncio.Task[None]] = {}
        self._kill_told = Waiters()
        # The runs of other servers, by position, that this one has recovered, or found to be damaged.
        self._recovered: set[int] = set()
        self._tasks: list[asyncio.Task[NoReturn]] = []
        self._is_closed = False

    async def open(self, on_found: Callable[[Run], object]) -> None:
        """Learn of the runs that have not ended; those of servers that are gone are this one's from now on.

        Args:
            on_found: Called with each run that this server recovers, or that waits for a worker.
        """
        self._on_found = on_found
        self._dispatcher.on_lost = self._lost
        self._dispatcher.catch_up = self.catch_up
        await self._replicas.take_over()
        await self._load()

    def start(self, on_renewed: Callable[[float], object]) -> None:
        """Begin to keep up.

        Args:
            on_renewed: As in `Replicas.listen`.
        """
        self._replicas.listen(self._on_hint, on_renewed)
        # What these do serves no call.
        with patient():
            steps = {
                Topic.CHANGES: self._store.changes.look,
                Topic.EVENTS: self._look_for_events,
                Topic.KILLS: self._look_for_kills,
                Topic.SERVERS: self._look_for_servers,
            }
            self._tasks = [asyncio.create_task(self._repeat(*one)) for one in steps.items()]
            self._tasks.append(asyncio.create_task(self._follow_changes()))

    async def close(self) -> None:
        """Stop."""
        tasks = [*self._tasks, *self._killing.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def close_logs(self) -> None:
        """End all readers of other servers' runs: this server stops."""
        self._is_closed = True
        for log in list(self._followed):
            log.close()

    def _on_hint(self, topic: Topic, position: int) -> None:
        if topic is Topic.EVENTS:
            if position not in self._logs:
                return
            self._written.add(position)
        self._hints[topic].set()

    async def _repeat(self, topic: Topic, look: Callable[[], Awaitable[None]]) -> NoReturn:
        """Look for something new with each hint, and from time to time."""
        hint = self._hints[topic]
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await hint.wait()
            hint.clear()
            try:
                await look()
            except (NotReadyError, ShuttingDownError):
                # The database is not available: its loss is logged where it was noticed.
                continue
            except Exception:
                _logger.exception("replication_failed", extra={"topic": topic.value})

    # Changes

    async def _load(self) -> None:
        """Learn of all runs that have not ended."""
        self._cursor = await self._store.changes.cursor()
        claimed = await self._replicas.claimed()
        records = await self._store.unended()
        self._dispatcher.clear_elsewhere()
        for record in records:
            claim = claimed.get(record.position)
            if claim is None:
                if record.run.state is RunState.QUEUED:
                    await self._wait(record.run_id)
            elif not claim.is_here:
                found = RunElsewhere(record.position, record.run, claim.server_id)
                self._dispatcher.set_elsewhere(record.run_id, found)
            elif self._dispatcher.find(record.run_id) is None:
                self._on_found(record.run)
                await self._recover_one(record)

    async def _follow_changes(self) -> NoReturn:
        while True:
            try:
                # This server knows its own changes without reading them.
                async for batch in self._store.changes.watch(
                    self._cursor, _ALL, include_existing=False, idle=3600.0, own=False
                ):
                    for cursor, change in batch.changes:
                        try:
                            await self._apply(change)
                        except DamagedRunError as error:
                            # One damaged run must not hide the changes of all others.
                            self._store.record_damage(change.run_id, error.message)
                        self._cursor = cursor
                    self._cursor = batch.cursor
                    self._seen.wake()
            except CursorExpiredError:
                # So many runs were deleted since the last look that their deletions are forgotten.
                await self._load_again()
            except ShuttingDownError:
                # What waits here is for the other servers now.
                await asyncio.Event().wait()
            except Exception:
                _logger.exception("replication_failed", extra={"topic": Topic.CHANGES.value})
                await asyncio.sleep(LOOK_SECONDS)

    async def _load_again(self) -> None:
        with contextlib.suppress(RunnerError):
            await self._load()

    async def catch_up(self) -> None:
        """Learn of all changes that are durable by now.

        Raises:
            NotReadyError: The database cannot be reached.
        """
        last = await self._store.changes.last()
        while self._cursor.change < last and not self._is_closed:
            await self._store.changes.look()
            # The follower may have applied them during the look.
            if self._cursor.change < last:
                await self._seen.wait(LOOK_SECONDS)

    async def _apply(self, change: Change) -> None:
        run_id, run = change.run_id, change.run
        if run is None:
            await self._deleted(run_id)
            return
        active = self._dispatcher.find(run_id)
        if run.state is RunState.QUEUED:
            self._store.count_change(run_id, 1)
            if active is None:
                await self._wait(run_id)
        elif run.state.is_terminal:
            was_elsewhere = self._dispatcher.set_elsewhere(run_id, None)
            if active is not None and not active.is_claimed and not await self._is_here(run_id):
                self._dispatcher.lose(active)
                was_elsewhere = True
            if was_elsewhere:
                self._sizes.add(run_id, run.owner)
        elif run.state is RunState.STARTING and (active is None or not active.is_claimed):
            await self._started(run_id, run)

    async def _wait(self, run_id: str) -> None:
        """Let a queued run wait here, if it is still queued."""
        async with self._admitting:
            record = None if self._dispatcher.find(run_id) is not None else await self._store.find(run_id)
            if record is not None and record.run.state is RunState.QUEUED:
                await self._recover_one(record)

    async def _started(self, run_id: str, run: Run) -> None:
        claim = await self._replicas.find_claim(run_id)
        if claim is None or claim.is_here:
            return
        if (active := self._dispatcher.find(run_id)) is not None:
            self._dispatcher.lose(active)
        if not claim.has_ended:
            self._dispatcher.set_elsewhere(run_id, RunElsewhere(claim.position, run, claim.server_id))

    async def _is_here(self, run_id: str) -> bool:
        claim = await self._replicas.find_claim(run_id)
        return claim is not None and claim.is_here

    async def _deleted(self, run_id: str) -> None:
        self._store.count_change(run_id, -1)
        self._dispatcher.set_elsewhere(run_id, None)
        self._readers.end(run_id)
        await self._store.forget(run_id)

    # Events

    async def log(self, record: RunRecord) -> RunLog:
        """Return the log of a run that another server executes, with all events that are durable.

        Raises:
            RunnerError: Its events cannot be read.
        """
        log = self._logs.get(record.position)
        if log is None:
            log = RunLog(self._store, record.position, record.last_sequence, ended=False)
        self._logs[record.position] = log
        self._followed.add(log)
        if self._is_closed:
            log.close()
        await log.refresh()
        return log

    def _lost(self, active: ActiveRun) -> None:
        """Continue with the log of a run that has waited here, and that another server executes."""
        self._logs[active.log.position] = active.log
        self._followed.add(active.log)
        self._written.add(active.log.position)
        self._hints[Topic.EVENTS].set()
        self._hints[Topic.CHANGES].set()

    async def _look_for_events(self) -> None:
        written, self._written = self._written, set()
        known = [log for log in self._followed if not log.ended]
        now = time.monotonic()
        # Even while there are hints about other runs: one about this run may be lost.
        if known and (not written or now - self._looked_for_events >= LOOK_SECONDS):
            self._looked_for_events = now
            last = await self._store.last_sequences(list({log.position for log in known}))
            written |= {log.position for log in known if last.get(log.position, 0) > log.last_sequence}
        for log in [one for one in known if one.position in written]:
            try:
                await log.refresh()
            except NotReadyError:
                raise
            except RunnerError:
                _logger.exception("replication_failed", extra={"topic": Topic.EVENTS.value})

    # Kills

    async def kill(self, record: RunRecord, grace_period: float, *, wait: bool) -> int:
        """Have the server that executes a run end it; return how many processes it has ended by force.

        Args:
            record: The run.
            grace_period: Seconds between an interrupt and the kill; zero: kill immediately.
            wait: Whether to wait until no process is left; otherwise until the state KILLING is durable.

        Raises:
            NotReadyError: The database cannot be reached.
        """
        await self._replicas.request_kill(record.position, grace_period)
        self._hints[Topic.KILLS].set()
        while True:
            ended = await self._replicas.find_kill(record.position)
            if ended is not None:
                return ended
            found = await self._store.find(record.run_id)
            if found is None:
                # Deleted meanwhile, after its end.
                return 0
            state = found.run.state
            if not wait and (state is RunState.KILLING or state.is_terminal):
                return 0
            if state.is_terminal and not await self._is_carried_out(record):
                return 0
            await self._kill_told.wait(LOOK_SECONDS)

    async def _is_carried_out(self, record: RunRecord) -> bool:
        """Return whether a server is there that carries out the Kill of a run, also after the run's end."""
        claim = await self._replicas.find_claim(record.run_id)
        if claim is None or claim.is_here:
            return claim is not None
        return any(other.server_id == claim.server_id for other in self._replicas.others)

    async def _look_for_kills(self) -> None:
        self._kill_told.wake()
        for request in await self._replicas.kill_requests():
            key = (request.position, request.grace_period)
            if key not in self._killing:
                task = self._killing[key] = asyncio.create_task(self._carry_out(request))
                task.add_done_callback(partial(self._carried_out, key))

    def _carried_out(self, key: tuple[int, float], _: object) -> None:
        del self._killing[key]

    async def _carry_out(self, request: KillRequest) -> None:
        try:
            active = self._dispatcher.find(request.run_id)
            if active is None:
                record = await self._store.find(request.run_id)
                if record is not None and not record.run.state.is_terminal:
                    # It is on its way into the queue, or out of this server's hands: the next look finds it.
                    return
            else:
                await self._dispatcher.stop(active, Cause.KILL_REQUESTED, request.grace_period)
                if active.is_elsewhere or active.is_held:
                    return
            ended = 0 if active is None else active.run_context.processes_ended
            await self._replicas.kill_done(request.position, ended)
        except NotReadyError:
            return
        except Exception:
            _logger.exception("replication_failed", extra={"topic": Topic.KILLS.value})

    # Servers

    async def _look_for_servers(self) -> None:
        taken = set(await self._replicas.take_over())
        here = {claim.position for claim in (await self._replicas.claimed()).values() if claim.is_here}
        # A run that was taken over while this server was about to claim it itself: that has failed since.
        left = here - self._dispatcher.positions - self._recovered
        if not taken | left:
            return
        for record in await self._store.unended():
            if record.position in taken | left:
                self._dispatcher.lose_waiting(record.run_id)
                if self._dispatcher.find(record.run_id) is None:
                    self._recovered.add(record.position)
                    self._on_found(record.run)
                    await self._recover_one(record)

    async def _recover_one(self, record: RunRecord) -> None:
        self._dispatcher.set_elsewhere(record.run_id, None)
        try:
            await self._recover(record)
        except (OSError, RunnerError) as error:
            self._store.record_damage(record.run_id, error)
