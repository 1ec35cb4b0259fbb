"""The event log of one run, and cursors over it.

State is a fold over events. The store has them all; the newest are kept here as well, for the readers that
follow live. No reader has a queue: each has a cursor, reads what is after it, and waits for one common
signal, so that a slow reader costs nothing and loses nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence

from notebook_runner_server.errors import RunNotFoundError, ShuttingDownError
from notebook_runner_server.execution.interface import (
    CellStarted,
    DisplayOutput,
    ErrorOutput,
    Failure,
    StreamOutput,
)
from notebook_runner_server.runs.model import Body, Event, Run, RunChanged, WriteBatch
from notebook_runner_server.runs.observer import RunContext
from notebook_runner_server.runs.salvage import shown_since
from notebook_runner_server.runs.store import Store
from notebook_runner_server.runs.transitions import Clock

RECENT_BYTES = 2 * 1024 * 1024
"""How much of the newest events is kept in memory for a run that goes on, about."""

_EVENT_BYTES = 500
_TYPE_BYTES = 150


class RunLog:
    """The events of one run.

    Args:
        store: Where they are kept.
        position: The run's position in the store.
        last_sequence: The sequence number of the newest event that the store has.
        ended: Whether that is the last one.
        clock: Tells when an event happens.
        run_context: Is told of the events that are shown to the readers.

    Attributes:
        clock: The same.
    """

    def __init__(
        self,
        store: Store,
        position: int,
        last_sequence: int,
        *,
        ended: bool,
        clock: Clock | None = None,
        run_context: RunContext | None = None,
    ) -> None:
        self._store = store
        self._run_context = run_context
        self.clock = clock or Clock()
        self.position = position
        self.last_sequence = last_sequence
        self.ended = ended
        self._recent: deque[Event] = deque()
        self._recent_bytes = 0
        self._news: asyncio.Future[None] | None = None
        self._closed = False

    def next_event(self, run: Run, body: Body, place: int = 0) -> Event:
        """Return the event that `append` will take as the one in `place` (0: the next)."""
        return Event(
            self.last_sequence + 1 + place, self.clock.now(), run.cells_completed, run.cells_total, body
        )

    async def append(
        self,
        run: Run,
        events: Sequence[Event],
        written: WriteBatch,
        expire_time: int | None = None,
        *,
        is_end: bool = False,
    ) -> None:
        """Make events durable, then show them to the readers; `is_end` as in `Store.append`.

        Raises:
            StorageFullError: They could not be written; nobody was shown any.
        """
        await self._store.append(self.position, run, events, written, expire_time, is_end=is_end)
        self.publish(events)

    def publish(self, events: Sequence[Event]) -> None:
        """Show events to the readers."""
        if not events:
            return
        self.last_sequence = events[-1].sequence
        self.ended = events[-1].is_terminal
        for event in events:
            self._recent.append(event)
            self._recent_bytes += _size(event)
        while self._recent_bytes > RECENT_BYTES and len(self._recent) > 1:
            self._recent_bytes -= _size(self._recent.popleft())
        if self._news is not None:
            self._news.set_result(None)
            self._news = None
        if self._run_context is not None:
            self._run_context.tell(events)

    def close(self) -> None:
        """Send the readers away: the server stops, and this run goes on after its next start."""
        self._closed = True
        if self._news is not None:
            self._news.set_result(None)
            self._news = None

    async def read(self, after: int) -> Sequence[Event]:
        """Return some events after a sequence number, in order; none: there are no more yet."""
        if self._recent and self._recent[0].sequence <= after + 1:
            skip = after + 1 - self._recent[0].sequence
            return [self._recent[place] for place in range(skip, len(self._recent))]
        return await self._store.events(self.position, after)

    async def shown(self) -> AsyncIterator[Sequence[Event]]:
        """Yield the events of the newest cell that tell of what it still shows, in order."""
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

    async def source(self, run_id: str, part: int) -> bytes:
        """Return a part of the notebook as it was before it was executed."""
        return await self._store.source(run_id, self.position, part)

    async def note_begun(self, run_id: str) -> None:
        """Note that the run is not to be executed by a later server, whatever the history says."""
        await self._store.note_begun(run_id)

    async def follow(self, after: int, idle: float) -> AsyncIterator[Sequence[Event]]:
        """Yield all events after a sequence number, then what comes, until the terminal one.

        Args:
            after: The last sequence number that the reader has.
            idle: Seconds without an event after which nothing is yielded, as a sign of life.
        """
        while True:
            if after < self.last_sequence:
                events = await self.read(after)
                if not events:
                    raise RunNotFoundError("The run was forgotten while it was read.", field="run_id")
                after = events[-1].sequence
                yield events
            elif self.ended:
                return
            elif self._closed:
                raise ShuttingDownError(
                    "The server is shutting down; the run waits or goes on: follow it when it is back."
                )
            elif not await self._wait(idle):
                yield ()

    async def _wait(self, seconds: float) -> bool:
        """Wait for the next event; false: there was none in this time."""
        if self._news is None:
            self._news = asyncio.get_running_loop().create_future()
        done, _ = await asyncio.wait([self._news], timeout=seconds)
        return bool(done)


def _size(event: Event) -> int:
    body = event.body
    if isinstance(body, DisplayOutput):
        return _EVENT_BYTES + sum(_TYPE_BYTES + len(mime) for mime, _ in body.data)
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
