"""The program of a worker process: jobs on the main thread, commands of the server on another one.

The connection to the server is the worker's lifeline: when it ends, because the server was closed or died,
the worker ends every process below it, and itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from typing import NoReturn

# Imported before the first job, so that no run waits for imports.
from notebook_runner_server import folder_tree, memory
from notebook_runner_server.confinement import confine
from notebook_runner_server.confinement.environment import scrub_environ
from notebook_runner_server.execution.executor import RunExecutor
from notebook_runner_server.execution.interface import (
    Cause,
    CellEvent,
    DisplayOutput,
    Job,
    KernelReady,
    SegmentChunk,
)
from notebook_runner_server.execution.kernel_specs import KernelSpecs
from notebook_runner_server.execution.options import WorkerOptions
from notebook_runner_server.execution.processes import (
    ProcessesLeftError,
    kill_descendants,
    run_processes,
)
from notebook_runner_server.execution.warm.pool import WarmPool
from notebook_runner_server.execution.worker_protocol import (
    Deadline,
    KernelsReady,
    Stop,
    WorkerInfo,
    WorkerLog,
)

LONGEST_WAIT = 3600.0

SMALL_SEGMENT = 64 * 1024
"""Bytes of a segment, or of the content of a display, that is sent together with what comes next."""


class _Worker:
    """Executes the jobs of this process one at a time, and the commands for the current one.

    A command is carried out under the lock, and a job ends under it, so that no command for one job can reach
    the next.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._options: WorkerOptions | None = None
        self._warm_pool: WarmPool | None = None
        self._sending = threading.RLock()
        self._held: list[object] = []
        self._is_flush_due = False
        self._lock = threading.RLock()
        self._jobs: queue.SimpleQueue[RunExecutor] = queue.SimpleQueue()
        self._executor: RunExecutor | None = None
        self._deadline: Deadline | None = None

    def open(self, options: WorkerOptions, languages: Mapping[str, str]) -> None:
        """Take the options, before the first job, and start the warm kernels.

        Args:
            options: The options.
            languages: The kernelspecs with their languages.
        """
        self._options = options
        self._warm_pool = WarmPool(
            options.warm, options.folder, options.sandbox_policy, options.hide, self._log, self._counted
        )
        self._warm_pool.start(languages)

    def execute(self) -> None:
        executor = self._jobs.get()
        try:
            asyncio.run(executor.run())
        except BaseException:  # noqa: BLE001 - this process must not execute another run
            traceback.print_exc()
            self.terminate()
        with self._lock:
            self._executor = self._deadline = None

    def _send(self, message: object) -> None:
        # What belongs to one turn of the event loop is sent together, because the server stores each message
        # in a transaction. The turn ends as soon as the kernel has sent no more.
        with self._sending:
            self._held.append(message)
            if _is_small(message):
                if not self._is_flush_due:
                    self._is_flush_due = True
                    asyncio.get_running_loop().call_soon(self._flush)
            else:
                self._flush()

    def _flush(self) -> None:
        with self._sending:
            held, self._held, self._is_flush_due = self._held, [], False
            if held:
                self._connection.send(held)

    def _log(self, level: int, event: str, **fields: str | int) -> None:
        # Without a server nobody reads the log.
        with contextlib.suppress(OSError):
            self._send(WorkerLog(level, event, fields))

    def _counted(self, counts: Mapping[str, int]) -> None:
        with contextlib.suppress(OSError):
            self._send(KernelsReady(counts))

    def serve_commands(self) -> NoReturn:
        """Take jobs and carry out commands until the connection ends; then end all, and this process."""
        try:
            with contextlib.suppress(EOFError, OSError):
                while True:
                    self._serve_command()
        finally:
            self.terminate()

    def _serve_command(self) -> None:
        command = self._connection.recv() if self._connection.poll(self._remaining()) else None
        # The job itself tries again to kill what is left, before it reports its end.
        with self._lock, contextlib.suppress(ProcessesLeftError):
            match command:
                case Job():
                    assert self._options is not None and self._warm_pool is not None  # noqa: S101, PT018 - it said hello
                    self._executor = RunExecutor(command, self._options, self._warm_pool, self._send)
                    self._jobs.put(self._executor)
                case Deadline():
                    self._deadline = command
                case Stop():
                    self._stop(command)
                case None if self._deadline is not None and time.monotonic() >= self._deadline.moment:
                    self._stop(Stop(self._deadline.run_id, Cause.SERVER_DIED, 0.0))
                    self._deadline = None

    def _stop(self, command: Stop) -> None:
        # A command may come after its run has ended.
        if self._executor is not None and self._executor.run_id == command.run_id:
            self._executor.stop(command.cause, command.grace_period)

    def terminate(self) -> NoReturn:
        """Kill every process below this one, then exit."""
        try:
            kill_descendants(os.getpid())
            if self._options is not None:
                folder_tree.remove_if_possible(self._options.folder)
        finally:
            os._exit(1)

    def _remaining(self) -> float:
        """Return how long to wait for a command, in seconds; poll() takes no more than some weeks."""
        with self._lock:
            rest = LONGEST_WAIT if self._deadline is None else self._deadline.moment - time.monotonic()
        return max(0.0, min(rest, LONGEST_WAIT))


def _is_small(message: object) -> bool:
    """Return whether a message is an event that can wait for the end of the turn."""
    match message:
        case SegmentChunk(data=data):
            return len(data) <= SMALL_SEGMENT
        case DisplayOutput(contents=contents):
            return sum(len(content) for _, content in contents) <= SMALL_SEGMENT
    return isinstance(message, CellEvent | KernelReady)


_worker: _Worker | None = None


def initialize(connection: Connection, kernel_environment: Iterable[str]) -> None:
    """Prepare this process, and end it with the connection.

    Args:
        connection: The connection to the server.
        kernel_environment: Names of variables to pass to kernels in addition to the usual ones.
    """
    scrub_environ(kernel_environment)
    # A notebook that the server could read within its recursion limit must be readable here.
    sys.setrecursionlimit(10 * sys.getrecursionlimit())
    global _worker  # noqa: PLW0603 - a worker process is one worker
    # Ctrl-C in a terminal is for the server, which then ends the runs. The session stays the server's, which
    # tells a worker from the processes of a dead one.
    os.setpgid(0, 0)
    # Not SIG_IGN, which a kernel would inherit.
    signal.signal(signal.SIGINT, lambda *_: None)
    confine.become_subreaper()
    run_processes.install()
    # The events of a run report its errors; nbclient's log would repeat them.
    logging.disable(logging.CRITICAL)
    _worker = _Worker(connection)
    # When the pool is shut down, the main thread must not end this process while the other one has stopped
    # the processes below it, and not yet killed them: they would stay, stopped.
    Finalize(None, _worker.terminate, exitpriority=0)
    threading.Thread(target=_worker.serve_commands, name="commands", daemon=True).start()


def hello(options: WorkerOptions) -> WorkerInfo:
    """Make this process a worker, and return what it is."""
    specs = KernelSpecs().get_all_specs()
    languages = {name: spec["spec"].get("language", "") for name, spec in specs.items()}
    assert _worker is not None  # noqa: S101 - the pool has initialized it
    _worker.open(options, languages)
    return WorkerInfo(os.getpid(), languages)


def settle() -> None:
    """Do what would delay the first job: the first use of asyncio takes time."""
    asyncio.run(asyncio.sleep(0))
    memory.settle()


def execute() -> None:
    """Execute the next job of the connection; its events go over the connection."""
    assert _worker is not None  # noqa: S101 - the pool has initialized it
    _worker.execute()
