"""A slot on a Dask worker that is leased for one run, the run in it, and the run's folder.

Events are kept until the server has stored them. Another server can replace one that is gone, and continues
after its last batch. When no server has sent a message for too long, the run is ended: by then the server has
declared it lost, or is about to.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from notebook_runner_server import folder_tree
from notebook_runner_server.execution.cluster import messages
from notebook_runner_server.execution.cluster.messages import Batch, Channel
from notebook_runner_server.execution.interface import (
    Cause,
    DisplayOutput,
    Ended,
    ExecutionEvent,
    Failure,
    FileEvent,
    FilePiece,
    FilesLeft,
    Job,
    SegmentChunk,
    StreamOutput,
)
from notebook_runner_server.execution.pool import PoolRun, ProcessPoolBackend
from notebook_runner_server.execution.worker_protocol import Stop

MAX_KEPT_BYTES = 4 * 1024 * 1024
"""Bytes of events without acknowledgement above which the run waits."""

MAX_EVENTS = 200
"""Events of one batch, which the server decodes in one step."""

MAX_AFTER_STOP_BYTES = 16 * 1024 * 1024
"""Bytes of files that a stopped run sends back, for which Kill waits."""

HEARTBEATS = 4
"""Heartbeats within `timeout`."""

_EVENT_BYTES = 200

_log = logging.getLogger(__name__)


class Lease:
    """A leased slot, until the server releases it.

    Args:
        run_id: The run.
        pool: The process pool that executes the run.
        admitted: Held while waiting for a worker of the pool.
        timeout: Seconds without a message of a server after which the run is ended.
        folder: The run's private folder.

    Attributes:
        run_id: The run.
        has_job: Whether a server has sent the job.
        over: Set when the slot is free again.
        folder: The run's private folder.
    """

    def __init__(
        self,
        run_id: str,
        pool: ProcessPoolBackend,
        admitted: asyncio.Lock,
        timeout: float,
        folder: WorkerRunFolder,
    ) -> None:
        self.run_id = run_id
        self.has_job = False
        self.over = asyncio.Event()
        self._pool = pool
        self._admitted = admitted
        self._timeout = timeout
        self.folder = folder
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(timeout, self._expire)
        self._closing: asyncio.Task[None] | None = None
        self._executing: asyncio.Task[None] | None = None
        self._run: PoolRun | None = None
        self._stop: tuple[Cause, float] | None = None
        self._stopped = asyncio.Event()
        self._kept: deque[tuple[Batch, int]] = deque()
        self._kept_bytes = 0
        self._number = 0
        # The last batch that was acknowledged and removed.
        self._last_acknowledged = 0
        self._abandoned = False
        self._changed = asyncio.Condition()
        self._channel: Channel | None = None

    @property
    def is_expired(self) -> bool:
        """Whether it expired before a job came."""
        return self._abandoned and not self.has_job

    async def serve(self, channel: Channel, after: int) -> None:
        """Serve a server until it disconnects, or another one connects.

        Args:
            channel: The connection to the server.
            after: The number of the last batch that the server has.
        """
        if self._channel is not None:
            self._channel.close()
        self._channel = channel
        if after < self._last_acknowledged:
            # The earlier server acknowledged batches that it could not store.
            await channel.send(messages.BatchesLost())
        await self._acknowledge(after)
        telling = [
            asyncio.create_task(self._send_batches(channel, after)),
            asyncio.create_task(self._send_heartbeats(channel)),
        ]
        try:
            while not self.over.is_set():
                await self._handle(await channel.receive())
        finally:
            for task in telling:
                task.cancel()

    async def _handle(self, message: object) -> None:
        match message:
            # A lease has one job, and refuses a job that arrives after its server abandoned it.
            case Job() as job if not self.has_job and not self._abandoned:
                self.has_job = True
                self._executing = asyncio.create_task(self._execute_reporting(job))
            case Stop(cause=cause, grace_period=grace_period):
                self.stop(cause, grace_period)
            case messages.Acknowledge(number=number):
                await self._acknowledge(number)
            case messages.Heartbeat(stamp=stamp):
                self._extend(stamp + self._timeout)
            case messages.Release():
                await self.close()

    def stop(self, cause: Cause, grace_period: float) -> None:
        """Request the end of the run."""
        self._stop = cause, grace_period
        self._stopped.set()
        if self._run is not None:
            self._run.stop(cause, grace_period)

    async def close(self) -> None:
        """End the run if it continues, and free the slot."""
        self._abandoned = True
        async with self._changed:
            self._changed.notify_all()
        if self._executing is not None:
            if not self._executing.done():
                self.stop(Cause.SERVER_DIED, 0.0)
            await asyncio.wait([self._executing])
        self._timer.cancel()
        self.over.set()

    def _extend(self, moment: float) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_at(moment, self._expire)
        if self._run is not None:
            # The worker enforces the deadline even while this process is stopped or busy.
            self._run.set_deadline(moment)

    def _expire(self) -> None:
        self._abandoned = True
        self.stop(Cause.SERVER_DIED, 0.0)
        self._closing = asyncio.create_task(self.close())

    async def _execute_reporting(self, job: Job) -> None:
        try:
            await self._execute(job)
        except Exception as error:  # noqa: BLE001 - without an end the run would never end
            _log.exception("run_failed_in_dask_worker", extra={"run_id": self.run_id})
            failure = Failure(Cause.WORKER_DIED, f"The Dask worker failed: {error}")
            await self._keep([Ended(failure)])

    async def _execute(self, job: Job) -> None:
        try:
            job = await asyncio.to_thread(self.folder.create, job)
        except OSError as error:
            failure = Failure(Cause.KERNEL_NOT_READY, f"Cannot create the run's folder: {error}")
            await self._keep([Ended(failure)])
            return
        admitting = asyncio.ensure_future(self._admit(job))
        stopped = asyncio.ensure_future(self._stopped.wait())
        await asyncio.wait([admitting, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if self._run is None and self._stop is not None:
            admitting.cancel()
            await asyncio.gather(admitting, return_exceptions=True)
        else:
            await admitting
        if self._run is None:
            assert self._stop is not None  # noqa: S101 - nothing else keeps it from being submitted
            await self._keep([Ended(Failure(self._stop[0], "The run was stopped before it started."))])
            return
        async with contextlib.aclosing(self._run.events()) as batches:
            async for events in batches:
                end = len(events) - isinstance(events[-1], Ended)
                for start in range(0, end, MAX_EVENTS):
                    await self._keep(events[start : min(end, start + MAX_EVENTS)])
                if end < len(events):
                    await self._keep_files()
                    await self._keep(events[end:])

    async def _admit(self, job: Job) -> None:
        """Execute the job as soon as the pool has a worker, which may have to be replaced first."""
        async with self._admitted:
            await self._pool.wait_for_worker()
            if self._stop is None:
                self._run = self._pool.submit(job)
                self._run.set_deadline(self._timer.when())

    async def _keep_files(self) -> None:
        files = self.folder.files(None if self._stop is None else MAX_AFTER_STOP_BYTES)
        while not self._abandoned and (piece := await asyncio.to_thread(next, files, None)) is not None:
            await self._keep([piece])

    async def _keep(self, events: Sequence[ExecutionEvent]) -> None:
        if not events or self._abandoned:
            return
        async with self._changed:
            await self._changed.wait_for(lambda: self._kept_bytes < MAX_KEPT_BYTES or self._abandoned)
            self._number += 1
            size = sum(map(_size, events))
            self._kept.append((Batch(self._number, events), size))
            self._kept_bytes += size
            self._changed.notify_all()

    async def _acknowledge(self, number: int) -> None:
        async with self._changed:
            while self._kept and self._kept[0][0].number <= number:
                batch, size = self._kept.popleft()
                self._kept_bytes -= size
                self._last_acknowledged = batch.number
            self._changed.notify_all()

    async def _send_batches(self, channel: Channel, after: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                for batch in await self._kept_after(after):
                    await channel.send(batch)
                    after = batch.number

    async def _kept_after(self, number: int) -> list[Batch]:
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._kept) and self._kept[-1][0].number > number)
            return [batch for batch, _ in self._kept if batch.number > number]

    async def _send_heartbeats(self, channel: Channel) -> None:
        with contextlib.suppress(OSError):
            while True:
                await channel.send(messages.Heartbeat(self._loop.time()))
                await asyncio.sleep(self._timeout / HEARTBEATS)


def _size(event: ExecutionEvent) -> int:
    match event:
        case SegmentChunk(data=data) | FilePiece(data=data):
            return len(data)
        case StreamOutput(text=text):
            return _EVENT_BYTES + len(text)
        case DisplayOutput(contents=contents):
            return _EVENT_BYTES + sum(len(content) for _, content in contents)
    return _EVENT_BYTES


PIECE_BYTES = 1024 * 1024
"""Bytes of a file in memory at a time."""


class WorkerRunFolder:
    """The private folder of a run on a Dask worker, whose files are sent to the server at the end.

    Server and Dask worker need no folder in common.

    Args:
        parent: The parent folder, which only this run uses.
        max_bytes: Size of the files above which they are not sent.
        root: The server's notebook root, which may exist here at the same path, also as a link.
    """

    def __init__(self, parent: Path, max_bytes: int, root: Path | None) -> None:
        self._parent = self._path = parent
        self._max_bytes = max_bytes
        self._root = root

    def create(self, job: Job) -> Job:
        """Create it, and return the job with its local folders: the notebook's folder, if that exists here.

        Raises:
            OSError: It cannot be created.
        """
        self._path = self._parent / job.run_id
        self._path.mkdir(mode=0o700, parents=True)
        own = str(self._path)
        working = own
        working_folder = Path(job.working_folder)
        if self._root is not None and working_folder.is_relative_to(self._root):
            # Only the root may be a link, of the operator: below it a notebook may have created one.
            shared = self._root.resolve() / working_folder.relative_to(self._root)
            working = str(shared) if shared.is_dir() else own
        return replace(job, run_folder=own, working_folder=working)

    def files(self, most: int | None = None) -> Iterator[FileEvent]:
        """Yield the files of a run that has ended, without following links.

        Unreadable files are left out.

        Args:
            most: A lower limit in bytes; None: no lower limit.
        """
        total = sum(entry.about.st_size for entry in self._regular_files())
        if total > min(self._max_bytes, self._max_bytes if most is None else most):
            yield FilesLeft(total)
            return
        for entry in self._regular_files():
            # It may have disappeared.
            with contextlib.suppress(OSError):
                yield from self._pieces(entry)

    def _regular_files(self) -> Iterator[folder_tree.Entry]:
        for entry in folder_tree.walk(self._path):
            readable = os.access(entry.name, os.R_OK, dir_fd=entry.folder)
            if readable and stat.S_ISREG(entry.about.st_mode):
                yield entry

    def _pieces(self, entry: folder_tree.Entry) -> Iterator[FilePiece]:
        with open(entry.open(), "rb") as file:
            about = os.fstat(file.fileno())
            start = 0
            while (data := file.read(PIECE_BYTES)) or not start:
                yield FilePiece(entry.path, start, data, stat.S_IMODE(about.st_mode), about.st_mtime_ns)
                if not data:
                    return
                start += len(data)

    def remove(self) -> None:
        """Remove it with its contents."""
        folder_tree.remove_if_possible(self._parent)
