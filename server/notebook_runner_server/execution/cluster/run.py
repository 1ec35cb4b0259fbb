"""A run on a Dask cluster, as the server follows it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any

from notebook_runner_server.execution.cluster import leasing, messages
from notebook_runner_server.execution.cluster.leasing import LostError
from notebook_runner_server.execution.cluster.link import CONNECT_SECONDS, Link
from notebook_runner_server.execution.cluster.messages import Batch, Channel, Place
from notebook_runner_server.execution.interface import (
    Cause,
    Ended,
    ExecutionEvent,
    Failure,
    Job,
    Mark,
)

LOST_SECONDS = 5.0
"""How much longer than a worker waits for a server the server waits for the worker: the worker ends the run
first."""

TRY_SECONDS = 0.4
"""How long one try to reach a worker may take: Dask repeats within it what was refused."""

RECONNECT_SECONDS = 0.1
"""Between two tries to reach a worker."""

_log = logging.getLogger(__name__)


class ClusterRun:
    """A run on the cluster.

    Args:
        link: The cluster.
        run_id: The run.
        job: What to execute; None: another server has begun it.
        mark: The number of the last batch that is durable.
        timeout: Seconds without a server after which a worker ends the run.
        released: Called when its slot is free again.

    Attributes:
        worker_died: Whether that is how it has ended.
    """

    def __init__(
        self,
        link: Link,
        run_id: str,
        job: Job | None,
        mark: int,
        timeout: float,
        released: Callable[[ClusterRun], None],
    ) -> None:
        self._link = link
        self._run_id = run_id
        self._job = job
        self._begun = job is None
        self._number = mark
        self._timeout = timeout
        self._released = released
        self._loop = asyncio.get_running_loop()
        self._lost_at = self._loop.time() + timeout + LOST_SECONDS
        self._stop: tuple[Cause, float] | None = None
        self._stopped = asyncio.Event()
        self._channel: Channel | None = None
        self._reading: asyncio.Task[None] | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._is_left = False
        self.worker_died = False
        self._is_unknown = False

    async def events(self) -> AsyncIterator[Sequence[ExecutionEvent]]:
        """Yield what the worker tells; when it is gone, the end that it cannot tell itself."""
        ended = False
        try:
            place = await self._place()
            async with contextlib.aclosing(self._batches(place)) as batches:
                async for batch in batches:
                    ended = self._is_end(batch.events[-1])
                    # An end has no mark: it may be asked for again until it is durable.
                    yield batch.events if ended else [Mark(batch.number), *batch.events]
                    self._send(messages.Taken(batch.number))
        except LostError as lost:
            end = self._end(str(lost))
            ended = self._is_end(end)
            yield [end]
        finally:
            if ended or not self._is_left:
                self._send(messages.Release())
                self._spawn(self._farewell())
            elif self._channel is not None:
                self._channel.close()
            self._released(self)

    async def _farewell(self) -> None:
        """Give the worker a moment to take the last word, and end the connection."""
        if self._reading is not None:
            await asyncio.wait([self._reading], timeout=CONNECT_SECONDS)
        if self._channel is not None:
            self._channel.close()

    def stop(self, cause: Cause, grace_period: float) -> None:
        """Send the order to the worker."""
        self._stop = cause, grace_period
        self._stopped.set()
        self._send(messages.Stop(cause, grace_period))

    def leave(self) -> None:
        """Let the run go on without this server."""
        self._is_left = True

    def _is_end(self, event: ExecutionEvent) -> bool:
        if isinstance(event, Ended) and event.failure is not None:
            self.worker_died = event.failure.cause is Cause.WORKER_DIED
        return isinstance(event, Ended)

    def _end(self, why: str) -> Ended:
        if self._stop is not None:
            return Ended(Failure(self._stop[0], f"The run was ended: {why}"))
        return Ended(Failure(Cause.WORKER_DIED if self._begun else Cause.SERVER_DIED, why))

    async def _place(self) -> Place:
        """Return where the run is, when it is anywhere."""
        getting = asyncio.ensure_future(self._leased() if self._job is not None else self._found())
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            waiting = [getting] if self._job is None else [getting, stopped]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                return getting.result()
            raise LostError("it had not started.")
        finally:
            stopped.cancel()
            getting.cancel()
            await asyncio.gather(getting, return_exceptions=True)

    async def _found(self) -> Place:
        """Return where an earlier server's run is."""
        link = self._link
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._lost_at):
                await link.until(lambda: self._run_id in link.workers.left or link.all_asked)
        place = link.workers.left.get(self._run_id)
        if place is None:
            self._begun = False
            raise LostError("The server died while the run went on, and no worker has it.")
        return place

    async def _leased(self) -> Place:
        """Have Dask lease a slot of a worker that takes runs; again, if others are there by then."""
        link = self._link
        while True:
            await link.until(lambda: link.workers.usable)
            place = await leasing.lease(link, await link.client(), self._run_id)
            if place is not None:
                self._lost_at = self._loop.time() + self._timeout + LOST_SECONDS
                return place

    async def _batches(self, place: Place) -> AsyncGenerator[Batch]:
        """Yield what the worker tells, over one connection after the other."""
        ended = False
        while not ended:
            self._channel = await self._connected(place)
            if self._job is not None:
                self._begun = True
                await self._try(messages.Begin(self._job))
            if self._stop is not None:
                await self._try(messages.Stop(*self._stop))
            reading = self._received(self._channel)
            async with contextlib.aclosing(reading):
                async for batch in reading:
                    self._job = None
                    if batch.number == self._number + 1:
                        self._number = batch.number
                        yield batch
                        ended = isinstance(batch.events[-1], Ended)
                    if ended:
                        break

    async def _received(self, channel: Channel) -> AsyncGenerator[Batch]:
        """Yield what comes over one connection until that ends, or the run is lost."""
        batches: asyncio.Queue[Batch | None] = asyncio.Queue()
        # Never cancelled: that would end the connection, on which there is something to be said yet.
        self._reading = asyncio.create_task(self._read(channel, batches))
        while True:
            try:
                async with asyncio.timeout_at(max(self._lost_at, self._loop.time() + RECONNECT_SECONDS)):
                    batch = await batches.get()
            except TimeoutError:
                if self._loop.time() >= self._lost_at:
                    channel.close()
                    raise LostError(self._silence()) from None
                continue
            if batch is None:
                return
            yield batch

    async def _read(self, channel: Channel, batches: asyncio.Queue[Batch | None]) -> None:
        try:
            while True:
                match await channel.receive():
                    case Batch() as batch:
                        batches.put_nowait(batch)
                    case messages.Alive() as sign:
                        self._lost_at = self._loop.time() + self._timeout + LOST_SECONDS
                        await channel.send(sign)
                    case messages.Unknown():
                        self._is_unknown = True
                        return
        except OSError:
            pass
        finally:
            batches.put_nowait(None)

    async def _connected(self, place: Place) -> Channel:
        """Connect to the worker, as long as it may have the run.

        Raises:
            LostError: It has it no longer.
        """
        while (left := self._lost_at - self._loop.time()) > 0:
            if self._is_unknown:
                raise LostError(f"The Dask worker at {place.address} has the run no longer.")
            try:
                return await self._link.channel(place, self._number, min(left, TRY_SECONDS))
            except OSError as error:
                if _is_refused(error):
                    raise LostError(f"The Dask worker at {place.address} died.") from error
            await asyncio.sleep(RECONNECT_SECONDS)
        raise LostError(self._silence())

    def _silence(self) -> str:
        return f"The Dask worker is lost: it was not heard of for {self._timeout + LOST_SECONDS:g} s."

    def _send(self, message: object) -> None:
        self._spawn(self._try(message))

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _try(self, message: object) -> None:
        # What cannot be sent is sent again over the next connection, or there is none any more.
        if self._channel is not None:
            with contextlib.suppress(OSError):
                await self._channel.send(message)


def _is_refused(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ConnectionRefusedError):
            return True
        error = error.__cause__ or error.__context__
    return False
