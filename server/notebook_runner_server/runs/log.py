"""The event log of one run, and the readers that follow it.

The store has all events; the newest are kept in memory as well, for live readers. A reader has a position in
the log instead of a queue: it reads what comes after that position. A slow reader costs nothing and loses
nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from notebook_runner_server.errors import RunNotFoundError, ShuttingDownError
from notebook_runner_server.execution.interface import (
    CellStarted,
    DisplayOutput,
    ErrorOutput,
    Failure,
    StreamOutput,
)
from notebook_runner_server.runs.model import Event, Run, RunChanged, Successor, WriteBatch
from notebook_runner_server.runs.salvage import shown_since
from notebook_runner_server.runs.store import Store
from notebook_runner_server.runs.transitions import Clock
from notebook_runner_server.runs.waiters import Waiters

RECENT_BYTES = 2 * 1024 * 1024
"""About how much of the newest events of an active run stays in memory, and of those with content."""

_EVENT_BYTES = 500
_TYPE_BYTES = 150


class RunLog:
    """The events of one run.

    Args:
        store: Where they are stored.
        position: The run's position in the store.
        last_sequence: The sequence number of the newest event in the store.
        ended: Whether that is the terminal event.
        clock: The run's clock; None: a new one, for a run that has ended.
        on_events: Called with new events, when readers can see them.

    Attributes:
        clock: The run's clock.
    """

    def __init__(
        self,
        store: Store,
        position: int,
        last_sequence: int,
        *,
        ended: bool,
        clock: Clock | None = None,
        on_events: Callable[[Sequence[Event]], object] = lambda _: None,
    ) -> None:
        self._store = store
        self.clock = clock or Clock()
        self._on_events = on_events
        self.position = position
        self.last_sequence = last_sequence
        self.ended = ended
        self._recent: deque[Event] = deque()
        self._encoded: dict[int, bytes] = {}
        self._recent_bytes = 0
        # Apart from the others, whose readers would otherwise have to read earlier events from the store.
        self._with_content: dict[tuple[int, ...], bytes] = {}
        self._content_bytes = 0
        self._encoding = asyncio.Lock()
        self._refreshing = asyncio.Lock()
        self._waiters = Waiters()
        self._closed = False
        self._is_deleted = False

    async def append(
        self,
        run: Run,
        events: Sequence[Event],
        written: WriteBatch,
        expire_time: int | None = None,
        *,
        is_end: bool = False,
        is_first_step: bool = False,
        max_active: int | None = None,
        successor: Successor | None = None,
    ) -> int:
        """Make events durable, then publish them; arguments and result as in `Store.append`.

        Raises:
            StorageFullError: They could not be written; none was published.
            ClaimedError: The same; another server has claimed the run.
            OutdatedError: The same; the owner's other runs have all the workers that they may have.
        """
        position = await self._store.append(
            self.position,
            run,
            events,
            written,
            expire_time,
            is_end=is_end,
            is_first_step=is_first_step,
            max_active=max_active,
            successor=successor,
        )
        self.publish(events)
        return position

    def publish(self, events: Sequence[Event]) -> None:
        """Let readers see events that are durable, and observers those of this server."""
        self._show(events)
        if events:
            self._on_events(events)

    async def refresh(self) -> None:
        """Let readers see the events that another server has written.

        Raises:
            RunnerError: They cannot be read.
        """
        async with self._refreshing:
            while not self.ended and (events := await self._store.events(self.position, self.last_sequence)):
                self._show(events)

    def _show(self, events: Sequence[Event]) -> None:
        if not events:
            return
        self.last_sequence = events[-1].sequence
        self.ended = events[-1].is_terminal
        for event in events:
            self._recent.append(event)
            self._recent_bytes += _size(event)
        while self._recent_bytes > RECENT_BYTES and len(self._recent) > 1:
            oldest = self._recent.popleft()
            self._recent_bytes -= _size(oldest) + len(self._encoded.pop(oldest.sequence, b""))
        self._waiters.wake()

    def close(self) -> None:
        """End all readers: the server stops, and the run continues after its next start."""
        self._closed = True
        self._waiters.wake()

    def end_deleted(self) -> None:
        """End all readers: the run was deleted, also what of it is still in memory."""
        self._is_deleted = True
        self._waiters.wake()

    async def read(self, after: int) -> Sequence[Event]:
        """Return some events after a sequence number, in order; none: no more exist yet."""
        if self._recent and self._recent[0].sequence <= after + 1 <= self._recent[-1].sequence:
            skip = after + 1 - self._recent[0].sequence
            return [self._recent[index] for index in range(skip, len(self._recent))]
        return await self._store.events(self.position, after)

    async def newest(self) -> int:
        """Return the sequence number of the newest event that is durable, whichever server has written it."""
        stored = await self._store.last_sequences([self.position])
        return max(self.last_sequence, stored.get(self.position, 0))

    def encoded(self, event: Event, encode: Callable[[Event], bytes]) -> bytes:
        """Return what `encode` makes of an event: once for all readers while the event stays in memory."""
        data = self._encoded.get(event.sequence)
        if data is None:
            data = encode(event)
            if self._recent and event.sequence >= self._recent[0].sequence:
                self._encoded[event.sequence] = data
                self._recent_bytes += len(data)
        return data

    async def encoded_with_content(
        self, event: Event, indexes: Sequence[int], encode: Callable[[], Awaitable[bytes]]
    ) -> bytes:
        """Return an encoded event with the content of some representations: one at a time for all readers.

        Args:
            event: The event.
            indexes: The representations.
            encode: Reads the content, and encodes the event with it.
        """
        key = (event.sequence, *indexes)
        async with self._encoding:
            data = self._with_content.get(key)
            if data is None:
                data = await encode()
                # A log without recent events has one reader.
                if self._recent:
                    self._with_content[key] = data
                    self._content_bytes += len(data)
                while self._content_bytes > RECENT_BYTES:
                    self._content_bytes -= len(self._with_content.pop(next(iter(self._with_content))))
        return data

    async def shown(self) -> AsyncIterator[Sequence[Event]]:
        """Yield the events of the newest cell whose output it still shows, in order."""
        since, before, output_after = None, self.last_sequence + 1, False
        while since is None:
            events = await self._store.events_before(self.position, before)
            if not events:
                return
            before = events[-1].sequence
            since, output_after = shown_since(events, output_after=output_after)
        while events := await self._store.events(self.position, since):
            yield events
            since = events[-1].sequence

    async def follow(self, after: int, idle: float) -> AsyncIterator[Sequence[Event]]:
        """Yield all events after a sequence number, then new ones as they come, until the terminal one.

        Args:
            after: The last sequence number that the reader has.
            idle: Seconds without an event after which an empty batch is yielded, as a heartbeat.

        Raises:
            RunNotFoundError: The run was deleted meanwhile.
            ShuttingDownError: The server is shutting down.
        """
        while True:
            if self._is_deleted:
                raise _deleted()
            if after < self.last_sequence:
                events = await self.read(after)
                if not events:
                    raise _deleted()
                after = events[-1].sequence
                yield events
                if events[-1].is_terminal and not self._is_deleted:
                    # Another server may have written it: the store may have more events than this log.
                    return
            elif self.ended:
                return
            elif self._closed:
                raise ShuttingDownError(
                    "The server is shutting down. The run continues: follow it again after the restart."
                )
            elif not await self._waiters.wait(idle):
                yield ()


def _deleted() -> RunNotFoundError:
    return RunNotFoundError("The run was deleted during this call.", field="run_id")


def _size(event: Event) -> int:
    body = event.body
    if isinstance(body, DisplayOutput):
        value = len(body.result.value_json) if body.result else 0
        return _EVENT_BYTES + value + sum(_TYPE_BYTES + len(mime) for mime, _ in body.data)
    texts: list[str] = []
    match body:
        case StreamOutput():
            texts = [body.text]
        case ErrorOutput():
            texts = [body.exception_name, body.exception_message]
        case CellStarted():
            texts = [body.first_line]
        case RunChanged(Run(failure=Failure() as failure)):
            texts = [failure.message, failure.exception_message, failure.traceback]
    return _EVENT_BYTES + sum(map(len, texts))
