"""The server's side of a run on a Dask cluster: how it gets a lease, and how its events arrive."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import distributed

from notebook_runner_server.execution.cluster import messages, worker
from notebook_runner_server.execution.cluster.messages import Batch, Channel, LeaseAddress
from notebook_runner_server.execution.cluster.scheduler import CONNECT_SECONDS, SchedulerConnection
from notebook_runner_server.execution.interface import (
    Cause,
    Ended,
    ExecutionEvent,
    Failure,
    Job,
    ReplayMark,
)
from notebook_runner_server.execution.worker_protocol import Stop


class LostError(Exception):
    """No worker executes the run, or will; the message says why.

    Args:
        why: A sentence.
        cause: The cause in the run's failure.
    """

    def __init__(self, why: str, cause: Cause = Cause.WORKER_DIED) -> None:
        super().__init__(why)
        self.cause = cause


async def find_lease(scheduler: SchedulerConnection, run_id: str, deadline: float) -> LeaseAddress:
    """Find the lease of a run that an earlier server started.

    Args:
        scheduler: The scheduler's connection.
        run_id: The run.
        deadline: When to stop waiting for workers that do not answer, by the event loop's clock.

    Raises:
        LostError: No worker has the run.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(deadline):
            await scheduler.until(lambda: run_id in scheduler.workers.leases or scheduler.all_known)
    lease = scheduler.workers.leases.get(run_id)
    if lease is None:
        raise LostError("The server died during the run, and no Dask worker has the run.", Cause.SERVER_DIED)
    return lease


async def lease_slot(scheduler: SchedulerConnection, run_id: str) -> LeaseAddress:
    """Have Dask lease a slot; a lease without a job has no effect.

    Raises:
        LostError: Dask failed.
    """
    lease = None
    # Workers that executed runs of a server with other settings a moment ago.
    avoided: set[str] = set()
    while lease is None:
        await scheduler.until(lambda: scheduler.workers.usable)
        if scheduler.workers.usable <= avoided:
            await asyncio.sleep(AVOID_SECONDS)
            avoided.clear()
        lease = await _try_lease(scheduler, await scheduler.client(), run_id, avoided)
    return lease


async def _try_lease(
    scheduler: SchedulerConnection, client: distributed.Client, run_id: str, avoided: set[str]
) -> LeaseAddress | None:
    """Return a lease; None: the scheduler was lost, the workers changed, or the worker does not take the run.

    Args:
        scheduler: The scheduler's connection.
        client: Its client.
        run_id: The run.
        avoided: The workers not to ask; changed for the next attempt.
    """
    usable, nonce = scheduler.workers.usable, secrets.token_hex(8)
    expected = scheduler.expect(nonce)
    future = client.submit(
        worker.lease,
        run_id,
        nonce,
        scheduler.topic,
        scheduler.options,
        key=f"notebook-run-{run_id}-{nonce}",
        pure=False,
        retries=0,
        workers=list(usable - avoided),
        resources={worker.RESOURCE: 1},
    )
    # The lease survives this server, and the next one finds the run.
    distributed.fire_and_forget(future)
    over = asyncio.ensure_future(future)
    others = asyncio.ensure_future(scheduler.until(lambda: scheduler.workers.usable != usable))
    try:
        seconds = AVOID_SECONDS if avoided else None
        done, _ = await asyncio.wait(
            [expected, over, others], timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            avoided.clear()
        if over.done() and not expected.done() and (refusal := _refusal(over)) is not None:
            address, problem = refusal
            if problem:
                scheduler.workers.refuse(address, problem)
            avoided.add(address)
        return expected.result() if expected.done() else None
    except asyncio.CancelledError:
        if expected.done():
            scheduler.release(expected.result())
        raise
    finally:
        scheduler.forget(nonce)
        for one in (over, others):
            one.cancel()
        await asyncio.gather(over, others, return_exceptions=True)
        if not expected.done():
            with contextlib.suppress(OSError):
                await client.cancel([future], force=True)


def _refusal(over: asyncio.Future[Any]) -> tuple[str, str] | None:
    """Return what a worker answered that did not take the run; None: it would have, or was not asked.

    Raises:
        LostError: The lease ended with an error before its address came.
    """
    error = None if over.cancelled() else over.exception()
    if error is not None and not isinstance(error, distributed.client.FutureCancelledError):
        raise LostError(f"No Dask worker could take the run: {error}")
    answer: tuple[str, str] | None = None if over.cancelled() or error else over.result()
    return answer


AVOID_SECONDS = 1.0
"""Seconds until a worker is asked again that executed runs of a server with other settings."""

LOST_SECONDS = 5.0
"""Seconds that the server waits longer than the worker, so that the worker ends the run first."""

TRY_SECONDS = 2.0
"""Seconds that one attempt to reach a worker may take."""

RECONNECT_SECONDS = 0.1
"""Seconds between two attempts to reach a worker."""


class ClusterRun:
    """A run on the cluster.

    Args:
        scheduler: The scheduler's connection.
        run_id: The run.
        job: The job; None: an earlier server has sent it.
        mark: The number of the last durable batch.
        timeout: Seconds without a server after which a worker ends the run.
        released: Called when the slot is free again.

    Attributes:
        worker_died: Whether the run ended because its worker died.
    """

    def __init__(
        self,
        scheduler: SchedulerConnection,
        run_id: str,
        job: Job | None,
        mark: int,
        timeout: float,
        released: Callable[[ClusterRun], None],
    ) -> None:
        self._scheduler = scheduler
        self._run_id = run_id
        self._job = job
        self._has_begun = job is None
        self._number = mark
        self._timeout = timeout
        self._released = released
        self._loop = asyncio.get_running_loop()
        self._lost_at = self._loop.time() + timeout + LOST_SECONDS
        self._silent_at = 0.0
        self._stop: Stop | None = None
        self._stopped = asyncio.Event()
        self._lease: LeaseAddress | None = None
        self._channel: Channel | None = None
        self._reading: asyncio.Task[None] | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._is_detached = False
        self.worker_died = False
        self._lease_unknown = False
        self._batches_lost = False

    async def events(self) -> AsyncGenerator[Sequence[ExecutionEvent]]:
        """Yield the worker's events; if the worker is lost, the `Ended` that it cannot send."""
        ended = False
        try:
            async with contextlib.aclosing(self._batches()) as batches:
                async for batch in batches:
                    ended = self._is_end(batch.events[-1])
                    # The end has no mark: it can be requested again until it is durable.
                    yield batch.events if ended else [ReplayMark(batch.number), *batch.events]
                    self._send(messages.Acknowledge(batch.number))
        except LostError as lost:
            end = Ended(self._failure(lost))
            ended = self._is_end(end)
            yield [end]
        finally:
            if self._channel is None and self._lease is not None:
                self._scheduler.release(self._lease)
            elif ended or not self._is_detached:
                self._send(messages.Release())
                self._spawn(self._close_channel())
            elif self._channel is not None:
                self._channel.close()
            self._released(self)

    async def _close_channel(self) -> None:
        """Give the worker time to receive the last message, and close the connection."""
        if self._reading is not None:
            await asyncio.wait([self._reading], timeout=CONNECT_SECONDS)
        if self._channel is not None:
            self._channel.close()

    def stop(self, cause: Cause, grace_period: float) -> None:
        """Send the command to the worker."""
        self._stop = Stop(self._run_id, cause, grace_period)
        self._stopped.set()
        self._send(self._stop)

    def leave(self) -> None:
        """Let the run continue without this server."""
        self._is_detached = True

    def _is_end(self, event: ExecutionEvent) -> bool:
        if isinstance(event, Ended) and event.failure is not None:
            self.worker_died = event.failure.cause is Cause.WORKER_DIED
        return isinstance(event, Ended)

    def _failure(self, lost: LostError) -> Failure:
        if self._stop is not None:
            return Failure(self._stop.cause, f"The run was stopped. {lost}")
        return Failure(lost.cause, str(lost))

    async def _locate(self) -> LeaseAddress:
        """Wait for a lease, or find it, and return it."""
        getting = asyncio.ensure_future(
            lease_slot(self._scheduler, self._run_id)
            if self._job is not None
            else find_lease(self._scheduler, self._run_id, self._lost_at)
        )
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            waiting = [getting] if self._job is None else [getting, stopped]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                self._lease = getting.result()
                self._lost_at = self._loop.time() + self._timeout + LOST_SECONDS
                return self._lease
            raise LostError("It had not started.")
        finally:
            stopped.cancel()
            getting.cancel()
            await asyncio.gather(getting, return_exceptions=True)

    async def _batches(self) -> AsyncGenerator[Batch]:
        """Yield the worker's batches, over one connection after the other."""
        ended, lease = False, await self._locate()
        while not ended:
            try:
                self._channel = await self._connected(lease)
            except LostError:
                if self._has_begun or self._stop is not None:
                    raise
                # No worker has the job yet.
                lease = await self._locate()
                continue
            is_first, self._has_begun = not self._has_begun, True
            if self._job is not None:
                self._send(self._job)
            if self._stop is not None:
                self._send(self._stop)
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
            lease = await self._locate_next(lease, is_first=is_first)

    async def _locate_next(self, lease: LeaseAddress, *, is_first: bool) -> LeaseAddress:
        """Return the lease to connect to after a connection ended; the first connection had the job.

        Raises:
            LostError: Further batches are lost.
        """
        if self._batches_lost:
            raise LostError("An earlier server could not store the events of the run.", Cause.STORAGE_FAILED)
        if is_first and self._lease_unknown and self._channel is not None:
            # The lease had expired before the job came, so that no worker has it.
            self._has_begun = self._lease_unknown = False
            self._channel.close()
            self._channel = None
            return await self._locate()
        return lease

    async def _received(self, channel: Channel) -> AsyncGenerator[Batch]:
        """Yield the batches of one connection until it ends or falls silent.

        A new connection may work long before TCP sends again what was lost on an old one.
        """
        batches: asyncio.Queue[Batch | None] = asyncio.Queue()
        # Never cancelled: that would close the connection, over which a last message is sent.
        self._reading = asyncio.create_task(self._read(channel, batches))
        self._note_message()
        while True:
            try:
                # Messages that came while this process was stopped are taken first.
                async with asyncio.timeout_at(max(self._silent_at, self._loop.time() + RECONNECT_SECONDS)):
                    batch = await batches.get()
            except TimeoutError:
                if self._loop.time() < self._silent_at:
                    continue
                channel.close()
                return
            if batch is None:
                return
            yield batch

    async def _read(self, channel: Channel, batches: asyncio.Queue[Batch | None]) -> None:
        try:
            while True:
                message = await channel.receive()
                self._note_message()
                match message:
                    case Batch() as batch:
                        batches.put_nowait(batch)
                    case messages.Heartbeat() as sign:
                        self._lost_at = self._loop.time() + self._timeout + LOST_SECONDS
                        await channel.send(sign)
                    case messages.BatchesLost():
                        self._batches_lost = True
                        batches.put_nowait(None)
                    case messages.UnknownLease():
                        self._lease_unknown = True
                        return
                # Available messages are returned without a turn of the event loop.
                await asyncio.sleep(0)
        except OSError:
            pass
        finally:
            batches.put_nowait(None)

    def _note_message(self) -> None:
        self._silent_at = self._loop.time() + self._timeout / 2

    async def _connected(self, lease: LeaseAddress) -> Channel:
        """Connect to the worker, as long as it may have the run.

        Raises:
            LostError: It no longer has the run.
        """
        while (left := self._lost_at - self._loop.time()) > 0:
            if self._lease_unknown:
                raise LostError(f"The Dask worker at {lease.address} no longer has the run.")
            connecting = asyncio.ensure_future(
                self._scheduler.channel(lease, self._number, min(left, TRY_SECONDS))
            )
            try:
                while not (await asyncio.wait([connecting], timeout=RECONNECT_SECONDS))[0]:
                    if self._stop is not None and not self._has_begun:
                        raise LostError("It had not started.")
                    if await self._scheduler.is_refused(lease):
                        raise LostError(f"The Dask worker at {lease.address} died.")
                return connecting.result()
            except OSError:
                await asyncio.sleep(RECONNECT_SECONDS)
            finally:
                connecting.cancel()
        silence = self._timeout + LOST_SECONDS
        raise LostError(f"The Dask worker is lost: no message within {silence:g} s.")

    def _send(self, message: object) -> None:
        self._spawn(self._send_now(message))

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send_now(self, message: object) -> None:
        # A message that cannot be sent is sent again over the next connection, if one follows.
        if self._channel is not None:
            with contextlib.suppress(OSError):
                await self._channel.send(message)
