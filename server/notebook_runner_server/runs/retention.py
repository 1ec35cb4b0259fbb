"""Forgets ended runs, oldest first: those whose time is over, and those that are too many or too large."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from notebook_runner_server.runs.store import Store

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
