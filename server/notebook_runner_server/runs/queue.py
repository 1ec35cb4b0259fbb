"""The queue: which of the waiting runs gets the next free worker.

Owners take turns. The next run is one of the owner that has the fewest runs at work; among several such
owners, of the one whose last turn was the longest ago, or that has waited longest for its first. So an owner
with many waiting runs delays another owner's run by the rest of one run, and not by all of its own. Within an
owner, the run with the highest priority is next, and of several such runs the one that was admitted first.
"""

from __future__ import annotations

import asyncio
import bisect
import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from notebook_runner_server.runs.active import ActiveRun

_MAX_TURNS = 10_000
"""How many owners' last turns are remembered; an owner that is forgotten is next."""


@dataclass(frozen=True, slots=True, order=True)
class _Waiting:
    """A waiting run; those that start earlier are smaller."""

    descending_priority: int
    position: float
    active: ActiveRun | None = field(compare=False)
    eligible: float = field(compare=False)
    """When it may start, by the event loop's clock."""


class RunQueue:
    """The waiting runs.

    Args:
        max_active: Returns how many runs of an owner may be at work at a time; None: any number.
    """

    def __init__(self, max_active: Callable[[str], int | None] = lambda _: None) -> None:
        self._max_active = max_active
        self._waiting: dict[str, list[_Waiting]] = {}
        self._entries: dict[ActiveRun, _Waiting] = {}
        # The number of each owner's last turn, the oldest first.
        self._turns: dict[str, int] = {}
        self._turn = 0
        self._positions: dict[ActiveRun, int] | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, active: ActiveRun) -> bool:
        return active in self._entries

    def __iter__(self) -> Iterator[ActiveRun]:
        return iter(list(self._entries))

    @property
    def delayed(self) -> int:
        """How many runs wait for a time."""
        return self.delayed_at(self._now())

    def delayed_at(self, now: float) -> int:
        """Return how many runs wait for a time, by the event loop's clock; may be called on any thread."""
        return sum(one.eligible > now for one in list(self._entries.values()))

    def count(self, owner: str) -> int:
        """Return how many runs of an owner wait."""
        return len(self._waiting.get(owner, ()))

    def add(self, active: ActiveRun, delay: float = 0.0) -> None:
        """Add a run that may start after a delay in seconds."""
        run = active.run
        entry = _Waiting(-run.priority, active.log.position, active, self._now() + delay)
        bisect.insort(self._waiting.setdefault(run.owner, []), entry)
        self._entries[active] = entry
        self._positions = None

    def remove(self, active: ActiveRun) -> None:
        """Remove a run.

        Raises:
            KeyError: It does not wait.
        """
        entry = self._entries.pop(active)
        owner = active.run.owner
        self._waiting[owner].remove(entry)
        if not self._waiting[owner]:
            del self._waiting[owner]
        self._positions = None

    def shares_changed(self) -> None:
        """Forget positions that depend on how many runs an owner may have at work."""
        self._positions = None

    def take(self, at_work: Mapping[str, int]) -> ActiveRun | None:
        """Remove the run that is next, and return it; None: no run may start now.

        Args:
            at_work: How many runs of each owner are at work.
        """
        now = self._now()
        ready = {
            owner: next(filter(None, (one.active for one in waiting if one.eligible <= now)), None)
            for owner, waiting in self._waiting.items()
            if self._may_start(owner, at_work.get(owner, 0))
        }
        if not (owners := [(one, active) for one, active in ready.items() if active is not None]):
            return None
        owner, active = min(
            owners,
            key=lambda one: (at_work.get(one[0], 0), self._turns.get(one[0], 0), one[1].log.position),
        )
        self.remove(active)
        self.take_turn(owner)
        return active

    def take_turn(self, owner: str) -> None:
        """Record that a run of an owner has got a worker, here or at another server."""
        self._turn += 1
        self._turns.pop(owner, None)
        self._turns[owner] = self._turn
        if len(self._turns) > _MAX_TURNS:
            del self._turns[next(iter(self._turns))]

    def seconds_to_next(self) -> float | None:
        """Return the seconds until the next run may start that may not start yet; None: there is none."""
        now = self._now()
        later = [one.eligible - now for one in self._entries.values() if one.eligible > now]
        return min(later, default=None)

    def position(self, active: ActiveRun, at_work: Callable[[], Mapping[str, int]]) -> int | None:
        """Return how many waiting runs start before this one, as things stand; None: it does not wait."""
        if active not in self._entries:
            return None
        if self._positions is None:
            ready, held = self._order(self._waiting, at_work())
            order = (one.active for one in [*ready, *held])
            self._positions = {one: number for number, one in enumerate(order) if one is not None}
        return self._positions[active]

    def position_of_new(
        self, owner: str, priority: int, at_work: Mapping[str, int], delay: float = 0.0
    ) -> int:
        """Return how many waiting runs would start before a run that is added now, with this delay."""
        new = self._new(priority, delay)
        ready, held = self._order(self._with(owner, new), at_work)
        return [*ready, *held].index(new)

    def starting_with_new(
        self, owner: str, priority: int, at_work: Mapping[str, int], free: int
    ) -> Counter[str]:
        """Return how many runs of each owner start immediately if a run is added now.

        Args:
            owner: The owner of the new run.
            priority: Its priority.
            at_work: How many runs of each owner are at work.
            free: How many workers are free.
        """
        if free <= 0:
            return Counter()
        ready, _ = self._order(self._with(owner, self._new(priority)), at_work)
        return Counter(owner if one.active is None else one.active.run.owner for one in ready[:free])

    def _new(self, priority: int, delay: float = 0.0) -> _Waiting:
        return _Waiting(-priority, float("inf"), None, self._now() + delay)

    def _with(self, owner: str, new: _Waiting) -> dict[str, list[_Waiting]]:
        return {**self._waiting, owner: sorted([*self._waiting.get(owner, ()), new])}

    def _order(
        self, waiting: Mapping[str, list[_Waiting]], at_work: Mapping[str, int]
    ) -> tuple[list[_Waiting], list[_Waiting]]:
        """Return waiting runs in the order in which they start if no run ends and none is added.

        Runs that wait for a time, or for an end of their owner's other runs, are in the second list.
        """
        now, busy = self._now(), Counter(at_work)
        ready = {owner: [one for one in runs if one.eligible <= now] for owner, runs in waiting.items()}
        order: list[_Waiting] = []
        held: list[_Waiting] = []
        turn = self._turn
        heap = [
            (busy[owner], self._turns.get(owner, 0), runs[0].position, owner, 0)
            for owner, runs in ready.items()
            if runs
        ]
        heapq.heapify(heap)
        while heap:
            *_, owner, number = heapq.heappop(heap)
            if not self._may_start(owner, busy[owner]):
                held += ready[owner][number:]
                continue
            order.append(ready[owner][number])
            busy[owner] += 1
            turn += 1
            if number + 1 < len(ready[owner]):
                heapq.heappush(
                    heap, (busy[owner], turn, ready[owner][number + 1].position, owner, number + 1)
                )
        later = [one for runs in waiting.values() for one in runs if one.eligible > now]
        return order, held + sorted(later, key=lambda one: one.eligible)

    def _may_start(self, owner: str, active: int) -> bool:
        most = self._max_active(owner)
        return most is None or active < most

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
