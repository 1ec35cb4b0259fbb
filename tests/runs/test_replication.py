"""What a server does with hints that are lost, and with what others leave undone, without any server."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

from notebook_runner_server.runs.log import RunLog
from notebook_runner_server.runs.model import Event, RunState
from notebook_runner_server.runs.replicas import Claim, Replica, Topic
from notebook_runner_server.runs.replication import Replication
from notebook_runner_server.runs.tables import RunRecord
from tests.runs.samples import a_run, changed, some_options

FIRST, SECOND = 1, 2


class FakeChanges:
    """The changes of a history in which no run changes."""

    async def look(self) -> None:
        """There is nothing to find."""

    async def watch(self, *_: object, **__: object) -> AsyncIterator[object]:
        """Wait for a change that does not come."""
        await asyncio.Event().wait()
        yield None


class FakeStore:
    """A history with the events of some runs, by position."""

    def __init__(self, state: RunState = RunState.RUNNING) -> None:
        self.written: dict[int, list[Event]] = {}
        self.changes = FakeChanges()
        self._state = state

    async def find(self, run_id: str) -> RunRecord:
        """A run in the state of all."""
        return RunRecord(FIRST, a_run(self._state, run_id=run_id), some_options(), 1, "")

    async def unended(self) -> list[RunRecord]:
        """One run."""
        return [a_record(FIRST)]

    async def events(self, position: int, after: int) -> list[Event]:
        """Those after a sequence number."""
        return self.written[position][after:]

    async def last_sequences(self, positions: Sequence[int]) -> dict[int, int]:
        """How many events each run has."""
        return {position: len(self.written[position]) for position in positions}


class FakeReplicas:
    """Gives hints when the test says so; the server that has ended the runs is gone."""

    others: Sequence[Replica] = ()

    def __init__(self) -> None:
        self.hint: Callable[[Topic, int], object] = lambda *_: None

    async def request_kill(self, position: int, grace_period: float) -> None:
        """Nobody reads the request."""

    async def find_kill(self, position: int) -> None:
        """No request is carried out."""

    async def find_claim(self, _: str) -> Claim:
        """Each run belongs to a server that is gone."""
        return Claim(FIRST, "gone", is_here=False, has_ended=True)

    def listen(self, on_hint: Callable[[Topic, int], object], _: object) -> None:
        """Keeps the function that gets hints."""
        self.hint = on_hint


def a_record(position: int) -> RunRecord:
    """A run at another server, of which one event is known."""
    run = a_run(RunState.RUNNING, run_id=f"run-{position}")
    return RunRecord(position, run, some_options(), 1, "")


async def test_a_lost_hint_is_made_up_for_while_others_come() -> None:
    """The end of one run is read although only hints about another one arrive, one after the other."""
    store, replicas, closed = FakeStore(), FakeReplicas(), asyncio.Event()
    replication = _replication(store, replicas)
    for position in (FIRST, SECOND):
        store.written[position] = [changed(1, a_run(RunState.RUNNING))]
    silent, chatty = [await replication.log(a_record(position)) for position in (FIRST, SECOND)]
    replication.start(lambda _: None)
    store.written[FIRST].append(changed(2, a_run(RunState.KILLED)))

    async def chat() -> None:
        while not closed.is_set():
            replicas.hint(Topic.EVENTS, SECOND)
            await asyncio.sleep(0.01)

    chatting = asyncio.create_task(chat())
    try:
        await _end(silent)
        assert not chatty.ended
    finally:
        closed.set()
        await chatting
        await replication.close()


async def test_a_kill_of_a_run_whose_server_ended_with_it_is_answered() -> None:
    """The run ended at another server, which stopped before it could say how many processes it ended."""
    replication = _replication(FakeStore(RunState.SUCCEEDED), FakeReplicas())
    assert await replication.kill(a_record(FIRST), 0.0, wait=True) == 0


class FakeDispatcher:
    """Has one run that it is about to claim, until another server turns out to have claimed it."""

    def __init__(self) -> None:
        self.positions = {FIRST}

    def lose_waiting(self, _: str) -> None:
        """The run does not wait."""

    def find(self, _: str) -> object:
        """The run, as long as this server has it."""
        return self if self.positions else None

    def set_elsewhere(self, run_id: str, found: object) -> None:
        """No other server executes it."""


async def test_a_run_that_is_taken_over_while_it_is_being_claimed_is_recovered() -> None:
    """Its own attempt to claim it fails later, and then nobody else would end it."""
    store, replicas, dispatcher, recovered = FakeStore(), TakingReplicas(), FakeDispatcher(), []

    async def recover(record: RunRecord) -> None:
        recovered.append(record.position)

    replication = _replication(store, replicas, dispatcher, recover)
    await replication._look_for_servers()
    assert recovered == []
    dispatcher.positions.clear()
    for _ in range(2):
        await replication._look_for_servers()
    assert recovered == [FIRST]


class TakingReplicas(FakeReplicas):
    """Another server is gone, whose run this one takes over at its first look."""

    def __init__(self) -> None:
        super().__init__()
        self._taken = [FIRST]

    async def take_over(self) -> list[int]:
        """The run, once."""
        taken, self._taken = self._taken, []
        return taken

    async def claimed(self) -> dict[int, Claim]:
        """The run belongs to this server."""
        return {FIRST: Claim(FIRST, "here", is_here=True)}


async def _end(log: RunLog) -> None:
    async for _ in log.follow(0, 60.0):
        pass


def _replication(
    store: object, replicas: object, dispatcher: object = None, recover: object = None
) -> Replication:
    unused: Any = SimpleNamespace()
    return Replication(
        cast("Any", store),
        cast("Any", replicas),
        cast("Any", dispatcher or unused),
        unused,
        unused,
        asyncio.Lock(),
        cast("Any", recover or unused),
    )
