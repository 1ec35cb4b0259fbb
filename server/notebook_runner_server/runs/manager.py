"""The life of runs: admitted, queued, started, killed, found again, recovered, and forgotten."""

from __future__ import annotations

import asyncio
import dataclasses
import sqlite3
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from notebook_runner_server.execution.interface import Backend, Cause, WarmCounts
from notebook_runner_server.runs.active import ActiveRun
from notebook_runner_server.runs.admission import Admission, Admitted
from notebook_runner_server.runs.clock import Clock
from notebook_runner_server.runs.dispatcher import Dispatcher
from notebook_runner_server.runs.errors import (
    NotReadyError,
    RequestIdReusedError,
    RunnerBusyError,
    RunnerError,
    ShuttingDownError,
    StorageFullError,
    not_found,
)
from notebook_runner_server.runs.info import KernelInfo, RunnerInfo
from notebook_runner_server.runs.log import RunLog
from notebook_runner_server.runs.model import (
    Event,
    ExecutionOptions,
    Run,
    RunChanged,
    RunState,
    StartSpec,
    TraceContext,
)
from notebook_runner_server.runs.observer import Observer, RunContext
from notebook_runner_server.runs.readers import Readers
from notebook_runner_server.runs.recovery import recover
from notebook_runner_server.runs.request_digest import fingerprint, is_same
from notebook_runner_server.runs.retention import HistoryLimits, Retention
from notebook_runner_server.runs.store import Store
from notebook_runner_server.runs.tables import RunRecord
from notebook_runner_server.runs.uploader import OutputUploader
from notebook_runner_server.transfer.interface import Transfer

_T = TypeVar("_T")


class RunManager:
    """Keeps the runs of one server.

    Args:
        store: Where runs are kept.
        backend: What executes them.
        admission: What turns requests into runs.
        queue_size: How many runs may wait when all workers are busy.
        bounds: What the history may take.
        transfer: What writes executed notebooks to URIs.
        observers: Who watches the runs.

    Attributes:
        readers: Who reads which run.
    """

    def __init__(
        self,
        store: Store,
        backend: Backend,
        admission: Admission,
        queue_size: int,
        bounds: HistoryLimits,
        transfer: Transfer,
        observers: Iterable[Observer] = (),
    ) -> None:
        self._store = store
        self._observers = tuple(observers)
        self._backend = backend
        self._admission = admission
        self._queue_size = queue_size
        self.readers = Readers()
        self._retention = Retention(store, bounds, self.readers.reads)
        self._dispatcher = Dispatcher(store, backend)
        self._delivery = OutputUploader(store, transfer)
        self._admitting = asyncio.Lock()
        self._forgetting: asyncio.Task[None] | None = None
        self._steps: set[asyncio.Task[Any]] = set()
        self._closing = False

    async def open(self, locked: Callable[[], object] = lambda: None) -> None:
        """Recover what an earlier server left, and begin to execute runs.

        Args:
            locked: Called when the state folder is this server's alone, and no kernel is started; may block.

        Raises:
            OSError: The state folder cannot be read or written now.
        """
        try:
            await self._store.open()
            await asyncio.to_thread(locked)
            await recover(self._store, self._backend, self._dispatcher, self._recovered)
        except (sqlite3.Error, RunnerError) as error:
            raise OSError(f"Cannot read or write the history in the state folder: {error}.") from error
        await self._backend.start()
        self._dispatcher.start()
        self._forgetting = asyncio.create_task(self._retention.run())

    async def start(self, spec: StartSpec, origin: TraceContext | None = None) -> Run:
        """Admit one run, and return it when it is durable.

        Args:
            spec: What is asked for.
            origin: The call that asks; None: not known.

        Raises:
            RunnerError: The request cannot be carried out; no run is left behind.
        """
        if same := await self._same_request(spec):
            return same
        digest = ""
        if spec.request_id:
            digest = await asyncio.to_thread(fingerprint, spec, self._store.request_key)
        self._check_room()
        admitted = await self._admission.admit(spec, self._backend.kernels)
        order = dataclasses.replace(admitted.order, origin=origin or TraceContext())
        admitted = dataclasses.replace(admitted, order=order)
        return await self._whole(self._admit(spec, digest, admitted))

    async def _admit(self, spec: StartSpec, digest: str, admitted: Admitted) -> Run:
        async with self._admitting:
            if same := await self._same_request(spec):
                return same
            self._check_room()
            return await self._insert(admitted, digest)

    async def _whole(self, step: Coroutine[None, None, _T]) -> _T:
        """Take a step to its end also when the caller goes away: what is stored must be known here."""
        task = asyncio.ensure_future(step)
        self._steps.add(task)
        task.add_done_callback(self._steps.discard)
        return await asyncio.shield(task)

    def info(self) -> RunnerInfo:
        """Return what there is to run notebooks with, and how busy it is."""
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
            workers=self._backend.capacity,
            active=len(self._dispatcher.going_on()) - waiting,
            queued=waiting,
            queue_size=self._queue_size,
            default_notebook=self._admission.default_notebook,
            has_notebook_root=self._admission.has_root,
            uri_schemes=self._admission.uris.schemes,
            problem=self._problem or self._store.problem,
        )

    async def find(self, run_id: str) -> Run:
        """Return a run, or the newest one for an empty id.

        Raises:
            RunNotFoundError: There is none.
        """
        row, _ = await self._current(run_id)
        return self._newest_state(row.run)

    async def list(
        self, before: int, size: int, states: Sequence[RunState], labels: Mapping[str, str]
    ) -> tuple[list[tuple[int, Run | str]], int]:
        """Return up to `size` runs before a position, newest first, and the position to go on from.

        Each run comes with its own position; of one that is damaged there is only the id. The position to go
        on from is 0 when there are no more.
        """
        rows = await self._store.list(before, size + 1, states, labels)
        more = rows[size - 1].position if len(rows) > size else 0
        found: list[tuple[int, Run | str]] = [
            (row.position, self._newest_state(row.run) if isinstance(row, RunRecord) else row.run_id)
            for row in rows[:size]
        ]
        return found, more

    async def log(self, run_id: str) -> tuple[str, RunLog]:
        """Return the id and the events of a run, or of the newest one for an empty id.

        Raises:
            RunNotFoundError: There is none.
        """
        row, active = await self._current(run_id)
        if active is not None:
            return row.run.run_id, active.log
        ended = row.run.state.is_terminal
        return row.run.run_id, RunLog(self._store, row.position, row.last_sequence, ended=ended)

    async def run_to_kill(self, run_id: str) -> Run:
        """Return the run that a Kill is about.

        Args:
            run_id: The run; empty: the newest that has a worker, else the newest that is queued, else the
                newest of all.

        Raises:
            RunNotFoundError: There is no such run.
        """
        return await self.find(run_id or self._dispatcher.newest())

    async def kill(self, run_id: str, grace_period: float) -> tuple[Run, int]:
        """End a run; return it, and how many processes were ended by force, when none of them is left.

        Args:
            run_id: The run.
            grace_period: Seconds that the cell may take after an interrupt; zero: end it now.

        Raises:
            RunNotFoundError: There is no such run.
            StorageFullError: That is so, but the run's end could not be written yet.
        """
        row, active = await self._current(run_id)
        if active is None:
            return row.run, 0
        if active.run.state.is_terminal:
            # It has ended, and is about to be let go of.
            return active.run, 0
        await self._whole(self._dispatcher.stop(active, Cause.KILL_REQUESTED, grace_period))
        if active.is_held:
            raise StorageFullError(
                "All processes have ended, but the state folder is full: free some space; "
                "the end is recorded then.",
                run_id=run_id,
            )
        return active.run, active.run_context.processes_ended

    async def drain(self, hurry: asyncio.Event, drain_timeout: float) -> None:
        """Admit no more, let runs finish for a while, and end those that did not.

        Queued runs stay in the history, and start after the next start of the server.

        Args:
            hurry: When it is set, the runs are ended without waiting longer.
            drain_timeout: Seconds that the runs may take.
        """
        self._closing = True
        self._admission.uris.stop_reading()
        await self._dispatcher.drain(hurry, drain_timeout)

    async def close(self) -> None:
        """Close all, when the runs have ended."""
        if self._forgetting is not None:
            self._forgetting.cancel()
        await self._dispatcher.close()
        await self._backend.close()
        await self._store.close()

    async def _row(self, run_id: str) -> RunRecord:
        row = await self._store.find(run_id)
        if row is None:
            raise not_found(run_id)
        return row

    async def _current(self, run_id: str) -> tuple[RunRecord, ActiveRun | None]:
        """Return a run as the store has it, and as it goes on; None: it has ended."""
        row = await self._row(run_id)
        active = self._dispatcher.find(row.run.run_id)
        if active is None and not row.run.state.is_terminal:
            # It has ended since it was read, or its Start is between the store and the dispatcher.
            async with self._admitting:
                active = self._dispatcher.find(row.run.run_id)
            row = await self._row(row.run.run_id)
        return row, active

    def _newest_state(self, run: Run) -> Run:
        """Return a run of the store as it is now, with its place in the queue."""
        active = self._dispatcher.find(run.run_id)
        if active is None:
            return run
        return dataclasses.replace(active.run, queue_position=self._dispatcher.place(active))

    async def _same_request(self, spec: StartSpec) -> Run | None:
        row = await self._store.find_request(spec.request_id) if spec.request_id else None
        if row is None:
            return None
        if not await asyncio.to_thread(is_same, row.fingerprint, spec, self._store.request_key):
            raise RequestIdReusedError(
                "The request id was used with another payload: take a new one.",
                field="request_id",
                run_id=row.run.run_id,
            )
        return self._newest_state(row.run)

    @property
    def _problem(self) -> str:
        """Why no run can start now; empty: runs can start."""
        nobody = "" if self._backend.capacity else "There is no worker to run notebooks now."
        return self._backend.problem or nobody

    def _check_room(self) -> None:
        if self._closing:
            raise ShuttingDownError("The server is shutting down: try again when it is back.")
        if problem := self._problem:
            raise NotReadyError(f"{problem} Try again.")
        going_on = self._dispatcher.going_on()
        if len(going_on) >= self._backend.capacity + self._queue_size:
            first = going_on[0]
            raise RunnerBusyError(
                f"Run {first.run_id} is {first.state.value}, and no place is left: try again, or kill it.",
                run_id=first.run_id,
                state=first.state.value,
            )

    async def _insert(self, admitted: Admitted, digest: str) -> Run:
        run = dataclasses.replace(admitted.run, queue_position=self._dispatcher.waiting)
        clock = Clock(run.create_time)
        event = Event(1, clock.now(), 0, run.cells_total, RunChanged(run))
        position = await self._store.insert(admitted.run, admitted.order, digest, event, admitted.parts)
        size = sum(map(len, admitted.parts.values()))
        active = self._active(admitted.run, admitted.order, position, 0, clock, size)
        active.log.publish([event])
        self._dispatcher.add(active)
        return run

    def _active(
        self,
        run: Run,
        order: ExecutionOptions,
        position: int,
        last_sequence: int,
        clock: Clock,
        parts_size: int,
    ) -> ActiveRun:
        run_context = RunContext(run.run_id, order.origin, self._observers)
        log = RunLog(self._store, position, last_sequence, ended=False, clock=clock, run_context=run_context)
        return ActiveRun(run, order, log, parts_size, self._delivery, run_context)

    def _recovered(self, row: RunRecord, clock: Clock, parts_size: int) -> ActiveRun:
        return self._active(row.run, row.order, row.position, row.last_sequence, clock, parts_size)
