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
from dataclasses import dataclass
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
        self._seen: Sequence[Receiver] | None = None
        self._senders: dict[str, _Sender] = {}
        self._advanced = time.monotonic()

    @property
    def status(self) -> Sequence[ReceiverStatus]:
        """How far each receiver is, by name."""
        return sorted((sender.status for sender in [*self._senders.values()]), key=attrgetter("name"))

    async def apply(self) -> None:
        """Apply a changed webhooks file, and record how far receivers are; to be called again and again."""
        receivers = [*self._receivers(), *self._notified]
        seen, self._seen = self._seen, receivers
        if receivers != self._applied:
            # What a removed receiver had to get is forgotten, and half of a file may be a valid file.
            if receivers != seen and self._senders.keys() - {receiver.name for receiver in receivers}:
                return
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


@dataclass(frozen=True, slots=True)
class _Failing:
    """A delivery that has failed, and will be attempted again.

    Attributes:
        delivery: The delivery.
        attempts: How many attempts have failed.
        again: When the next one is due, on the monotonic clock.
    """

    delivery: Delivery
    attempts: int
    again: float


class _Sender:
    """The task of one receiver.

    A delivery that fails delays all that come after it. Notifications are different, because owners choose
    their URIs: one that fails delays only those of the same owner.

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
        # By owner for notifications, else by the empty string.
        self._failing: dict[str, _Failing] = {}
        # Up to this change only the deliveries that have failed are left.
        self._seen = 0
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
        waiting = [one.delivery for one in self._failing.values()]
        waiting += [] if self._pending is None else [self._pending]
        oldest = min((one.time for one in waiting), default=0)
        backlog = max(self._backlog, int(bool(waiting)))
        return ReceiverStatus(self._receiver.name, backlog, oldest, self._results)

    async def change(self, receiver: Receiver) -> None:
        """Continue with a changed receiver, immediately."""
        if receiver != self._receiver:
            await self.close()
            self._receiver = receiver
            self._failing, self._seen = {}, 0
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """End the attempt."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def count(self) -> None:
        """Count what the receiver still has to get."""
        self._backlog = await self._deliveries.count(self.cursor, self._receiver.wanted)

    async def _run(self) -> None:
        errors = 0
        while True:
            try:
                await self._send_next()
                errors = 0
            except Exception:
                # The disk may be full. What was accepted before it is recorded is sent again.
                _logger.exception("webhook_sender_failed", extra={"receiver": self._receiver.name})
                errors += 1
                await asyncio.sleep(_pause(errors))

    async def _send_next(self) -> None:
        """Attempt the next delivery that is due, or wait for one."""
        wakes, now = self._deliveries.wakes, time.monotonic()
        paused = {key: one.again - now for key, one in self._failing.items() if one.again > now}
        if "" in paused and not self._receiver.is_notified:
            await asyncio.sleep(paused[""])
            return
        # Read before each attempt: the run may have been deleted since the last one.
        is_again = len(paused) < len(self._failing)
        after = self.cursor if is_again else max(self.cursor, self._seen)
        delivery, last = await self._deliveries.next(after, self._receiver.wanted, paused)
        self._pending = delivery
        if delivery is None:
            if not paused:
                self.cursor, self._backlog, self._failing = last, 0, {}
            await self._deliveries.wait(wakes, min([LOOK_SECONDS, *paused.values()]))
        elif why := await self._attempt(delivery):
            await self._fail(delivery, why)
        else:
            await self._finish(delivery, DELIVERED)
        self._seen = last

    async def _fail(self, delivery: Delivery, why: str) -> None:
        """Record a failed attempt, and drop the delivery if it is too old."""
        ids = {"receiver": self._receiver.name, "run_id": delivery.run_id}
        self._results[FAILED] += 1
        _logger.warning("webhook_failed", extra={**ids, "why": why})
        if not self._failing_since:
            self._failing_since = time.time_ns()
            await self._deliveries.fails(self._receiver.name, self._failing_since)
        if self._is_overdue(delivery):
            await self._finish(delivery, DROPPED)
            _logger.error("webhook_dropped", extra={**ids, "why": why})
            return
        key = self._key(delivery)
        known = self._failing.get(key)
        attempts = known.attempts + 1 if known and known.delivery.change == delivery.change else 1
        self._failing[key] = _Failing(delivery, attempts, time.monotonic() + _pause(attempts))
        self._pending = None

    async def _finish(self, delivery: Delivery, result: str) -> None:
        """Record that the receiver has got a delivery, or will not get it."""
        others = {key: one for key, one in self._failing.items() if key != self._key(delivery)}
        if result == DELIVERED and not others:
            self._failing_since = 0
        # What other owners still have to get may be older.
        cursor = min([delivery.change, *(one.delivery.change - 1 for one in others.values())])
        await self._deliveries.done(self._receiver.name, delivery, cursor, self._failing_since)
        self._failing, self._pending = others, None
        self._results[result] += 1
        self.cursor = self.durable = max(self.cursor, cursor)
        self._backlog = max(self._backlog - 1, 0)

    def _key(self, delivery: Delivery) -> str:
        return delivery.owner if self._receiver.is_notified else ""

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
