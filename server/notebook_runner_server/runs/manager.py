"""The run manager: starts, lists, kills and recovers the runs of one server."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from notebook_runner_server.errors import (
    DamagedRunError,
    InvalidFieldError,
    NotOwnerError,
    NotReadyError,
    QuotaExceededError,
    RequestIdReusedError,
    RunActiveError,
    RunExpiredError,
    RunnerBusyError,
    RunnerError,
    ShuttingDownError,
    StorageFullError,
    ambiguous,
    damaged,
    not_found,
    quota_exceeded,
)
from notebook_runner_server.execution.interface import Backend, Cause, Failure, KeptContent, WarmCounts
from notebook_runner_server.runs.active import ActiveRun, Retries
from notebook_runner_server.runs.admission import Admission
from notebook_runner_server.runs.call_target import current_target
from notebook_runner_server.runs.caller import current_caller
from notebook_runner_server.runs.changes import WatchBatch, WatchCursor
from notebook_runner_server.runs.dispatcher import Dispatcher
from notebook_runner_server.runs.history_sizes import HistorySizes
from notebook_runner_server.runs.log import RunLog
from notebook_runner_server.runs.model import (
    Admitted,
    Change,
    ChangeFilter,
    Checkpoint,
    Event,
    KernelInfo,
    Run,
    RunChanged,
    RunnerInfo,
    RunState,
    StartSpec,
    Successor,
    TraceContext,
)
from notebook_runner_server.runs.observer import Observer, RunContext
from notebook_runner_server.runs.patience import patient
from notebook_runner_server.runs.problems import ProblemLogger
from notebook_runner_server.runs.replicas import DuplicateError, OutdatedError, Replica
from notebook_runner_server.runs.replication import Replication
from notebook_runner_server.runs.request_digest import compute_digest, is_same
from notebook_runner_server.runs.retention import HistoryLimits, Readers, Retention
from notebook_runner_server.runs.shares import Quota, Share, ShareRules, ShareUse
from notebook_runner_server.runs.store import Store
from notebook_runner_server.runs.tables import DamagedRecord, RunRecord
from notebook_runner_server.runs.transitions import Clock, event_of, seconds_to_start
from notebook_runner_server.transfer.interface import Transfer

MIN_PART = 4
"""The least number of characters of an id that are accepted in the place of the whole."""

_MAX_ATTEMPTS = 5
"""How often a Start is stored again after another server has stored something at the same time."""

_MAX_SHOWN = 5
"""How many ids an error names: their metadata has 128 bytes."""

_logger = ProblemLogger(__name__)
_T = TypeVar("_T")


class RunManager:
    """Manages the runs of one server, and shows those of all servers of its history.

    Args:
        store: Where runs are stored.
        backend: Executes them.
        admission: Turns requests into runs.
        queue_size: How many runs may wait when all workers are busy.
        history_limits: The limits of the history.
        transfer: Uploads executed notebooks.
        observers: Get the events of all runs.
        rules: Returns which share each owner has.

    Attributes:
        readers: Which runs are read at the moment.
        refusals: How many Starts were refused because of each quota.
    """

    def __init__(
        self,
        store: Store,
        backend: Backend,
        admission: Admission,
        queue_size: int,
        history_limits: HistoryLimits,
        transfer: Transfer,
        observers: Iterable[Observer] = (),
        rules: Callable[[], ShareRules] = ShareRules,
    ) -> None:
        self._store = store
        self._backend = backend
        self._admission = admission
        self._queue_size = queue_size
        self._transfer = transfer
        self._history = HistorySizes(store)
        self._observers = (*observers, self._history)
        self._rules = rules
        self._applied_rules = rules()
        self.refusals: Counter[Quota] = Counter()
        self.readers = Readers()
        self._retention = Retention(store, history_limits, self.readers.is_read, lambda: self.is_first)
        self._retention_task: asyncio.Task[None] | None = None
        self._dispatcher = Dispatcher(store, backend, rules)
        self._admitting = asyncio.Lock()
        self._retries = Retries(self._admitting, self._has_room, self._position_of_new, self._add_successor)
        self._shielded_tasks: set[asyncio.Task[Any]] = set()
        self._closing = False
        self._replication: Replication | None = None
        if (replicas := store.replicas) is not None:
            self._replication = Replication(
                *(store, replicas, self._dispatcher, self.readers, self._history),
                *(self._admitting, self._recover),
            )

    async def open(
        self,
        on_locked: Callable[[], object] = lambda: None,
        on_found: Callable[[Run], object] = lambda _: None,
    ) -> None:
        """Recover the runs that an earlier server left, and begin to execute runs.

        Args:
            on_locked: Called when the state folder is locked, and before any kernel starts; may block.
            on_found: Called with each run that had not ended.

        Raises:
            OSError: The history or the state folder cannot be read or written.
            sqlite3.Error: The history cannot be read or written.
        """
        # What begins here serves no call.
        with patient():
            await self._open(on_locked, on_found)

    async def _open(self, on_locked: Callable[[], object], on_found: Callable[[Run], object]) -> None:
        try:
            await self._store.open()
            await asyncio.to_thread(on_locked)
            self._measure_history()
            if self._replication is not None:
                await self._replication.open(on_found)
            else:
                await self._recover_all(on_found)
        except RunnerError as error:
            raise OSError(f"Cannot read or write the history: {error}") from error
        await self._backend.start()
        if self._replication is not None:
            self._replication.start(self._backend.set_deadline)
        self._dispatcher.start()
        self._retention_task = asyncio.create_task(self._retention.run())

    async def _recover_all(self, on_found: Callable[[Run], object]) -> None:
        for record in await self._store.unended():
            on_found(record.run)
            try:
                await self._recover(record)
            except (OSError, DamagedRunError) as error:
                # One damaged run must not keep the server from serving the others.
                self._store.record_damage(record.run_id, error)

    async def _recover(self, record: RunRecord) -> None:
        """Continue or end a run that an earlier server left.

        Raises:
            DamagedRunError: Its events or segments are damaged.
        """
        run, position = record.run, record.position
        last = next(iter(await self._store.events(position, record.last_sequence - 1)), None)
        if last is None:
            raise damaged(run.run_id, f"event {record.last_sequence} is missing")
        folder = self._store.folder(run.run_id)
        size = await asyncio.to_thread(folder.segments_size)
        failure: Failure | None = None
        try:
            options = await asyncio.to_thread(self._store.options, record)
            record = dataclasses.replace(record, options=options)
        except DamagedRunError as error:
            _logger.exception("run_damaged", extra={"run_id": run.run_id})
            failure = Failure(Cause.STORAGE_FAILED, error.message, cell_index=run.current_cell)
        active = self._active_run(record, Clock(last.time), size)
        if failure is None and run.state is RunState.QUEUED and folder.is_begun:
            message = "The server died before it recorded the run's end, and the history lost its events."
            failure = Failure(Cause.SERVER_DIED, message)
        if failure is not None:
            await self._dispatcher.finish(active, failure)
            return
        checkpoint = await self._store.checkpoint(position) or Checkpoint(0, size, size)
        # Observers of this server have not seen the run.
        if run.state is RunState.QUEUED:
            if self._others:
                # Another server may have admitted it, whose observers count it.
                active.run_context.unseen = last
            else:
                active.run_context.on_events([last])
            self._dispatcher.add(active, seconds_to_start(run, time.time_ns()))
        elif handle := self._backend.find(run.run_id, checkpoint.mark):
            active.resume(checkpoint)
            active.run_context.on_events([dataclasses.replace(last, body=RunChanged(run))])
            if run.state is RunState.KILLING:
                # The earlier server may not have passed the kill on to the worker.
                active.stop_requested = Cause.KILL_REQUESTED, 0.0
            self._dispatcher.follow(active, handle)
        else:
            message = "The server died during the run."
            failure = Failure(Cause.SERVER_DIED, message, cell_index=run.current_cell)
            await self._dispatcher.finish(active, failure)

    async def start(self, spec: StartSpec, origin: TraceContext | None = None) -> Run:
        """Start a run that belongs to the caller, and return it when it is durable.

        Args:
            spec: The request.
            origin: The call; None: unknown.

        Raises:
            RunnerError: The run cannot start; nothing of it is left behind.
        """
        try:
            return await self._start(spec, origin)
        except QuotaExceededError as error:
            # Here, once: with other servers, several checks may refuse it.
            self.refusals[Quota(error.metadata["quota"])] += 1
            raise

    async def _start(self, spec: StartSpec, origin: TraceContext | None) -> Run:
        if same := await self._same_request(spec):
            return same
        digest = ""
        if spec.request_id:
            digest = await asyncio.to_thread(compute_digest, spec, self._store.request_key)
        caller, rules = current_caller(), self._rules()
        if self._share.max_history_bytes is not None:
            # A run that has just ended counts.
            await self._history.size(caller.name)
        await self._check_room(spec.priority)
        admitted = await self._admission.admit(spec, self._backend.kernels)
        run = dataclasses.replace(admitted.run, owner=caller.name)
        groups = tuple(sorted(caller.groups)) if rules.groups else ()
        options = dataclasses.replace(admitted.options, origin=origin or TraceContext(), owner_groups=groups)
        admitted = dataclasses.replace(admitted, run=run, options=options)
        try:
            run = await self._shielded(self._admit(spec, digest, admitted))
        except asyncio.CancelledError:
            # The run may start nevertheless.
            current_target().set_run(run.run_id, run.owner)
            raise
        current_target().set_run(run.run_id, run.owner)
        return run

    async def _admit(self, spec: StartSpec, digest: str, admitted: Admitted) -> Run:
        is_up_to_date = not self._others
        for attempt in range(_MAX_ATTEMPTS):
            # Damaged runs count as unknown ones, and must not keep others from starting.
            is_checked = bool(self._others) and attempt < _MAX_ATTEMPTS - 1
            try:
                async with self._admitting:
                    return await self._admit_now(spec, digest, admitted, is_checked=is_checked)
            except (RunnerBusyError, QuotaExceededError):
                if is_up_to_date:
                    raise
            except (DuplicateError, OutdatedError):
                # Another server has stored the same request, or other runs, meanwhile.
                pass
            # Not above: the runs of other servers get into the queue with the same lock.
            await self._catch_up()
            is_up_to_date = True
        raise NotReadyError("Other servers start too many runs at the moment. Try again later.")

    async def _admit_now(self, spec: StartSpec, digest: str, admitted: Admitted, *, is_checked: bool) -> Run:
        if same := await self._same_request(spec):
            return same
        self._check_capacity(spec.priority)
        known = len(self._dispatcher.unended()) if is_checked else None
        return await self._insert(admitted, digest, known)

    async def _shielded(self, step: Coroutine[None, None, _T]) -> _T:
        """Complete a step even when the caller is cancelled: what is stored must be known in memory."""
        task = asyncio.ensure_future(step)
        self._shielded_tasks.add(task)
        task.add_done_callback(self._shielded_tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_failure)
            raise

    async def _insert(self, admitted: Admitted, digest: str, known: int | None) -> Run:
        run = dataclasses.replace(admitted.run, queue_position=self._position_of_new(admitted.run))
        clock = Clock(run.create_time)
        event = event_of(run, RunChanged(run), 1, clock.now())
        position = await self._store.insert(
            *(admitted.run, admitted.options, digest, event),
            *(admitted.segments, admitted.files, admitted.notify),
            unended=known,
        )
        self._add(RunRecord(position, admitted.run, admitted.options, 0, digest), admitted, clock, event)
        return run

    def _add_successor(self, position: int, successor: Successor) -> None:
        """Queue the run that repeats another, in the same step as the end of that one."""
        admitted = successor.admitted
        record = RunRecord(position, admitted.run, admitted.options, 0, "")
        self._add(record, admitted, Clock(admitted.run.create_time), successor.event)

    def _add(self, record: RunRecord, admitted: Admitted, clock: Clock, event: Event) -> None:
        active = self._active_run(record, clock, sum(map(len, admitted.segments.values())))
        active.log.publish([event])
        self._dispatcher.add(active, seconds_to_start(record.run, time.time_ns()))

    def _has_room(self, run: Run, groups: Sequence[str]) -> bool:
        """Return whether a run of a run's owner, which has these groups, may be added to its history."""
        most = self._rules().share(run.owner, groups).max_history_bytes
        used = self._history.latest(run.owner)
        return most is None or used is None or used < most

    def _position_of_new(self, run: Run) -> int:
        return self._dispatcher.position_of_new(run, seconds_to_start(run, time.time_ns()))

    def _active_run(self, record: RunRecord, clock: Clock, segments_size: int) -> ActiveRun:
        run, options = record.run, record.options
        run_context = RunContext(run.run_id, options.origin, self._observers, run.owner)
        log = RunLog(
            self._store,
            record.position,
            record.last_sequence,
            ended=False,
            clock=clock,
            on_events=run_context.on_events,
        )
        return ActiveRun(
            run, options, self._store, self._transfer, log, run_context, segments_size, self._retries
        )

    async def _same_request(self, spec: StartSpec) -> Run | None:
        """Return the run that an earlier call of the same caller with the same request id started.

        None: there was no such call.

        Raises:
            RequestIdReusedError: That call had another payload.
        """
        if not spec.request_id:
            return None
        record = await self._store.find_request(spec.request_id, current_caller().name)
        if record is None:
            return None
        if not await asyncio.to_thread(is_same, record.request_digest, spec, self._store.request_key):
            raise RequestIdReusedError(
                f"request_id was used before for run {record.run_id}, with a different request. "
                "Use a new request_id.",
                field="request_id",
                run_id=record.run_id,
            )
        target = current_target()
        target.set_run(record.run_id, record.owner)
        target.is_repeat = True
        return self._newest_state(record.run)

    @property
    def _problem(self) -> str:
        """Why no run can start now; empty: runs can start."""
        no_worker = "" if self._backend.capacity else "No worker is available."
        return self._backend.problem or no_worker

    @property
    def _share(self) -> Share:
        """The caller's share."""
        caller = current_caller()
        return self._rules().share(caller.name, caller.groups)

    def apply_shares(self) -> None:
        """Apply changed shares to the runs that wait; to be called again and again."""
        if (rules := self._rules()) != self._applied_rules:
            self._applied_rules = rules
            self._measure_history()
            self._dispatcher.wake()

    def _measure_history(self) -> None:
        if self._applied_rules.limit_history:
            self._history.start()

    @property
    def _others(self) -> Sequence[Replica]:
        """The other servers of the history that begin runs."""
        replicas = self._store.replicas
        return [] if replicas is None else [one for one in replicas.others if not one.is_draining]

    @property
    def is_first(self) -> bool:
        """Whether this server does what one server of the history has to do for all."""
        replicas = self._store.replicas
        return replicas is None or replicas.is_first

    def _workers(self) -> tuple[int, int]:
        """Return how many runs all servers execute at a time, and how many they execute now.

        Those of servers that begin no more runs do not count.
        """
        others, here = self._others, self._dispatcher.executing_here
        capacity = sum(other.workers for other in others)
        busy = self._dispatcher.executing_at({other.server_id for other in others})
        if self._closing:
            return capacity, busy
        return self._backend.capacity + capacity, len(here()) + busy

    async def _catch_up(self) -> None:
        if self._replication is not None:
            await self._replication.catch_up()

    async def _check_room(self, priority: int) -> None:
        """Check that a run of the caller with a priority can be admitted now; arguments as below.

        Raises:
            RunnerError: It cannot.
        """
        try:
            self._check_capacity(priority)
        except (RunnerBusyError, QuotaExceededError):
            if not self._others:
                raise
            # A run of another server may have ended just now.
            await self._catch_up()
            self._check_capacity(priority)

    def _check_capacity(self, priority: int) -> None:
        """Check that a run of the caller with a priority can be admitted now.

        Raises:
            RunnerError: It cannot.
        """
        if self._closing and not self._others:
            raise ShuttingDownError("The server is shutting down. Try again after its restart.")
        if problem := self._problem:
            raise NotReadyError(f"{problem} Try again later.")
        caller, unended, waiting = current_caller(), self._dispatcher.unended(), self._dispatcher.waiting
        capacity, busy = self._workers()
        free = capacity - busy
        # A run may have to wait although a worker is free: for an end of its owner's other runs.
        starting = self._dispatcher.starting_with_new(caller.name, priority, free)
        self._check_quotas(starting[caller.name])
        # Runs that wait for a time leave their places to others until then.
        in_queue = waiting - self._dispatcher.delayed
        if in_queue + 1 - starting.total() - min(free, 0) > self._queue_size:
            raise self._busy([run for run in unended if caller.may_see(run.owner)])

    def _check_quotas(self, starting: int) -> None:
        """Check that the caller's share has room for a run.

        Args:
            starting: How many of the caller's runs start immediately, with the new one.

        Raises:
            QuotaExceededError: It has none.
        """
        owner, share = current_caller().name, self._share
        _, queued = self._dispatcher.load(owner)
        most = share.max_queued
        if most is not None and queued + 1 - starting > most:
            message = (
                f"Quota exceeded: the run would have to wait, and the caller may have {most} queued runs "
                f"(now {queued}). Try again later, or kill a queued run."
            )
            raise quota_exceeded(message, Quota.QUEUED, most, retry_after=RunnerBusyError.retry_after)
        most, used = share.max_history_bytes, self._history.latest(owner)
        if most is not None and used is not None and used >= most:
            message = (
                f"Quota exceeded: the caller's ended runs take {used} bytes, and may take {most}. "
                "Delete some of them."
            )
            raise quota_exceeded(message, Quota.HISTORY, most)

    def _busy(self, visible: Sequence[Run]) -> RunnerBusyError:
        """Return the error for a full queue; `visible` are the unended runs that the caller may see."""
        queue = f"the queue ({self._queue_size}) is full"
        larger = "start the server with a larger --queue"
        if not visible:
            return RunnerBusyError(
                f"Server busy: all workers are busy and {queue}. Try again later, or {larger}."
            )
        first = visible[0]
        return RunnerBusyError(
            f"Server busy: run {first.run_id} is {first.state.value} and {queue}. Try again later, follow "
            f"that run with `notebook-runner watch {first.run_id}`, or {larger}.",
            run_id=first.run_id,
            state=first.state.value,
        )

    @property
    def load(self) -> tuple[int, int]:
        """The dispatcher's `total_load`, which all servers of a history have in common."""
        return self._dispatcher.total_load

    async def info(self) -> RunnerInfo:
        """Return what the server can run, and how busy it is."""
        kernels, warm_counts = self._backend.kernels, self._backend.warm_counts
        waiting = self._dispatcher.waiting
        return RunnerInfo(
            kernels=[
                KernelInfo(
                    name,
                    kernels[name],
                    warm_counts.get(name, WarmCounts(0, 0)),
                    name == self._admission.default_kernel,
                )
                for name in sorted(kernels)
            ],
            workers=self._workers()[0],
            active=len(self._dispatcher.unended()) - waiting,
            queued=waiting,
            queue_size=self._queue_size,
            default_notebook=self._admission.default_notebook,
            has_notebook_root=self._admission.has_root,
            uri_schemes=self._admission.uris.schemes,
            problem=self._problem or self._store.problem,
            share=await self._use(),
        )

    async def _use(self) -> ShareUse:
        """Return the caller's share, and what it uses of it."""
        owner, share = current_caller().name, self._share
        size = await self._history.size(owner) if share.max_history_bytes is not None else None
        active, queued = self._dispatcher.load(owner)
        return ShareUse(share, active, queued, size or 0)

    async def find(self, run_id: str) -> Run:
        """Return a run, or the caller's newest one for an empty id.

        Raises:
            RunNotFoundError: It does not exist, or the caller may not see it.
        """
        record, _ = await self._current(run_id)
        return self._newest_state(record.run)

    async def get(self, part: str) -> Run:
        """Return a run by its id, by an unambiguous part of it, or the caller's newest one for an empty part.

        Args:
            part: The id, its beginning, or the beginning of what follows its last hyphen.

        Raises:
            RunNotFoundError: No run that the caller may see has such an id.
            AmbiguousRunIdError: Several have.
            InvalidFieldError: The part is too short, and no whole id.
        """
        if not part:
            return await self.find(part)
        found = await self._store.find_ids(part, _MAX_SHOWN, current_caller().visible_owner)
        if len(part) < MIN_PART and found != [part]:
            message = f"run_id must be a whole id, or at least {MIN_PART} characters of one (got {part!r})."
            raise InvalidFieldError(message, field="run_id")
        if len(found) > 1:
            raise ambiguous(part, found)
        return await self.find(found[0] if found else part)

    async def delete(self, run_id: str) -> Run | None:
        """Delete a run that has ended, and return it as it was; None: its record was damaged.

        Raises:
            InvalidFieldError: The id is empty.
            RunNotFoundError: The run does not exist, or the caller may not see it.
            NotOwnerError: The caller may not delete it.
            RunActiveError: It has not ended.
            StorageFullError: It could not be deleted.
        """
        if not run_id:
            raise InvalidFieldError("run_id must be the id of a run (got none).", field="run_id")
        record: RunRecord | DamagedRecord | None
        run: Run | None
        try:
            record, active = await self._current(run_id)
            run = record.run if active is None else active.run
        except RunExpiredError as error:
            # As after a Delete: what the caller wants is done.
            raise not_found(run_id) from error
        except DamagedRunError:
            record = await self._store.find_to_delete(run_id, current_caller().visible_owner)
            active = self._dispatcher.find(run_id)
            run = self._dispatcher.find_elsewhere(run_id) if active is None else active.run
        if record is None:
            raise not_found(run_id)
        _check_owner(record)
        if run is not None and not run.state.is_terminal:
            raise RunActiveError(
                f"Run {run_id} is {run.state.value}. Kill it first, or wait for its end.",
                run_id=run_id,
                state=run.state.value,
            )
        if not await self._shielded(self._delete(record)):
            raise not_found(run_id)
        if isinstance(record, DamagedRecord):
            return None
        return run or record.run

    async def _delete(self, record: RunRecord | DamagedRecord) -> bool:
        is_deleted = await self._store.delete(record)
        self.readers.end(record.run_id)
        return is_deleted

    async def list(
        self, before: int, size: int, states: Sequence[RunState], labels: Mapping[str, str], owner: str = ""
    ) -> tuple[list[tuple[int, Run | str]], int]:
        """Return up to `size` runs before a position, newest first, and the position of the next page.

        Only runs of the owner are returned, or all that the caller may see for an empty owner. Each run comes
        with its own position; a damaged run is represented by its id. The position of the next page is 0 when
        there are no more runs.
        """
        caller = current_caller()
        if owner and not caller.may_see(owner):
            return [], 0
        rows = await self._store.list(before, size + 1, states, labels, owner or caller.visible_owner)
        more = rows[size - 1].position if len(rows) > size else 0
        found: list[tuple[int, Run | str]] = [
            (row.position, self._newest_state(row.run) if isinstance(row, RunRecord) else row.run_id)
            for row in rows[:size]
        ]
        return found, more

    def watch(
        self,
        cursor: WatchCursor | None,
        states: Iterable[RunState],
        labels: Mapping[str, str],
        owner: str,
        *,
        include_existing: bool,
        idle: float,
    ) -> AsyncIterator[WatchBatch]:
        """Yield the changes of the runs that the caller may see, as `ChangeLog.watch` does."""
        wanted = ChangeFilter(current_caller().visible_owner, owner, frozenset(states), labels)
        return self._store.changes.watch(cursor, wanted, include_existing=include_existing, idle=idle)

    def encoded(self, change: Change, encode: Callable[[], bytes]) -> bytes:
        """Return an encoded change, as `ChangeLog.encoded` does."""
        return self._store.changes.encoded(change, encode)

    async def log(self, run_id: str) -> tuple[str, RunLog]:
        """Return the id and the log of a run, or of the caller's newest one for an empty id.

        Raises:
            RunNotFoundError: It does not exist, or the caller may not see it.
        """
        try:
            record, active = await self._current(run_id)
        except NotReadyError:
            # The newest events of an active run are in memory.
            active = self._dispatcher.find(run_id)
            if active is None or not current_caller().may_see(active.run.owner):
                raise
            return run_id, active.log
        if active is not None:
            return record.run_id, active.log
        ended = record.run.state.is_terminal
        if not ended and self._replication is not None:
            return record.run_id, await self._replication.log(record)
        return record.run_id, RunLog(self._store, record.position, record.last_sequence, ended=ended)

    async def contents(self, run_id: str, kept: Sequence[KeptContent]) -> dict[int, bytes]:
        """Return the kept content of a display's representations, by their index.

        Raises:
            RunNotFoundError: The run was deleted meanwhile.
            DamagedRunError: The content is missing or damaged.
        """
        try:
            return await asyncio.to_thread(self._store.folder(run_id).contents, kept)
        except DamagedRunError:
            await self._find_record(run_id)
            raise

    async def run_to_kill(self, run_id: str) -> Run:
        """Return the run that a Kill is about.

        Args:
            run_id: The run; empty: of the caller's runs the newest that has a worker, else the newest that is
                queued, else the newest of all.

        Raises:
            RunNotFoundError: It does not exist, or the caller may not see it.
        """
        return await self.find(run_id or self._dispatcher.newest(current_caller().own))

    async def kill(self, run_id: str, grace_period: float, *, wait: bool = True) -> tuple[Run, int]:
        """End a run; return it, and how many processes were ended by force, when none of them is left.

        Args:
            run_id: The run.
            grace_period: Seconds between an interrupt and the kill; zero: kill immediately.
            wait: Whether to wait for the end of the processes; otherwise return when the run's state KILLING
                is durable.

        Raises:
            RunNotFoundError: It does not exist, or the caller may not see it.
            NotOwnerError: The caller may not kill it.
            StorageFullError: No process is left, but the run's end could not be recorded yet.
        """
        record, active = await self._current(run_id)
        _check_owner(record)
        if record.run.state.is_terminal and (active is None or not active.is_claimed):
            return record.run, 0
        if active is not None and active.run.state.is_terminal:
            return active.run, 0
        if active is not None:
            await self._shielded(self._dispatcher.stop(active, Cause.KILL_REQUESTED, grace_period, wait=wait))
        if active is None or active.is_elsewhere:
            return await self._kill_elsewhere(record, grace_period, wait=wait)
        # Without `wait`, the end may just be on its way into the store.
        if active.is_held and active.settled.is_set():
            raise StorageFullError(
                "All processes have ended, but the state folder is full. Free some space; the run's end is "
                "recorded then.",
                run_id=run_id,
            )
        return active.run, active.run_context.processes_ended

    async def _kill_elsewhere(self, record: RunRecord, grace_period: float, *, wait: bool) -> tuple[Run, int]:
        """Have another server end a run; as `kill`."""
        assert self._replication is not None  # noqa: S101 - else every run that has not ended is here
        ended = await self._shielded(self._replication.kill(record, grace_period, wait=wait))
        found = await self._store.find(record.run_id)
        return (record if found is None else found).run, ended

    @property
    def executing(self) -> tuple[str, ...]:
        """The ids of the runs that have a worker of this server."""
        runs = self._dispatcher.executing_here()
        return tuple(run.run_id for run in runs if run.state is not RunState.QUEUED)

    async def drain(self, hurry: asyncio.Event, drain_timeout: float) -> None:
        """Admit no more runs, let the active ones finish for a while, and end the rest.

        Queued runs stay in the history, and start after the next start of the server.

        Args:
            hurry: When it is set, the runs are ended immediately.
            drain_timeout: Seconds that the runs may take.
        """
        self._closing = True
        if self._store.replicas is not None:
            self._store.replicas.drain()
        self._admission.uris.stop_reading()
        await self._dispatcher.drain(hurry, drain_timeout, is_alone=not self._others)
        if self._replication is not None:
            self._replication.close_logs()
        # Watchers see the ends of all runs.
        self._store.changes.close()

    async def close(self) -> None:
        """Close the backend and the store, when the runs have ended."""
        if self._retention_task is not None:
            self._retention_task.cancel()
        if self._replication is not None:
            await self._replication.close()
        await self._dispatcher.close()
        await self._history.close()
        await self._backend.close()
        await self._store.close()

    async def _find_record(self, run_id: str) -> RunRecord:
        caller = current_caller()
        if run_id:
            record = await self._store.find(run_id, caller.visible_owner)
        else:
            record = await self._store.newest(caller.own)
        if record is None:
            raise await self._store.missing(run_id, caller.visible_owner)
        return record

    async def _current(self, run_id: str) -> tuple[RunRecord, ActiveRun | None]:
        """Return a run as the store has it, and the active run; None: it has ended."""
        record = await self._find_record(run_id)
        active = self._dispatcher.find(record.run_id)
        if active is None and not record.run.state.is_terminal:
            # It has ended since it was read, or its admission is between the store and the dispatcher.
            async with self._admitting:
                active = self._dispatcher.find(record.run_id)
            record = await self._find_record(record.run_id)
            if active is None and record.run.state is RunState.QUEUED:
                # Another server has just admitted it.
                await self._catch_up()
                active = self._dispatcher.find(record.run_id)
                record = await self._find_record(record.run_id)
        return record, active

    def _newest_state(self, run: Run) -> Run:
        """Return a stored run in its newest state, with its position in the queue."""
        active = self._dispatcher.find(run.run_id)
        # A run that waits here may have been begun by another server, which this one learns later.
        if active is None or (not active.is_claimed and run.state is not RunState.QUEUED):
            return run
        return dataclasses.replace(active.run, queue_position=self._dispatcher.queue_position(active))


def _log_failure(task: asyncio.Task[Any]) -> None:
    """Log why a step failed whose caller is gone, unless the caller was only refused something."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, RunnerError):
        _logger.error("abandoned_call_failed", exc_info=error)


def _check_owner(record: RunRecord | DamagedRecord) -> None:
    """Check that the caller may change a run that it sees, and which its call is about.

    Raises:
        NotOwnerError: It may not.
    """
    current_target().set_run(record.run_id, record.owner)
    if not current_caller().may_change(record.owner):
        raise NotOwnerError(
            f"Run {record.run_id} belongs to {record.owner or 'no owner'}. To kill or delete it, use a token "
            "with the scope run-all.",
            run_id=record.run_id,
            owner=record.owner,
        )
