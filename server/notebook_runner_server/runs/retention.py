"""Retention: delete ended runs, oldest first, that have expired or exceed the limits of the history."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

from notebook_runner_server.runs.log import RunLog
from notebook_runner_server.runs.problems import ProblemLogger
from notebook_runner_server.runs.store import Store

PAGE_SECONDS = 60.0
"""How long a reader may take between two pages of an artefact."""

INTERVAL = 60.0
"""Seconds between two sweeps."""

BATCH = 100
_logger = ProblemLogger(__name__)


class Readers:
    """Knows the open streams of each run, and remembers when a page of it was last read."""

    def __init__(self) -> None:
        self._streams: dict[str, list[RunLog]] = {}
        self._pages: dict[str, float] = {}

    @contextmanager
    def stream(self, run_id: str, log: RunLog) -> Iterator[None]:
        """Register a stream of the run that reads from a log, until the context ends."""
        self._streams.setdefault(run_id, []).append(log)
        try:
            yield
        finally:
            self._streams[run_id].remove(log)
            if not self._streams[run_id]:
                del self._streams[run_id]

    def end(self, run_id: str) -> None:
        """End the streams of a run that was deleted."""
        for log in self._streams.get(run_id, ()):
            log.end_deleted()
        self._pages.pop(run_id, None)

    def page(self, run_id: str) -> None:
        """Record that a page of the run was read."""
        self._pages[run_id] = time.monotonic()

    def is_read(self, run_id: str) -> bool:
        """Return whether somebody reads the run."""
        now = time.monotonic()
        self._pages = {one: when for one, when in self._pages.items() if now - when < PAGE_SECONDS}
        return run_id in self._streams or run_id in self._pages


@dataclass(frozen=True, slots=True)
class HistoryLimits:
    """The limits of the history; zero: unlimited.

    Attributes:
        runs: How many ended runs are stored.
        total_bytes: The size of the folders of all ended runs.
    """

    runs: int = 0
    total_bytes: int = 0


class Retention:
    """Deletes runs in the background.

    Args:
        store: Where they are.
        limits: The limits of the history.
        is_read: Returns whether somebody reads a run; such a run is left to a later sweep.
        is_due: Returns whether this server has to sweep now, and not another one of the same history.
    """

    def __init__(
        self,
        store: Store,
        limits: HistoryLimits,
        is_read: Callable[[str], bool],
        is_due: Callable[[], bool] = lambda: True,
    ) -> None:
        self._store = store
        self._limits = limits
        self._is_read = is_read
        self._is_due = is_due

    async def run(self) -> NoReturn:
        """Sweep again and again, until cancelled."""
        while True:
            try:
                if self._is_due():
                    await self.sweep()
            except Exception:
                # A full disk must not end the task that frees space.
                _logger.exception("retention_failed")
            await asyncio.sleep(INTERVAL)

    async def sweep(self) -> None:
        """Delete the runs that are due now."""
        await self._delete_expired()
        if self._limits.runs:
            ended = await self._store.count_ended()
            await self._delete_oldest(ended - self._limits.runs, 0)
        if self._limits.total_bytes:
            sizes = await asyncio.to_thread(self._store.sizes)
            # What an active run stores must not remove runs that have ended.
            for record in await self._store.unended():
                sizes.pop(record.run_id, None)
            await self._delete_oldest(0, sum(sizes.values()) - self._limits.total_bytes)

    async def _delete_expired(self) -> None:
        after = 0
        while rows := await self._store.expired(after, BATCH):
            for row in rows:
                after = row.position
                if not self._is_read(row.run_id):
                    await self._store.delete(row, is_expired=True)

    async def _delete_oldest(self, runs: int, size: int) -> None:
        """Delete ended runs until that many runs and bytes are gone, or only runs that are read remain."""
        after = 0
        while (runs > 0 or size > 0) and (rows := await self._store.ended(after, BATCH)):
            for row in rows:
                after = row.position
                if (runs > 0 or size > 0) and not self._is_read(row.run_id):
                    size -= await asyncio.to_thread(self._store.folder(row.run_id).size)
                    runs -= 1
                    await self._store.delete(row, is_expired=True)
