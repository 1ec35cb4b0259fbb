"""What runs inside a worker process: jobs on the main thread, orders of the server on another.

The connection to the server is the worker's lifeline: when it ends, because the server was closed or died,
the worker ends every process below it, and itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from typing import NoReturn

# Imported before the first job, so that no run waits for it.
from notebook_runner_server import folder_tree
from notebook_runner_server.confinement import confine
from notebook_runner_server.confinement.environment import scrub_environ
from notebook_runner_server.execution import executor as hosts
from notebook_runner_server.execution.interface import Cause, CellChunk, CellFinished, Job
from notebook_runner_server.execution.options import WorkerOptions
from notebook_runner_server.execution.processes import (
    ProcessesLeftError,
    kill_descendants,
)
from notebook_runner_server.execution.run_processes import tree
from notebook_runner_server.execution.warm.pool import WarmPool
from notebook_runner_server.execution.worker_protocol import (
    Deadline,
    KernelsReady,
    Stop,
    WorkerInfo,
    WorkerLog,
)

LONGEST_WAIT = 3600.0

SMALL_PART = 64 * 1024
"""Bytes of a part that is sent together with what comes next."""


class _Worker:
    """The jobs of this process, one at a time, and the orders for the one that is executed.

    An order is carried out under the lock, and a job ends under it, so that no order for one job can reach
    the next.
    """

    def __init__(self, connection: Connection, options: WorkerOptions) -> None:
        self._connection = connection
        self._options = options
        self._sending = threading.RLock()
        self._held: list[object] = []
        self.reserve = WarmPool(
            options.warm, options.folder, options.confinement, options.hide, self._notice, self._counted
        )
        self._lock = threading.RLock()
        self._run_id = ""
        self._host: hosts.RunExecutor | None = None
        # An order that overtook its job.
        self._early: Stop | None = None
        self._until: Deadline | None = None

    def execute(self, job: Job) -> None:
        with self._lock:
            self._run_id = job.run_id
        try:
            hosts.host(job, self._options, self.reserve, self._send, self._made)
        except BaseException:  # noqa: BLE001 - whatever it was, this process is not fit for another run
            traceback.print_exc()
            self.terminate()
        with self._lock:
            self._host, self._run_id, self._early, self._until = None, "", None, None

    def _send(self, message: object) -> None:
        # A small part goes with the event that tells of it, and a cell's end with the next one's start: each
        # is one message less to wake the server, and one commit less.
        with self._sending:
            self._held.append(message)
            if isinstance(message, CellFinished):
                # The next cell starts in the same turn of the event loop, if there is one.
                asyncio.get_running_loop().call_soon(self._flush)
            elif not isinstance(message, CellChunk) or len(message.data) > SMALL_PART:
                self._flush()

    def _flush(self) -> None:
        with self._sending:
            held, self._held = self._held, []
            if held:
                self._connection.send(held)

    def _notice(self, level: int, event: str, **fields: str | int) -> None:
        # Without a server there is nobody to be told.
        with contextlib.suppress(OSError):
            self._send(WorkerLog(level, event, fields))

    def _counted(self, counts: Mapping[str, int]) -> None:
        with contextlib.suppress(OSError):
            self._send(KernelsReady(counts))

    def _made(self, host: hosts.RunExecutor) -> None:
        with self._lock:
            self._host = host
            if self._early is not None:
                self._stop(self._early)

    def serve_commands(self) -> NoReturn:
        """Carry out the server's orders, until the connection ends; then end all, and this process."""
        try:
            with contextlib.suppress(EOFError, OSError):
                while True:
                    self._serve_command()
        finally:
            self.terminate()

    def _serve_command(self) -> None:
        ordered = self._connection.poll(self._remaining())
        order = self._connection.recv() if ordered else None
        # What cannot be ended is tried again by the job itself, before it says that it has ended.
        with self._lock, contextlib.suppress(ProcessesLeftError):
            if isinstance(order, Deadline):
                self._until = order
            elif order is not None:
                self._stop(order)
            else:
                self._end_overdue()

    def _end_overdue(self) -> None:
        if self._until is not None and time.monotonic() >= self._until.moment:
            run_id, self._until = self._until.run_id, None
            self._stop(Stop(run_id, Cause.SERVER_DIED, 0.0))

    def terminate(self) -> NoReturn:
        """End every process below this one, then this one."""
        try:
            kill_descendants(os.getpid())
            folder_tree.remove_if_possible(self._options.folder)
        finally:
            os._exit(1)

    def _remaining(self) -> float:
        """Return how long to wait for an order, in seconds; poll() takes no more than some weeks."""
        with self._lock:
            rest = LONGEST_WAIT if self._until is None else self._until.moment - time.monotonic()
        return max(0.0, min(rest, LONGEST_WAIT))

    def _stop(self, order: Stop) -> None:
        if order.run_id != self._run_id or self._host is None:
            self._early = order
            return
        self._host.stop(order.cause, order.grace_period)


_worker: _Worker | None = None


def initialize(connection: Connection, options: WorkerOptions) -> None:
    """Make this process a worker; the process pool's initializer.

    Args:
        connection: To the server.
        options: What the server tells it once.
    """
    if options.hide:
        confine.set_dumpable(False)
    scrub_environ(options.kernel_environment)
    # What the server could read at Start, with its limit, must not be nested too deep here.
    sys.setrecursionlimit(10 * sys.getrecursionlimit())
    global _worker  # noqa: PLW0603 - a worker process is one worker
    # A terminal's Ctrl-C is for the server, which then says what is to end. The session stays the
    # server's: that tells a worker from what a dead worker has left.
    os.setpgid(0, 0)
    # Not SIG_IGN, which a kernel would inherit.
    signal.signal(signal.SIGINT, lambda *_: None)
    confine.become_subreaper()
    tree.install()
    # What goes wrong in a run is told by its events; nbclient's log would repeat it.
    logging.disable(logging.CRITICAL)
    _worker = _Worker(connection, options)
    # When the pool is shut down, the main thread must not end this process while the other one has stopped
    # the processes below it, and not yet killed them: they would stay, stopped.
    Finalize(None, _worker.terminate, exitpriority=0)
    threading.Thread(target=_worker.serve_commands, name="orders", daemon=True).start()


def hello() -> WorkerInfo:
    """Say what this worker is."""
    from jupyter_client.kernelspec import KernelSpecManager  # noqa: PLC0415 - only once a worker
    from nbformat.v4 import new_output  # noqa: PLC0415 - only once a worker

    # ZeroMQ's, asyncio's and nbformat's first use take time that no run shall wait for.
    asyncio.run(asyncio.sleep(0))
    new_output("stream")
    specs = KernelSpecManager().get_all_specs()
    languages = {name: spec["spec"].get("language", "") for name, spec in specs.items()}
    assert _worker is not None  # noqa: S101 - the pool has initialized it
    _worker.reserve.start(languages)
    return WorkerInfo(os.getpid(), languages)


def execute(job: Job) -> None:
    """Execute one job; its events go over the connection."""
    assert _worker is not None  # noqa: S101 - the pool has initialized it
    _worker.execute(job)
