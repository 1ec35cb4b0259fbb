"""Forgets ended runs, oldest first: those whose time is over, and those that are too many or too large."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

from notebook_runner_server.runs.store import Store

PAGE_SECONDS = 60.0
"""How long after a page of an artefact the next one is waited for."""


class Readers:
    """Counts the open streams of each run, and remembers when a page of it was last read."""

    def __init__(self) -> None:
        self._streams: Counter[str] = Counter()
        self._pages: dict[str, float] = {}

    @contextmanager
    def stream(self, run_id: str) -> Iterator[None]:
        """Say that a stream of the run is open, between `with` and its end."""
        self._streams[run_id] += 1
        try:
            yield
        finally:
            self._streams[run_id] -= 1
            if not self._streams[run_id]:
                del self._streams[run_id]

    def page(self, run_id: str) -> None:
        """Say that a page of the run was read."""
        self._pages[run_id] = time.monotonic()

    def reads(self, run_id: str) -> bool:
        """Tell whether somebody reads the run."""
        now = time.monotonic()
        self._pages = {one: when for one, when in self._pages.items() if now - when < PAGE_SECONDS}
        return run_id in self._streams or run_id in self._pages


INTERVAL = 60.0
"""Seconds between two looks."""

BATCH = 100
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HistoryLimits:
    """What the history may take; zero: as much as it likes.

    Attributes:
        runs: Ended runs.
        total_bytes: The folders of ended runs together.
    """

    runs: int = 0
    total_bytes: int = 0


class Retention:
    """Forgets runs in the background.

    Args:
        store: Where they are.
        bounds: What the history may take.
        is_read: Tells whether somebody reads a run; such a run waits for the next look.
    """

    def __init__(self, store: Store, bounds: HistoryLimits, is_read: Callable[[str], bool]) -> None:
        self._store = store
        self._bounds = bounds
        self._is_read = is_read

    async def run(self) -> NoReturn:
        """Look again and again, for as long as the server runs."""
        while True:
            try:
                await self.look()
            except Exception:
                # A full disk must not end the one thing that makes room.
                _logger.exception("runs could not be forgotten")
            await asyncio.sleep(INTERVAL)

    async def look(self) -> None:
        """Forget what is to be forgotten now."""
        await self._forget_expired()
        if self._bounds.runs:
            ended = await self._store.count_ended()
            await self._forget_oldest(ended - self._bounds.runs, 0)
        if self._bounds.total_bytes:
            sizes = await asyncio.to_thread(self._store.sizes)
            await self._forget_oldest(0, sum(sizes.values()) - self._bounds.total_bytes)

    async def _forget_expired(self) -> None:
        after = 0
        while rows := await self._store.expired(after, BATCH):
            for row in rows:
                after = row.position
                if not self._is_read(row.run.run_id):
                    await self._store.delete(row)

    async def _forget_oldest(self, runs: int, size: int) -> None:
        """Forget ended runs until as many runs and bytes are gone, or none is left that nobody reads."""
        after = 0
        while (runs > 0 or size > 0) and (rows := await self._store.ended(after, BATCH)):
            for row in rows:
                after = row.position
                if (runs > 0 or size > 0) and not self._is_read(row.run.run_id):
                    size -= await asyncio.to_thread(self._store.folder(row.run.run_id).size)
                    runs -= 1
                    await self._store.delete(row)
