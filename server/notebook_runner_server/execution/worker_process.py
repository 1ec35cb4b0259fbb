"""The server's side of a worker process: a pool of one process, and the connection to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import select
import signal
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from multiprocessing import util
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import SemLock
from pathlib import Path
from typing import Any

from notebook_runner_server import folder_tree
from notebook_runner_server.execution import worker_protocol
from notebook_runner_server.execution.interface import Job
from notebook_runner_server.execution.options import WorkerOptions
from notebook_runner_server.execution.processes import KILL_DEADLINE, in_own_session, kill_descendants

START_SECONDS = 60.0
"""Seconds that a worker process may take to start."""

MAX_WAITING_BYTES = 4 * 1024 * 1024
"""Messages in memory above which reading stops: the worker then waits, and memory stays bounded."""

_log = logging.getLogger(__name__)

_SAFE_PATH = "PYTHONSAFEPATH"

# A fork of a process that serves gRPC crashes or hangs.
_CONTEXT = multiprocessing.get_context("spawn")


def kill_orphans() -> set[int]:
    """Kill the processes below this one in other sessions, which a dead worker has left.

    Helper processes stay in the session of this process; a kernel is never in it.
    """
    return kill_descendants(os.getpid(), spare=in_own_session)


@contextlib.contextmanager
def safe_path() -> Iterator[None]:
    """Keep interpreters that are started meanwhile from importing modules of the working folder.

    A notebook may write there, and `multiprocessing` starts its processes outside the sandbox. No other
    thread may read the environment meanwhile.
    """
    before = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SAFE_PATH]
        else:
            os.environ[_SAFE_PATH] = before


class WorkerConnection(asyncio.Protocol):
    """The server's end of the connection to a worker; holds a bounded amount of messages."""

    def __init__(self, on_message: Callable[[Any], bool]) -> None:
        self._on_message = on_message
        self._buffer = bytearray()
        self._messages: list[Any] = []
        self._waiting = 0
        self._arrived = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self.closed = False

    @classmethod
    async def open(cls, end: socket.socket, on_message: Callable[[Any], bool]) -> WorkerConnection:
        """Take over one end of a socket pair.

        Args:
            end: The socket.
            on_message: Called with each message as it arrives; returns whether the message was handled.
        """
        loop = asyncio.get_running_loop()
        _, connection = await loop.connect_accepted_socket(lambda: cls(on_message), end)
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (called by asyncio)."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a socket's is
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Take bytes from the worker (called by asyncio)."""
        self._buffer += data
        for encoded in worker_protocol.take_frames(self._buffer):
            messages = worker_protocol.decode(encoded)
            if kept := [message for message in messages if not self._on_message(message)]:
                self._messages += kept
                self._waiting += len(encoded)
        if self._messages:
            self._arrived.set()
        if self._waiting > MAX_WAITING_BYTES and self._transport is not None:
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Wake the reader, because the worker is gone (called by asyncio)."""
        self.closed = True
        self._arrived.set()

    async def receive(self) -> list[Any]:
        """Wait for messages and return them all; none: the worker is gone."""
        await self._arrived.wait()
        messages, self._messages, self._waiting = self._messages, [], 0
        if not self.closed:
            self._arrived.clear()
            if self._transport is not None:
                self._transport.resume_reading()
        return messages

    def send(self, message: object) -> None:
        """Send a job or a command; nothing happens when the worker is gone."""
        if self._transport is not None and not self.closed:
            for part in worker_protocol.frame(message):
                self._transport.write(part)

    def close(self) -> None:
        """Close the connection, at which the worker exits with all processes below it."""
        if self._transport is not None:
            self._transport.close()


class WorkerProcess:
    """One worker process. It imports what it needs from the beginning, and takes jobs after `start`.

    Args:
        kernel_environment: Names of variables to pass to kernels in addition to the usual ones.
        hide: Make the process non-dumpable, so that other processes cannot inspect it.

    Raises:
        OSError: The process cannot be created.

    Attributes:
        connection: The connection, after `start`.
        info: What the process is, after `start`.
        broken: Whether it must not be given another job.
        kernels_ready: How many warm kernels it has ready, by kernelspec.
    """

    def __init__(self, kernel_environment: Iterable[str] = (), *, hide: bool = True) -> None:
        self._folder: Path | None = None
        self._near, far = socket.socketpair()
        self._far = Connection(far.detach())
        self._pool = ProcessPoolExecutor(
            max_workers=1,
            mp_context=_CONTEXT,
            initializer=partial(worker_protocol.initialize, hide=hide),
            initargs=(self._far, tuple(kernel_environment)),
        )
        with safe_path():
            # The pool creates its process for the first task.
            self._pool.submit(os.getpid)
        self._process: BaseProcess | None = None
        self.connection: WorkerConnection | None = None
        self.info = worker_protocol.WorkerInfo(0, {})
        self.broken = False
        self.kernels_ready: Mapping[str, int] = {}

    async def start(self, options: WorkerOptions) -> None:
        """Wait until the process can take a job.

        Args:
            options: The options of the worker; its folder is removed with it.

        Raises:
            BrokenProcessPool: The process died.
            TimeoutError: The process did not become ready.
        """
        self._folder = options.folder
        self.connection = await WorkerConnection.open(self._near, self._handled)
        try:
            async with asyncio.timeout(START_SECONDS):
                self.info = await asyncio.wrap_future(self._pool.submit(worker_protocol.hello, options))
        except TimeoutError:
            self._kill_starting()
            raise
        finally:
            # Only the worker holds the far end now, so that its death is seen as the end of the connection.
            self._far.close()
        self._process = next(one for one in multiprocessing.active_children() if one.pid == self.info.pid)
        self._unlink_semaphores()
        self._pool.submit(worker_protocol.settle)

    def _kill_starting(self) -> None:
        """Kill the process, whose id is not known yet."""
        for process in list((self._pool._processes or {}).values()):  # noqa: SLF001 - there is no other way
            process.kill()

    def _unlink_semaphores(self) -> None:
        """Remove the names of the pool's semaphores: in /dev/shm a notebook could open and destroy them.

        Both processes have them open by now. `multiprocessing` would remove the names when the pool is gone.
        """
        queues = self._pool._call_queue, self._pool._result_queue  # type: ignore[attr-defined]  # noqa: SLF001 - no other way
        locks = [one for queue in queues for one in vars(queue).values() if isinstance(one, SemLock)]
        names = [(lock._semlock.name,) for lock in locks]  # type: ignore[attr-defined]  # noqa: SLF001 - as above
        for finalizer in list(util._finalizer_registry.values()):  # type: ignore[attr-defined]  # noqa: SLF001 - as above
            if finalizer._args in names:  # noqa: SLF001 - as above
                finalizer()

    def _handled(self, message: object) -> bool:
        match message:
            case worker_protocol.WorkerLog():
                _log.log(message.level, message.event, extra=dict(message.fields))
            case worker_protocol.KernelsReady():
                self.kernels_ready = message.counts
            case _:
                return False
        return True

    def submit(self, job: Job) -> Future[None]:
        """Give it a job, and return what is done when it can take another one.

        Raises:
            BrokenProcessPool: It has died.
        """
        assert self.connection is not None  # noqa: S101 - it was started
        done = self._pool.submit(worker_protocol.execute)
        # Over the connection, so that commands cannot overtake it.
        self.connection.send(job)
        return done

    def kill(self) -> None:
        """Kill the process; `kill_orphans` kills the processes below it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.info.pid, signal.SIGKILL)

    def kill_rest(self) -> set[int]:
        """Wait for the end of the process, and kill what it has left; blocks."""
        # Its connection closes before its children are handed to this process.
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.info.pid)
            try:
                gone = select.poll()
                gone.register(descriptor, select.POLLIN)
                gone.poll(round(KILL_DEADLINE * 1000))
            finally:
                os.close(descriptor)
        return kill_orphans()

    def exit_code(self) -> int | None:
        """Return the exit code of the dead process (negative: the signal that killed it); blocks shortly."""
        # The pool waits for the process as well, and only one of them gets the exit code.
        self._pool.shutdown(wait=True)
        return self._process.exitcode if self._process else None

    async def close(self) -> None:
        """End the process with all processes below it."""
        if self.connection is not None:
            self.connection.close()
        else:
            # It has only imported, perhaps not everything yet.
            self._kill_starting()
            self._near.close()
            self._far.close()
        await asyncio.to_thread(self._pool.shutdown, wait=True, cancel_futures=True)
        if self._folder is not None:
            await asyncio.to_thread(folder_tree.remove_if_possible, self._folder)
