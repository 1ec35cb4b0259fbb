"""Which waiting run is next: owners take turns, and each one's runs keep their order."""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from notebook_runner_server.runs import queue as queues
from notebook_runner_server.runs.queue import RunQueue

pytestmark = pytest.mark.anyio


def waiting(owner: str, position: int, priority: int = 0) -> Any:
    """A waiting run, as far as the queue looks at it."""
    return SimpleRun(SimpleNamespace(owner=owner, priority=priority), SimpleNamespace(position=position))


@dataclass(eq=False)
class SimpleRun:
    """What the queue looks at."""

    run: Any
    log: Any = field(repr=False)

    @property
    def name(self) -> str:
        """Its owner and its number."""
        return f"{self.run.owner}{self.log.position}"


def filled(*runs: Any, most: dict[str, int] | None = None) -> RunQueue:
    """A queue with these runs."""
    queue = RunQueue((most or {}).get)
    for run in runs:
        queue.add(run)
    return queue


def drained(queue: RunQueue, *, workers: int = 1) -> list[str]:
    """The order in which the runs start when each ends before the next one needs its worker."""
    order: list[str] = []
    at_work: list[Any] = []
    while queue:
        if len(at_work) == workers:
            at_work.pop(0)
        taken: Any = queue.take(Counter(one.run.owner for one in at_work))
        order.append(taken.name)
        at_work.append(taken)
    return order


async def test_one_owner() -> None:
    """First come, first served."""
    assert drained(filled(*(waiting("a", number) for number in range(5)))) == ["a0", "a1", "a2", "a3", "a4"]


async def test_priorities_order_the_runs_of_one_owner() -> None:
    """Higher ones first, equal ones in their order; they do not count against other owners."""
    runs = [
        waiting("a", 0),
        waiting("a", 1, 5),
        waiting("a", 2, -5),
        waiting("a", 3, 5),
        waiting("b", 4, -100),
    ]
    assert drained(filled(*runs)) == ["a1", "b4", "a3", "a0", "a2"]


@pytest.mark.parametrize("workers", [1, 2, 3])
async def test_owners_take_turns(workers: int) -> None:
    """However many runs an owner has, another one's is next but one at the latest."""
    many = [waiting("a", number) for number in range(1000)]
    queue = filled(*many)
    assert drained_until(queue, 10, workers) == [f"a{number}" for number in range(10)]
    queue.add(waiting("b", 2000))
    assert "b2000" in drained_until(queue, 2, workers)


def drained_until(queue: RunQueue, number: int, workers: int) -> list[str]:
    """The next few runs, with this many workers."""
    found: list[Any] = []
    for _ in range(number):
        busy = found[-workers + 1 :] if workers > 1 else []
        found.append(queue.take(Counter(one.run.owner for one in busy)))
    return [one.name for one in found]


async def test_nobody_starves_beside_owners_that_come_again_and_again() -> None:
    """Two owners that start a run whenever one of theirs ends do not keep a third one waiting."""
    queue = filled(waiting("a", 0), waiting("b", 1), waiting("c", 2))
    order = []
    for number in range(9):
        taken: Any = queue.take({})
        order.append(taken.run.owner)
        if taken.run.owner != "a":
            queue.add(waiting(taken.run.owner, 10 + number))
        elif number < 3:
            queue.add(waiting("a", 3))
    assert order.count("a") == 2
    assert order[:3] == ["a", "b", "c"]
    assert "a" in order[3:6]


async def test_the_owner_with_the_fewest_runs_at_work_is_next() -> None:
    """An owner with long runs does not fill all workers while others wait."""
    queue = filled(waiting("a", 0), waiting("b", 1), waiting("b", 2))
    taken: Any = [queue.take({"a": 2, "b": 1}), queue.take({"a": 2, "b": 2})]
    assert [one.name for one in taken] == ["b1", "a0"]


async def test_a_share_of_the_workers() -> None:
    """An owner that has all that it may have at work waits, and others pass it."""
    queue = filled(waiting("a", 0), waiting("b", 1), waiting("b", 2), most={"a": 1, "b": 1})
    taken: Any = queue.take({"a": 1})
    assert taken.name == "b1"
    assert queue.take({"a": 1, "b": 1}) is None
    assert len(queue) == 2
    taken = queue.take({"b": 1})
    assert taken.name == "a0"


async def test_a_run_whose_time_has_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is passed, also by later runs of its owner, and is next when its time has come."""
    now = 0.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    queue, late, soon = RunQueue(), waiting("a", 0, 9), waiting("a", 1)
    queue.add(late, 10.0)
    queue.add(soon)
    assert queue.position(late, Counter) == 1
    assert queue.take({}) is soon
    assert queue.take({}) is None
    assert queue.seconds_to_next() == 10.0
    now = 10.0
    assert queue.seconds_to_next() is None
    assert queue.take({}) is late


async def test_positions_are_the_order_in_which_runs_start() -> None:
    """With one worker and runs of all owners and priorities, each position comes true."""
    source = random.Random(7)  # noqa: S311 - no secret
    for _ in range(50):
        runs = [
            waiting(source.choice("abc"), number, source.choice([0, 0, 1, -1]))
            for number in range(source.randrange(1, 30))
        ]
        queue = filled(*runs[1:])
        if len(queue):
            queue.take({})
        new = runs[0]
        expected = queue.position_of_new(new.run.owner, new.run.priority, {})
        late = waiting(new.run.owner, 1000, new.run.priority)
        queue.add(late)
        assert queue.position(late, Counter) == expected
        said = {one: queue.position(one, Counter) for one in queue}
        at_work: Counter[str] = Counter()
        for number in range(len(said)):
            taken: Any = queue.take(at_work)
            assert said[taken] == number
            at_work[taken.run.owner] += 1


async def test_which_runs_start_at_once() -> None:
    """As many as workers are free and owners may have at work; none of them if no worker is free."""
    queue = filled(*(waiting("a", number) for number in range(3)), most={"a": 2})
    for free, a, b in ((-1, 0, 0), (0, 0, 0), (1, 1, 0), (2, 1, 1), (3, 2, 1), (9, 2, 1)):
        assert queue.starting_with_new("b", 0, {}, free) == Counter(a=a, b=b), free
    assert queue.starting_with_new("a", 0, {"a": 2}, 5) == Counter()
    assert queue.starting_with_new("a", 0, {"a": 1}, 5) == Counter(a=1)


async def test_who_starts_at_once_is_who_is_taken() -> None:
    """With runs of all owners and limits, the runs that are said to start are those that do."""
    source = random.Random(11)  # noqa: S311 - no secret
    for _ in range(200):
        most = {owner: source.randrange(1, 4) for owner in "abc" if source.random() < 0.7}
        at_work = Counter({owner: source.randrange(3) for owner in "abc"})
        queue = filled(
            *(waiting(source.choice("abc"), number, source.randrange(2)) for number in range(9)), most=most
        )
        new = waiting(source.choice("abc"), 100, source.randrange(2))
        free = source.randrange(5)
        said = queue.starting_with_new(new.run.owner, new.run.priority, at_work, free)
        queue.add(new)
        started: Counter[str] = Counter()
        for _ in range(free):
            taken: Any = queue.take(at_work + started)
            if taken is not None:
                started[taken.run.owner] += 1
        assert said == started


async def test_a_removed_run() -> None:
    """It is not taken, and has no position."""
    gone, stays = waiting("a", 0), waiting("a", 1)
    queue = filled(gone, stays)
    queue.remove(gone)
    assert (gone in queue, queue.count("a"), queue.position(gone, Counter)) == (False, 1, None)
    assert queue.position(stays, Counter) == 0
    assert queue.take({}) is stays
    assert queue.count("a") == 0


async def test_the_memory_of_turns_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Owners that came once do not fill the memory of a server."""
    monkeypatch.setattr(queues, "_MAX_TURNS", 5)
    queue = RunQueue()
    for number in range(20):
        queue.add(waiting(f"owner {number} ", number))
        queue.take({})
    assert len(queue._turns) == 5
