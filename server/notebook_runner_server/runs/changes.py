"""The changes of all runs, and the watchers that follow them.

The store has all changes; the newest are kept in memory as well, read once for all live watchers. A watcher
has a cursor instead of a queue: it reads what comes after that. A slow watcher costs nothing and loses
nothing.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

from notebook_runner_server.errors import CursorExpiredError, InvalidFieldError, ShuttingDownError
from notebook_runner_server.runs import tables
from notebook_runner_server.runs.database import Database
from notebook_runner_server.runs.model import Change, ChangeFilter
from notebook_runner_server.runs.patience import patient
from notebook_runner_server.runs.tables import ChangeBatch, ChangesState
from notebook_runner_server.runs.waiters import Waiters

RECENT_BYTES = 2 * 1024 * 1024
"""About how much of the newest changes stays in memory."""

_CHANGE_BYTES = 1000
_MAX_BEHIND = 1000
"""After how many changes that nobody has watched the newest are not read, but skipped."""

_AT_ONCE = 32
"""How many changes a watcher takes from memory at a time, because it holds them until it has sent them."""

_ALL = ChangeFilter()
_MAX_NUMBER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class WatchCursor:
    """How far a watcher has come.

    Attributes:
        history_id: The history.
        change: The number of the last change that it knows.
        position: The position of the last existing run that it knows, as of that change; None: it knows all.
    """

    history_id: str
    change: int
    position: int | None = None

    def __str__(self) -> str:
        position = "" if self.position is None else self.position
        return base64.urlsafe_b64encode(f"{self.history_id}:{self.change}:{position}".encode()).decode()

    @classmethod
    def parse(cls, text: str) -> WatchCursor:
        """Return the cursor that a text encodes.

        Raises:
            InvalidFieldError: It encodes none.
        """
        try:
            history_id, change, position = base64.urlsafe_b64decode(text).decode("ascii").split(":")
            cursor = cls(history_id, int(change), int(position) if position else None)
        except (binascii.Error, ValueError):
            cursor = None
        # A number has several forms as text, of which one is a cursor's.
        if cursor is None or str(cursor) != text or not cursor.is_in_range:
            message = f"cursor must be the cursor of a message of Watch (got {text[:100]!r})."
            raise InvalidFieldError(message, field="cursor")
        return cursor

    @property
    def is_in_range(self) -> bool:
        """Whether SQLite could have its numbers."""
        return all(0 <= number <= _MAX_NUMBER for number in (self.change, self.position or 0))


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """What a watcher gets next.

    Attributes:
        changes: Changes, each with the cursor after it.
        cursor: The cursor after all of them.
        is_existing_end: Whether all runs that existed have been sent.
        is_heartbeat: Whether the watcher has waited long enough for a message without a change.
    """

    changes: Sequence[tuple[WatchCursor, Change]]
    cursor: WatchCursor
    is_existing_end: bool = False
    is_heartbeat: bool = False


class ChangeLog:
    """The changes of a history.

    Args:
        database: Where they are stored.
        on_damage: Called with the id of a run whose change is damaged, and with the reason.

    Attributes:
        wakes: How often `wake` was called.
    """

    def __init__(self, database: Database, on_damage: Callable[[str, str], object]) -> None:
        self._database = database
        self._on_damage = on_damage
        # All changes after `_start` up to `_end`, unless they were damaged.
        self._recent: list[Change] = []
        self._start = self._end = 0
        self._encoded: dict[int, bytes] = {}
        self._recent_bytes = 0
        self._is_stale = True
        self._loading: asyncio.Task[None] | None = None
        # How often the database had fewer changes than before.
        self._losses = 0
        self._waiters = Waiters()
        # Woken by looks, and not by changes of this server.
        self._others_waiters = Waiters()
        # The newest change at the last look that found one.
        self._looked = 0
        self.wakes = 0
        self._is_closed = False

    def wake(self) -> None:
        """Let watchers see changes that are durable."""
        self._is_stale = True
        self.wakes += 1
        self._waiters.wake()

    async def look(self) -> None:
        """Wake the watchers if another server has changed something."""
        last = await self.last()
        # Not compared with `_end`: a new watcher may have advanced it without waking the others.
        if last != self._looked:
            self._looked = last
            self.wake()
        self._others_waiters.wake()

    async def wait(self, wakes: int, seconds: float) -> None:
        """Wait until `wake` was called more than `wakes` times, or until a time has passed."""
        if self.wakes <= wakes and not self._is_closed:
            await self._waiters.wait(seconds)

    async def cursor(self) -> WatchCursor:
        """Return the cursor of a watcher that begins now."""
        state = await self._database.read(tables.changes_state)
        return WatchCursor(state.history_id, state.last)

    async def last(self) -> int:
        """Return the number of the newest change."""
        return (await self._database.read(tables.changes_state)).last

    def close(self) -> None:
        """End all watchers when they have got everything: the server stops."""
        self._is_closed = True
        self._waiters.wake()
        self._others_waiters.wake()

    def encoded(self, change: Change, encode: Callable[[], bytes]) -> bytes:
        """Return what `encode` makes of a change: once for all watchers while it stays in memory."""
        data = self._encoded.get(change.number)
        if data is None:
            data = encode()
            if self._start < change.number <= self._end:
                self._encoded[change.number] = data
                self._recent_bytes += len(data)
        return data

    async def watch(
        self,
        cursor: WatchCursor | None,
        wanted: ChangeFilter,
        *,
        include_existing: bool,
        idle: float,
        own: bool = True,
    ) -> AsyncIterator[WatchBatch]:
        """Yield the changes after a cursor, then new ones as they come.

        Args:
            cursor: The cursor; None: begin now.
            wanted: Which changes the watcher gets.
            include_existing: Begin with the runs that exist, if there is no cursor.
            idle: Seconds without a change after which a heartbeat is yielded.
            own: Whether changes of this server wake the watcher; otherwise it gets them after the next look.

        Raises:
            CursorExpiredError: Some changes after the cursor are not known.
            ShuttingDownError: The server is shutting down.
        """
        state = await self._database.read(tables.changes_state)
        if cursor is None:
            cursor = WatchCursor(state.history_id, state.last, 0 if include_existing else None)
            if not include_existing:
                # From here on the watcher can continue.
                yield WatchBatch((), cursor, is_heartbeat=True)
        elif cursor.history_id != state.history_id or cursor.change > state.last:
            raise _expired()
        _check(cursor, state)
        while cursor.position is not None:
            batch = await self._existing(cursor, wanted)
            yield batch
            cursor = batch.cursor
        waiters = self._waiters if own else self._others_waiters
        losses = self._losses
        while True:
            is_loaded = await self._refresh(idle)
            if self._losses != losses and cursor.change > self._end:
                raise _expired()
            losses = self._losses
            if cursor.change < self._end:
                batch = await self._after(cursor, wanted)
                yield batch
                cursor = batch.cursor
            elif self._is_closed:
                raise ShuttingDownError(
                    "The server is shutting down. Watch again from the last cursor after its restart."
                )
            elif not is_loaded or (not self._is_stale and not await waiters.wait(idle)):
                yield WatchBatch((), cursor, is_heartbeat=True)

    async def _existing(self, cursor: WatchCursor, wanted: ChangeFilter) -> WatchBatch:
        read = await self._database.read(tables.read_existing, cursor.change, cursor.position or 0, wanted)
        self._record_damage(read)
        _check(cursor, read.state)
        changes = [(replace(cursor, position=position), change) for position, change in read.changes]
        return WatchBatch(changes, replace(cursor, position=read.last), is_existing_end=read.last is None)

    async def _after(self, cursor: WatchCursor, wanted: ChangeFilter) -> WatchBatch:
        if cursor.change >= self._start:
            first = bisect_right(self._recent, cursor.change, key=attrgetter("number"))
            found = self._recent[first : first + _AT_ONCE]
            last = self._end if first + _AT_ONCE >= len(self._recent) else found[-1].number
            changes = [change for change in found if wanted.matches(change)]
        else:
            read = await self._database.read(tables.read_changes, cursor.change, wanted)
            self._record_damage(read)
            _check(cursor, read.state)
            last = read.state.last if read.last is None else read.last
            changes = [change for _, change in read.changes]
        return WatchBatch(
            [(replace(cursor, change=change.number), change) for change in changes],
            replace(cursor, change=last),
        )

    async def _refresh(self, seconds: float) -> bool:
        """Read the changes since the last refresh, once for all watchers; false: the read takes longer."""
        if self._loading is None and self._is_stale:
            # In a task of its own: while the database is away, no watcher waits for another one's read.
            with patient():
                self._loading = asyncio.create_task(self._load_all())
            self._loading.add_done_callback(self._loaded)
        if (loading := self._loading) is None:
            return True
        done, _ = await asyncio.wait({loading}, timeout=seconds)
        if done:
            loading.result()
        return bool(done)

    def _loaded(self, task: asyncio.Task[None]) -> None:
        self._loading = None
        # Retrieves the exception, which no other code does if all watchers have left.
        if task.cancelled() or task.exception() is not None:
            self._is_stale = True

    async def _load_all(self) -> None:
        while self._is_stale:
            self._is_stale = False
            await self._load()

    async def _load(self) -> None:
        is_end = False
        while not is_end:
            read = await self._database.read(tables.read_changes, self._end, _ALL)
            state = read.state
            # A database that has failed over may have lost the newest.
            is_lost = state.last < self._end
            self._losses += is_lost
            if is_lost or state.last - self._end > _MAX_BEHIND or state.expired > self._end:
                self._recent.clear()
                self._encoded.clear()
                self._recent_bytes = 0
                self._start = self._end = state.last
                return
            self._record_damage(read)
            for _, change in read.changes:
                self._recent.append(change)
                self._recent_bytes += _CHANGE_BYTES + change.size
            is_end = read.last is None
            self._end = state.last if read.last is None else read.last
            self._trim()

    def _trim(self) -> None:
        excess = 0
        while self._recent_bytes > RECENT_BYTES and excess < len(self._recent) - 1:
            oldest = self._recent[excess]
            encoded = self._encoded.pop(oldest.number, b"")
            self._recent_bytes -= _CHANGE_BYTES + oldest.size + len(encoded)
            self._start = oldest.number
            excess += 1
        del self._recent[:excess]

    def _record_damage(self, read: ChangeBatch) -> None:
        for run_id, why in read.damaged:
            if run_id:
                self._on_damage(run_id, why)


def _check(cursor: WatchCursor, state: ChangesState) -> None:
    """Check that all changes after a cursor are known.

    Raises:
        CursorExpiredError: Some are not.
    """
    if cursor.change < state.expired:
        raise _expired()


def _expired() -> CursorExpiredError:
    return CursorExpiredError(
        "The cursor has expired: some changes after it are no longer known. Watch again without a cursor.",
        field="cursor",
    )
