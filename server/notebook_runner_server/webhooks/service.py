"""Delivers webhooks: one task for each receiver, which sends one after the other, in their order.

A delivery is repeated with growing pauses until the receiver accepts it, or has failed for a day. Each
attempt is made in a process of its own, as transfers of notebooks are, so that a receiver or a name service
that hangs blocks nothing of the server.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from operator import attrgetter

from notebook_runner_server.run_in_subprocess import SubprocessError, SubprocessOptions, start_in_subprocess
from notebook_runner_server.runs.deliveries import Deliveries, Delivery, ReceiverRecord, ReceiverStatus
from notebook_runner_server.transfer import program
from notebook_runner_server.transfer.interface import RefusedError, TransferError
from notebook_runner_server.webhooks import notifications
from notebook_runner_server.webhooks.receivers_file import Receiver

ATTEMPT_SECONDS = 15.0
"""How long an attempt may take."""

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 900.0
DROP_SECONDS = 86400.0
"""A delivery is dropped if it is older than this, and its receiver has failed for as long."""

LOOK_SECONDS = 60.0
"""How often a receiver looks for something new that nothing has woken it for."""

ADVANCE_SECONDS = 10.0
"""How often the cursors of receivers that had nothing to get are made durable, and backlogs are counted."""

DELIVERED, FAILED, DROPPED = "delivered", "failed", "dropped"
RESULTS = (DELIVERED, FAILED, DROPPED)

_logger = logging.getLogger(__name__)


class WebhookService:
    """Delivers webhooks.

    Args:
        deliveries: What receivers still have to get.
        receivers: Returns the newest receivers of the webhooks file.
        hosts: The hosts that runs may notify.
    """

    def __init__(
        self, deliveries: Deliveries, receivers: Callable[[], Sequence[Receiver]], hosts: Iterable[str] = ()
    ) -> None:
        self._deliveries = deliveries
        self._receivers = receivers
        self._hosts = tuple(hosts)
        self._notified = [notifications.receiver(host) for host in self._hosts]
        self._applied: Sequence[Receiver] | None = None
        self._senders: dict[str, _Sender] = {}
        self._advanced = time.monotonic()

    @property
    def status(self) -> Sequence[ReceiverStatus]:
        """How far each receiver is, by name."""
        return sorted((sender.status for sender in [*self._senders.values()]), key=attrgetter("name"))

    async def apply(self) -> None:
        """Apply a changed webhooks file, and record how far receivers are; to be called again and again."""
        receivers = [*self._receivers(), *self._notified]
        if receivers != self._applied:
            await self._set(receivers)
            self._applied = receivers
        elif time.monotonic() - self._advanced > ADVANCE_SECONDS:
            self._advanced = time.monotonic()
            cursors = {name: sender.cursor for name, sender in self._senders.items() if sender.is_ahead}
            if cursors:
                await self._deliveries.advance(cursors)
                for name, cursor in cursors.items():
                    self._senders[name].durable = cursor
            for sender in [*self._senders.values()]:
                await sender.count()

    async def _set(self, receivers: Sequence[Receiver]) -> None:
        named = {receiver.name: receiver for receiver in receivers}
        records = await self._deliveries.set_receivers(named, self._hosts)
        for name in self._senders.keys() - named:
            await self._senders.pop(name).close()
        for name, receiver in named.items():
            if (sender := self._senders.get(name)) is not None:
                await sender.change(receiver)
            else:
                self._senders[name] = _Sender(self._deliveries, receiver, records[name])

    async def close(self) -> None:
        """End all attempts; the next start of the server repeats them."""
        senders, self._senders = [*self._senders.values()], {}
        await asyncio.gather(*(sender.close() for sender in senders))


class _Sender:
    """The task of one receiver.

    Args:
        deliveries: What it still has to get.
        receiver: The receiver.
        record: How far it was.

    Attributes:
        cursor: The last change that it needs no more.
        durable: The same, as it is stored.
    """

    def __init__(self, deliveries: Deliveries, receiver: Receiver, record: ReceiverRecord) -> None:
        self._deliveries = deliveries
        self._receiver = receiver
        self.cursor = self.durable = record.change
        self._failing_since = record.failing_since
        self._pending: Delivery | None = None
        self._backlog = 0
        self._results: Counter[str] = Counter()
        self._task = asyncio.create_task(self._run())

    @property
    def is_ahead(self) -> bool:
        """Whether the stored cursor is behind."""
        return self.cursor > self.durable

    @property
    def status(self) -> ReceiverStatus:
        """How far the receiver is."""
        pending = self._pending
        backlog = max(self._backlog, int(pending is not None))
        return ReceiverStatus(self._receiver.name, backlog, pending.time if pending else 0, self._results)

    async def change(self, receiver: Receiver) -> None:
        """Continue with a changed receiver, immediately."""
        if receiver != self._receiver:
            await self.close()
            self._receiver = receiver
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """End the attempt."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def count(self) -> None:
        """Count what the receiver still has to get."""
        self._backlog = await self._deliveries.count(self.cursor, self._receiver.wanted)

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                failures = 0 if await self._send_next() else failures + 1
            except Exception:
                # The disk may be full. What was accepted before it is recorded is sent again.
                _logger.exception("webhook_sender_failed", extra={"receiver": self._receiver.name})
                failures += 1
            if failures:
                await asyncio.sleep(_pause(failures))

    async def _send_next(self) -> bool:
        """Attempt the next delivery, or wait if there is none; return whether to continue without a pause."""
        wakes = self._deliveries.wakes
        # Read before each attempt: the run may have been deleted since the last one.
        delivery, last = await self._deliveries.next(self.cursor, self._receiver.wanted)
        self._pending = delivery
        if delivery is None:
            self.cursor, self._backlog = last, 0
            await self._deliveries.wait(wakes, LOOK_SECONDS)
            return True
        ids = {"receiver": self._receiver.name, "run_id": delivery.run_id}
        if why := await self._attempt(delivery):
            self._results[FAILED] += 1
            _logger.warning("webhook_failed", extra={**ids, "why": why})
            if not self._failing_since:
                self._failing_since = time.time_ns()
                await self._deliveries.fails(self._receiver.name, self._failing_since)
            if not self._is_overdue(delivery):
                return False
        else:
            self._failing_since = 0
        await self._deliveries.done(self._receiver.name, delivery, self._failing_since)
        self._results[DROPPED if why else DELIVERED] += 1
        if why:
            _logger.error("webhook_dropped", extra={**ids, "why": why})
        self.cursor = self.durable = delivery.change
        self._backlog = max(self._backlog - 1, 0)
        return True

    def _is_overdue(self, delivery: Delivery) -> bool:
        before = time.time_ns() - int(DROP_SECONDS * 1e9)
        return delivery.time < before and self._failing_since < before

    async def _attempt(self, delivery: Delivery) -> str:
        """Try to deliver; return why it failed, or nothing."""
        # They bring libraries that are needed only here.
        from notebook_runner_server.webhooks import events  # noqa: PLC0415 - see the comment

        receiver = self._receiver
        uri = receiver.uri or delivery.uri
        body = await asyncio.to_thread(events.encode, delivery)
        headers = events.headers(delivery, body, receiver.secrets, datetime.now(UTC))
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS):
                await start_in_subprocess(
                    SubprocessOptions(), program.post, uri, body, headers, any_address=receiver.any_address
                )
        except TimeoutError:
            return f"the receiver did not answer within {ATTEMPT_SECONDS:g} s"
        except SubprocessError:
            return "the process of the attempt died"
        except RefusedError:
            return (
                "the host has a loopback, link-local or cloud-metadata address (allow it with "
                "allow_internal = true)"
            )
        except TransferError as error:
            return str(error)
        return ""


def _pause(failures: int) -> float:
    """Return the seconds before the next attempt: they double, and differ so that receivers do not align."""
    longest = min(FIRST_PAUSE * 2.0 ** min(failures - 1, 20), LONGEST_PAUSE)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
