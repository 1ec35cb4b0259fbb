"""The default backend: worker processes on this machine, each in a `ProcessPoolExecutor` of its own.

A pool breaks as a whole when one of its processes dies, so every worker has its own pool: the death of one
fails one run and no other. A dead worker's pool is replaced before the next run.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from pathlib import Path

from notebook_runner_server import folder_tree
from notebook_runner_server.confinement import confine
from notebook_runner_server.confinement.environment import scrubbed_environ
from notebook_runner_server.confinement.policy import SandboxConfig, SandboxPolicy, missing, rules
from notebook_runner_server.execution import worker_protocol
from notebook_runner_server.execution.failures import describe_exit
from notebook_runner_server.execution.interface import (
    Cause,
    Ended,
    ExecutionEvent,
    Failure,
    Job,
    WarmCounts,
)
from notebook_runner_server.execution.options import WarmKernels, WorkerOptions
from notebook_runner_server.execution.processes import KILL_DEADLINE
from notebook_runner_server.execution.runtime_dir import RuntimeDir
from notebook_runner_server.execution.warm.languages import LANGUAGES
from notebook_runner_server.execution.worker_process import WorkerProcess, kill_orphans, safe_path

_log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
"""Seconds until the start of a worker that failed is tried again."""

CHECK_SECONDS = 1.0
"""Seconds between two checks of the folder for kernel sockets."""

STUCK_SECONDS = KILL_DEADLINE + 5.0
"""Seconds that a worker may take to end a run before the server kills the worker."""


class PoolRun:
    """A run in a worker."""

    def __init__(self, backend: ProcessPoolBackend, worker: WorkerProcess, job: Job) -> None:
        assert worker.connection is not None  # noqa: S101 - it was started
        self._backend = backend
        self._worker = worker
        self._connection = worker.connection
        self._run_id = job.run_id
        self._done: Future[None] | None = None
        self._stuck: asyncio.TimerHandle | None = None
        self._stop_cause: Cause | None = None
        self._ended = False
        with contextlib.suppress(BrokenProcessPool):
            self._done = worker.submit(job)

    async def events(self) -> AsyncGenerator[Sequence[ExecutionEvent]]:
        """Yield the worker's events; if the worker dies, the `Ended` that it cannot send."""
        ended = False
        try:
            while not ended:
                batch = await self._connection.receive() if self._done else []
                self._ended = ended = bool(batch) and isinstance(batch[-1], Ended)
                if batch:
                    yield batch
                if not ended and (self._done is None or self._connection.closed):
                    yield [await self._after_death()]
                    ended = True
            await self._wait_until_idle()
        finally:
            self._ended = True
            self._cancel_stuck()
            if not ended:
                # Without a reader nobody would learn how the run ends.
                self._worker.kill()
                self._worker.broken = True
            self._backend.release(self._worker, self)

    def stop(self, cause: Cause, grace_period: float) -> None:
        """Send the command to the worker, and kill the worker if it does not carry it out in time."""
        if self._ended:
            # By the time of the kill the worker may have another run.
            return
        self._stop_cause = self._stop_cause or cause
        self._connection.send(worker_protocol.Stop(self._run_id, cause, grace_period))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_period + STUCK_SECONDS
        if self._stuck is None or deadline < self._stuck.when():
            self._cancel_stuck()
            self._stuck = loop.call_at(deadline, self._worker.kill)

    def set_deadline(self, moment: float) -> None:
        """Have the worker end the run at a moment of the monotonic clock, unless another deadline follows."""
        self._connection.send(worker_protocol.Deadline(self._run_id, moment))

    def _cancel_stuck(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()

    async def _wait_until_idle(self) -> None:
        """Wait until the worker can take another job."""
        if self._done is not None:
            try:
                await asyncio.wrap_future(self._done)
            except BrokenProcessPool:
                self._worker.broken = True

    async def _after_death(self) -> Ended:
        """Kill the processes that the dead worker left, and return how the run ended."""
        self._worker.broken = True
        self._worker.kill()
        killed = await asyncio.to_thread(self._worker.kill_rest)
        if self._stop_cause is not None:
            # The worker had to end the run, which has ended with it.
            return Ended(
                Failure(self._stop_cause, "The run was ended together with its worker process."), len(killed)
            )
        how, name, code = describe_exit(await asyncio.to_thread(self._worker.exit_code))
        failure = Failure(Cause.WORKER_DIED, f"The worker process {how}.", signal=name, exit_code=code)
        return Ended(failure, len(killed))


class ProcessPoolBackend:
    """Executes runs in worker processes of this machine.

    Args:
        workers: Number of workers, and so of concurrent runs.
        link: A symbolic link in a folder that only this backend uses; it shows what to remove after a
            server that was killed.
        limit_address_space: Limit the kernel's address space to a run's memory limit as well.
        interrupt_grace: Seconds that a cell may take after the interrupt at a time limit; zero: no interrupt.
        warm: The warm kernels of each worker.
        sandbox: The sandbox of kernels, which may not read the folder of the link.
        has_user: Whether no other program of this user runs below this process (a Dask worker may have
            some), so that new shared memory belongs to the run.
    """

    survives_restart = False

    def __init__(
        self,
        workers: int,
        link: Path,
        *,
        limit_address_space: bool = False,
        interrupt_grace: float = 0.0,
        warm: WarmKernels | None = None,
        sandbox: SandboxConfig | None = None,
        has_user: bool = False,
    ) -> None:
        self.capacity = workers
        self._is_alone = has_user and workers == 1
        self.worker_deaths = 0
        self._runtime_dir = RuntimeDir(link)
        self._state = link.parent
        self._sandbox = sandbox or SandboxConfig()
        self._policy: SandboxPolicy | None = None
        self._limit_address_space = limit_address_space
        self._interrupt_grace = interrupt_grace
        self._warm = warm or WarmKernels()
        self._spawned: list[WorkerProcess] = []
        self._runs: set[PoolRun] = set()
        self._deadline: float | None = None
        self._idle: asyncio.Queue[WorkerProcess] = asyncio.Queue()
        self._next: WorkerProcess | None = None
        self._workers: set[WorkerProcess] = set()
        self._replacements: set[asyncio.Task[None]] = set()
        self._kernels: Mapping[str, str] = {}
        self._checking: asyncio.Task[None] | None = None
        # Why the folder for sockets is missing, and why the last worker could not be started.
        self._folder_problem = self._worker_problem = ""

    @property
    def problem(self) -> str:
        """Why no run can start now, as a sentence; empty: runs can start."""
        return self._folder_problem or ("" if self._workers else self._worker_problem)

    @property
    def kernels(self) -> Mapping[str, str]:
        """The kernelspecs of the newest worker with their languages."""
        return self._kernels

    @property
    def warm_counts(self) -> Mapping[str, WarmCounts]:
        """The warm kernels of all workers, by kernelspec."""
        # Called from other threads, too.
        workers = tuple(self._workers)
        return {
            name: WarmCounts(
                ready=sum(worker.kernels_ready.get(name, 0) for worker in workers),
                wanted=count * self.capacity,
            )
            for name, count in self._warm.counts.items()
        }

    def spawn(self) -> None:
        """Create the worker processes, so that they import what they need before `start` is called.

        They know of no folder yet: a server that is refused has changed nothing.

        Raises:
            OSError: A process cannot be created.
        """
        # Python starts it together with the workers, with the whole environment of this process.
        with scrubbed_environ(self._sandbox.kernel_environment), safe_path():
            resource_tracker.ensure_running()
        while len(self._spawned) < self.capacity:
            self._spawned.append(self._spawn_one())

    def _spawn_one(self) -> WorkerProcess:
        return WorkerProcess(self._sandbox.kernel_environment, hide=self._sandbox.is_on)

    async def start(self) -> None:
        """Start the workers.

        Raises:
            BrokenProcessPool: One did not start.
            ValueError: A kernel cannot be kept warm, or the sandbox is not available.
        """
        # Processes that a dead worker leaves are handed to this process, which kills them.
        confine.become_subreaper()
        self.spawn()
        self._runtime_dir.open()
        self._set_up_sandbox()
        await asyncio.gather(*(self._add() for _ in range(self.capacity)))
        self._check_warm()
        self._checking = asyncio.create_task(self._watch_runtime_dir())

    async def _watch_runtime_dir(self) -> None:
        """Recreate the folder for kernel sockets whenever it disappears."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            about = {"folder": str(self._runtime_dir.folder)}
            try:
                if self._runtime_dir.restore():
                    _log.error("runtime_dir_recreated", extra=about)
                self._folder_problem = ""
            except OSError as error:
                if not self._folder_problem:
                    _log.error(
                        "runtime_dir_lost",
                        extra={**about, "why": str(error)},
                    )
                self._folder_problem = f"Cannot create the folder for kernel sockets: {error}"
            except Exception:  # noqa: BLE001 - the next check may succeed
                _log.exception("runtime_dir_check_failed")

    def _set_up_sandbox(self) -> None:
        self._policy = self._sandbox.policy(self._state, self._runtime_dir.folder)
        protections = self._sandbox.protections(self._policy)
        if self._policy is not None:
            # A path without a possible rule is an error now rather than in the first run.
            rules(self._policy, ()).ruleset.close()
            for folder in missing(self._policy):
                _log.warning("writable_folder_missing", extra={"folder": str(folder)})
        event = "sandbox_active" if self._sandbox.is_on else "sandbox_off"
        lacking = self._sandbox.is_on and (not protections["signals"] or protections["exposed"])
        _log.log(logging.WARNING if lacking else logging.INFO, event, extra=protections)
        # An earlier server may have left it.
        folder_tree.remove_if_possible(self._state / "places")
        if self._policy is not None:
            self._policy.staging_folder.mkdir(mode=0o700)

    async def wait_for_worker(self) -> None:
        """Wait until a worker is free, and reserve it for the next `submit`."""
        while self._next is None or self._next.connection is None or self._next.connection.closed:
            if self._next is not None:
                # It died while idle. The caller may stop waiting for the next one.
                dead, self._next = self._next, None
                dead.broken = True
                self.release(dead)
            self._next = await self._idle.get()

    def submit(self, job: Job) -> PoolRun:
        """Execute a job on the worker that `wait_for_worker` reserved."""
        worker, self._next = self._next, None
        if worker is None:
            raise RuntimeError("submit was called without wait_for_worker")
        run = PoolRun(self, worker, job)
        self._runs.add(run)
        if self._deadline is not None:
            run.set_deadline(self._deadline)
        return run

    def set_deadline(self, moment: float) -> None:
        """Have the workers end their runs at a moment, also if this process does nothing then."""
        self._deadline = moment
        for run in self._runs:
            run.set_deadline(moment)

    def find(self, run_id: str, mark: int) -> None:
        """Return None: runs of an earlier server have ended with it."""

    def leave(self) -> None:
        """Do nothing: no run survives the server."""

    def release(self, worker: WorkerProcess, run: PoolRun | None = None) -> None:
        """Take a worker back after its run, and replace a broken one."""
        if run is not None:
            self._runs.discard(run)
        if worker.broken:
            self.worker_deaths += 1
            task = asyncio.ensure_future(self._replace(worker))
            self._replacements.add(task)
            task.add_done_callback(self._replacements.discard)
        else:
            self._idle.put_nowait(worker)

    async def close(self) -> None:
        """End every worker with all processes below this one."""
        tasks = [*self._replacements, *([self._checking] if self._checking is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(worker.close() for worker in (*self._workers, *self._spawned)))
        await asyncio.to_thread(kill_orphans)
        self._runtime_dir.close()

    async def _add(self) -> None:
        options = WorkerOptions(
            self._runtime_dir.subfolder(),
            limit_address_space=self._limit_address_space,
            interrupt_grace=self._interrupt_grace,
            warm=self._warm,
            hide=self._sandbox.is_on,
            sandbox_policy=self._policy,
            is_alone=self._is_alone,
        )
        worker = self._spawned.pop() if self._spawned else self._spawn_one()
        try:
            await worker.start(options)
        except BaseException:
            await worker.close()
            raise
        self._worker_problem = ""
        self._workers.add(worker)
        self._kernels = worker.info.kernels
        self._idle.put_nowait(worker)

    def _check_warm(self) -> None:
        for name in self._warm.counts if self._warm.required else ():
            if name not in self._kernels:
                known = ", ".join(sorted(self._kernels))
                raise ValueError(f"--warm-kernels: unknown kernelspec {name!r}. Available: {known}.")
            if self._kernels[name].lower() not in LANGUAGES:
                raise ValueError(
                    f"--warm-kernels: the kernelspec {name!r} has the language {self._kernels[name]!r}; "
                    f"kernels of these can be kept warm: {', '.join(LANGUAGES)}."
                )

    async def _replace(self, worker: WorkerProcess) -> None:
        self._workers.discard(worker)
        await worker.close()
        await asyncio.to_thread(worker.kill_rest)
        while True:
            try:
                return await self._add()
            except (BrokenProcessPool, OSError) as error:
                # Memory or processes are exhausted: runs wait.
                if not self._worker_problem:
                    _log.error("worker_start_failed", extra={"why": str(error)})
                self._worker_problem = f"Cannot start a worker: {error}"
                await asyncio.sleep(RETRY_SECONDS)
