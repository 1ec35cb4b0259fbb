"""The size of each owner's history, for the owners' shares of it.

It is measured once, in the background; from then on, the end of a run adds the size of its folder, and its
deletion subtracts it. So a Start visits no files.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping

from notebook_runner_server.runs.model import Event, RunChanged
from notebook_runner_server.runs.observer import RunContext
from notebook_runner_server.runs.problems import ProblemLogger
from notebook_runner_server.runs.store import Store

RETRY_INTERVAL = 60.0
"""Seconds until a history that could not be read is measured again."""

_BATCH = 100
_logger = ProblemLogger(__name__)


class HistorySizes:
    """Knows the size of all ended runs of each owner; an observer of runs.

    Args:
        store: Where the runs are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._task: asyncio.Task[None] | None = None
        self._is_measured = False
        # The owner and the size of each ended run, so that a deletion subtracts what its end has added.
        self._known: dict[str, tuple[str, int]] = {}
        self._totals: Counter[str] = Counter()
        # The measurements of runs that have just ended, with their owners.
        self._pending: dict[asyncio.Task[None], str] = {}
        # The runs that were deleted while others, or they themselves, were measured.
        self._measurements = 0
        self._deleted: set[str] = set()

    def start(self) -> None:
        """Begin to measure, unless that has begun before."""
        if self._task is None:
            self._store.on_delete = self._on_delete
            self._task = asyncio.create_task(self._measure_all())

    async def close(self) -> None:
        """Stop measuring."""
        tasks = [*self._pending, *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def size(self, owner: str) -> int | None:
        """Return the size of an owner's ended runs, all that have ended so far; None: not measured yet."""
        if pending := [task for task, one in self._pending.items() if one == owner]:
            await asyncio.wait(pending)
        return self.latest(owner)

    def latest(self, owner: str) -> int | None:
        """Return the size of an owner's ended runs without those that are being measured; None: unknown."""
        return self._totals[owner] if self._is_measured else None

    def on_event(self, run_context: RunContext, event: Event) -> None:
        """Add the size of a run that has ended."""
        if isinstance(event.body, RunChanged) and event.body.run.state.is_terminal:
            self.add(run_context.run_id, run_context.owner)

    def on_left(self, run_context: RunContext) -> None:
        """Wait for the end of a run at another server, which has to be passed to `add`."""

    def add(self, run_id: str, owner: str) -> None:
        """Add the size of a run that has ended, here or at another server."""
        if self._task is None:
            return
        self._begin()
        task = asyncio.create_task(self._measure({run_id: owner}))
        self._pending[task] = owner
        task.add_done_callback(self._on_measured)

    def _on_measured(self, task: asyncio.Task[None]) -> None:
        del self._pending[task]
        self._end()

    def _on_delete(self, run_id: str) -> None:
        if self._measurements:
            self._deleted.add(run_id)
        owner, size = self._known.pop(run_id, ("", 0))
        self._totals[owner] -= size
        if not self._totals[owner]:
            del self._totals[owner]

    async def _measure_all(self) -> None:
        while not self._is_measured:
            self._begin()
            try:
                after = 0
                while records := await self._store.ended(after, _BATCH):
                    await self._measure({one.run_id: one.owner for one in records})
                    after = records[-1].position
                self._is_measured = True
            except Exception:
                _logger.exception("history_not_measured")
                await asyncio.sleep(RETRY_INTERVAL)
            finally:
                self._end()

    async def _measure(self, owners: Mapping[str, str]) -> None:
        """Add the sizes of ended runs.

        Args:
            owners: The owner of each run.
        """
        sizes = await asyncio.to_thread(self._sizes, list(owners))
        for run_id in sizes.keys() - self._known.keys() - self._deleted:
            owner, size = owners[run_id], sizes[run_id]
            self._known[run_id] = owner, size
            self._totals[owner] += size

    def _sizes(self, run_ids: Iterable[str]) -> dict[str, int]:
        """Return the size of each run's folder, of those that can be read; blocks."""
        sizes = {}
        for run_id in run_ids:
            try:
                sizes[run_id] = self._store.folder(run_id).size()
            except OSError as error:
                _logger.warning("run_not_measured", extra={"run_id": run_id, "why": str(error)})
        return sizes

    def _begin(self) -> None:
        self._measurements += 1

    def _end(self) -> None:
        self._measurements -= 1
        if not self._measurements:
            self._deleted.clear()
