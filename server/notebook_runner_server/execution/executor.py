"""Executes one run in a worker: kernel, cells, limits, and an end that leaves no process behind."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path

from nbclient.exceptions import CellExecutionError

from notebook_runner_server.confinement.environment import OWN_PREFIX
from notebook_runner_server.execution import failures, input_files
from notebook_runner_server.execution import notebook as notebooks
from notebook_runner_server.execution.failures import cut, plain
from notebook_runner_server.execution.interface import (
    Cause,
    Ended,
    ExecutionEvent,
    Failure,
    Job,
    KernelReady,
)
from notebook_runner_server.execution.kernel import Kernel, KernelDiedError
from notebook_runner_server.execution.kernel_client import UnfitKernelError
from notebook_runner_server.execution.options import WorkerOptions
from notebook_runner_server.execution.processes import (
    ReapedProcesses,
    processor_seconds,
    reader_of_terminal,
    run_processes,
)
from notebook_runner_server.execution.recorder import StreamingNotebookClient
from notebook_runner_server.execution.shared_memory import SharedMemory
from notebook_runner_server.execution.warm.forking import ForkServerError
from notebook_runner_server.execution.warm.pool import WarmPool
from notebook_runner_server.execution.watchdog import OomKills, Watchdog

MAX_WARM_TRIES = 2
"""Warm kernels that a run tries: more would fail too, for example because its folder is gone."""


class _StoppedError(Exception):
    """The run is being stopped, and the next cell must not start."""


class RunExecutor:
    """Executes one job: `run` on the main thread, `stop` and `kill_now` from any thread.

    Args:
        job: What to execute.
        options: The options of the worker.
        warm_pool: The kernels that are ready.
        emit: Called with each event, in order, from the main thread; may block while nobody reads.
    """

    def __init__(
        self, job: Job, options: WorkerOptions, warm_pool: WarmPool, emit: Callable[[ExecutionEvent], None]
    ) -> None:
        self.run_id = job.run_id
        self._job = job
        self._options = options
        self._warm_pool = warm_pool
        own = {OWN_PREFIX + "RUN_ID": job.run_id, OWN_PREFIX + "RUN_DIR": job.run_folder}
        self._variables = {**job.environment, **own}
        self._emit = emit
        self._oom_kills = OomKills()
        self._shared = SharedMemory(is_alone=options.is_alone, folders=(options.folder, Path(job.run_folder)))
        self._lock = threading.Lock()
        # The first cause wins.
        self._failure: Failure | None = None
        self._killed: set[int] = set()
        # Processor seconds that the run's kernel had used before it was the run's.
        self._used_before = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = threading.Event()
        self._wake = asyncio.Event()
        self._kernel: Kernel | None = None
        self._ready = False
        self._client: StreamingNotebookClient | None = None
        self._cell: tuple[int | None, str] = (None, "")
        # Timers, which end the run after its grace period even while the main thread is busy.
        self._deadlines: list[threading.Timer] = []
        self._ended = False
        # The last cell ended after a stop: its error is the interrupt, or comes from clean-up.
        self._cell_was_stopped = False
        self._cell_timer: asyncio.TimerHandle | None = None
        self._silence_timer: asyncio.TimerHandle | None = None
        self._last_output = 0.0

    def stop(self, cause: Cause, grace_period: float) -> None:
        """End the run for a cause: now, or after an interrupt and time for the cell to clean up.

        Returns immediately.

        Args:
            cause: The cause in the run's failure.
            grace_period: Seconds that the cell may take after the interrupt; zero: no interrupt.
        """
        self._stop(
            Failure(cause, failures.MESSAGES[cause].format(self._job.limits), *self._cell), grace_period
        )

    def _stop(self, failure: Failure, grace_period: float) -> None:
        self._set_failure(failure)
        if not grace_period:
            self.kill_now()
            return
        self._call_soon(self._interrupt)
        end = threading.Timer(grace_period, self._grace_ended)
        end.daemon = True
        with self._lock:
            # A run may have several; the first one ends it.
            if not self._ended:
                self._deadlines.append(end)
                end.start()

    def _grace_ended(self) -> None:
        with self._lock:
            if not self._ended:
                self._stopped.set()
                self._call_soon(self._wake.set)
                # Under the lock, so that it cannot reach the next run.
                self._kill()

    def kill_now(self) -> None:
        """Kill every process of the run, whatever the main thread is doing."""
        self._stopped.set()
        self._call_soon(self._wake.set)
        self._kill()

    def _kill(self) -> None:
        self._shared.look(run_processes.peek)
        self._killed.update(run_processes.kill())

    def _call_soon(self, function: Callable[[], None]) -> None:
        # The loop of a run that has ended is closed.
        with contextlib.suppress(RuntimeError):
            if self._loop is not None:
                self._loop.call_soon_threadsafe(function)

    async def run(self) -> None:
        """Execute the job; the last event is `Ended`, sent when no process of the run is left."""
        self._loop = asyncio.get_running_loop()
        run_processes.reaped = ReapedProcesses()
        limits = self._job.limits
        watchdog = Watchdog(limits.memory_bytes, limits.processes, self._shared, self._exceeded)
        timer = self._limit(limits.run_timeout, Cause.RUN_TIMEOUT)
        if self._stopped.is_set():
            self._wake.set()
        work = asyncio.ensure_future(self._execute())
        wake = asyncio.ensure_future(self._wake.wait())
        await asyncio.wait({work, wake}, return_when=asyncio.FIRST_COMPLETED)
        if self._stopped.is_set():
            self.kill_now()
            if self._kernel is not None:
                await self._kernel.drain(work)
        wake.cancel()
        work.cancel()
        outcome = (await asyncio.gather(work, return_exceptions=True))[0]
        if timer is not None:
            timer.cancel()
        watchdog.close()
        watchdog.measure(run_processes.peek())
        self._end(outcome, watchdog.peak_bytes)

    def _exceeded(self, cause: Cause, message: str) -> None:
        self._set_failure(Failure(cause, message, *self._cell))
        self.kill_now()

    def _end(self, outcome: BaseException | None, peak_bytes: int) -> None:
        self._cancel_deadlines()
        if outcome is not None:
            self._set_failure(self._failure_of(outcome))
        self._add_interrupt_traceback()
        self._kill()
        self._shared.remove()
        run_processes.paused = True
        if self._kernel is not None:
            self._kernel.remove()
        peak_bytes = max(peak_bytes, run_processes.reaped.peak_bytes)
        self._emit(Ended(self._failure, len(self._killed), peak_bytes, self._cpu_seconds()))
        if self._kernel is not None:
            self._kernel.close()
        self._warm_pool.resume()

    def _cpu_seconds(self) -> float | None:
        """Return the processor time of the run, whose processes are all reaped; None: unknown."""
        reaped = run_processes.reaped
        if self._kernel is not None and self._kernel.pid not in reaped:
            # On another machine, or jupyter_client has reaped it.
            return None
        return max(0.0, reaped.cpu_seconds - self._used_before)

    def _cancel_deadlines(self) -> None:
        with self._lock:
            self._ended = True
        for one in self._deadlines:
            one.cancel()

    async def _execute(self) -> None:
        kernel, is_warm = await self._get_kernel()
        self._ready = True
        notebook = notebooks.decode(self._job.notebook)
        self._client = client = StreamingNotebookClient(
            notebook,
            emit=self._emit,
            on_output=self._on_output,
            before_cell=self._before_cell,
            after_cell=self._after_cell,
            explain=kernel.explain,
            km=kernel.manager,
            limits=self._job.limits,
            content_bytes=self._job.display_data_bytes,
            kernel_name=self._job.kernel_name,
            allow_errors=self._job.allow_errors,
        )
        client.kc = kernel.client
        self._emit(KernelReady(is_warm))
        try:
            await client.async_execute()
        finally:
            # Widget state is complete only after the last cell, and needed after a failure as well.
            client.emit_tail()

    async def _get_kernel(self) -> tuple[Kernel, bool]:
        """Take a warm kernel (true), or start one; a warm kernel may have died."""
        for _ in range(MAX_WARM_TRIES):
            warm = await self._warm_pool.take(self._job.kernel_name, self._variables)
            if warm is None:
                break
            self._kernel = warm
            self._used_before += processor_seconds(warm.pid)
            try:
                await warm.assign(
                    self._job.working_folder, self._variables, self._job.run_folder, self._job.files
                )
                await self._connect(warm)
            except (UnfitKernelError, ForkServerError, TimeoutError) as error:
                if self._stopped.is_set():
                    raise _StoppedError from error
                self._warm_pool.report_unfit(warm, error)
            else:
                return warm, True
            run_processes.kill()
            self._kernel = None
            warm.close()
        self._kernel = kernel = Kernel(
            self._job.kernel_name, self._options.folder, policy=self._options.sandbox_policy
        )
        run_processes.paused = True
        own = Path(self._job.working_folder), Path(self._job.run_folder)
        input_files.write(own[1], self._job.files)
        await kernel.launch(self._job.working_folder, self._variables, own)
        try:
            await self._connect(kernel)
        except KernelDiedError:
            self._kernel_died()
            raise
        return kernel, False

    async def _connect(self, kernel: Kernel) -> None:
        run_processes.kernel = kernel.pid
        run_processes.paused = False
        run_processes.reap()
        address_space = self._job.limits.memory_bytes if self._options.limit_address_space else 0
        died = await kernel.connect(address_space)
        died.add_done_callback(lambda _: self._kernel_died())

    def _before_cell(self, index: int, cell_id: str) -> None:
        if self._failure is not None:
            raise _StoppedError
        self._cell = (index, cell_id)
        self._cell_timer = self._limit(self._job.limits.cell_timeout, Cause.CELL_TIMEOUT)
        self._last_output = time.monotonic()
        self._watch_silence()

    def _after_cell(self) -> bool:
        for timer in (self._cell_timer, self._silence_timer):
            if timer is not None:
                timer.cancel()
        self._cell_was_stopped = self._failure is not None
        return self._cell_was_stopped

    def _on_output(self) -> None:
        self._last_output = time.monotonic()

    def _watch_silence(self) -> None:
        """Check again when the limit is reached unless output comes, without a timer per output."""
        limit = self._job.limits.output_timeout
        if not limit:
            return
        rest = self._last_output + limit - time.monotonic()
        if rest > 0:
            self._silence_timer = asyncio.get_running_loop().call_later(rest, self._watch_silence)
        else:
            self._time_out(Cause.OUTPUT_TIMEOUT)

    def _limit(self, seconds: float, cause: Cause) -> asyncio.TimerHandle | None:
        if not seconds:
            return None
        loop = asyncio.get_running_loop()
        return loop.call_later(seconds, self._time_out, cause)

    def _time_out(self, cause: Cause) -> None:
        message = failures.MESSAGES[cause].format(self._job.limits)
        # Before the interrupt, which ends the reading process.
        if name := reader_of_terminal(run_processes.peek()):
            message += failures.WAITS_FOR_INPUT.format(name)
        self._stop(Failure(cause, message, *self._cell), self._options.interrupt_grace)

    def _interrupt(self) -> None:
        if self._kernel is not None and self._ready:
            task = asyncio.ensure_future(self._kernel.interrupt())
            task.add_done_callback(lambda done: done.exception())
        else:
            self.kill_now()

    def _kernel_died(self) -> None:
        kernel = self._kernel
        assert kernel is not None  # noqa: S101 - it watches itself
        out_of_memory = self._oom_kills.happened()
        kernel.reap(run_processes.wait)
        how = kernel.exit_code(), kernel.log_tail()
        self._set_failure(
            failures.kernel_failure(*how, *self._cell, ready=self._ready, out_of_memory=out_of_memory)
        )
        self.kill_now()

    def _set_failure(self, failure: Failure) -> None:
        with self._lock:
            self._failure = self._failure or failure

    def _add_interrupt_traceback(self) -> None:
        """Add the traceback of the interrupt to the failure of a run that was stopped."""
        error = self._client.error if self._client else None
        failure = self._failure
        if failure is not None and error is not None and self._cell_was_stopped:
            self._failure = dataclasses.replace(failure, traceback=failures.bounded(error.traceback))

    def _failure_of(self, error: BaseException) -> Failure:
        if isinstance(error, CellExecutionError) and self._client and self._client.error:
            cell_error, folder = self._client.error, self._job.run_folder
            hint = failures.missing_file_hint(cell_error, folder) if self._job.is_private else ""
            return failures.cell_failure(cell_error, *self._cell, hint)
        if not self._ready:
            log = self._kernel.log_tail() if self._kernel else ""
            message = cut(plain(f"The kernel did not start: {error}"))
            return Failure(Cause.KERNEL_NOT_READY, message, traceback=log)
        return failures.worker_failure(error, *self._cell)
