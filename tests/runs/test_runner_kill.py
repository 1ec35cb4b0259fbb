"""Kill, at every point of a run's way: it answers when the run has ended, with the one true end."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from notebook_runner_server.execution.interface import Cause, Ended, Failure, KernelReady
from notebook_runner_server.runs.manager import RunManager
from notebook_runner_server.runs.model import Run, RunState, Segment
from notebook_runner_server.runs.replicas import ClaimedError
from notebook_runner_server.runs.store import Store
from tests.runs.fakes import DONE, FakeBackend, Handle, ended, events, reach, running, settled, spec, states
from tests.runs.stores import a_store

S = RunState
KILL = Cause.KILL_REQUESTED


class GatedStore(Store):
    """A store that holds one operation until the test lets it go on.

    Attributes:
        held: What is to be held: "append" into a state, or "segments".
        reached: Set when it is held.
        go_on: Set by the test.
    """

    held: str | RunState = ""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()

    async def _pass(self, what: str | RunState) -> None:
        if what == self.held:
            self.reached.set()
            await self.go_on.wait()

    @override
    async def append(self, position: int, run: Run, *args: Any, **options: Any) -> int:
        """Appends events."""
        await self._pass(run.state)
        return await super().append(position, run, *args, **options)

    @override
    async def segments(self, position: int, as_of: int) -> list[Segment]:
        """Reads where the segments are: what a job is made of."""
        await self._pass("segments")
        return await super().segments(position, as_of)


class Shrinking(FakeBackend):
    """A backend whose workers go with their runs, as those of a cluster may."""

    @override
    def _release(self) -> None:
        pass


async def killed_when(
    folder: Path, held: str | RunState, act: Callable[[RunManager, FakeBackend, Run], Awaitable[object]]
) -> list[RunState]:
    """Kills a run while an operation is held; answers the states that its events tell."""
    store, backend = a_store(GatedStore, folder), FakeBackend()
    store.held = held
    async with running(store, backend) as runner:
        run = await runner.start(spec())
        await act(runner, backend, run)
        await store.reached.wait()
        kills = [asyncio.ensure_future(runner.kill(run.run_id, 0.0)) for _ in range(3)]
        await settled(store)
        store.go_on.set()
        answers = await asyncio.gather(*kills)
        assert {(one.state, one.failure.cause) for one, _ in answers if one.failure} == {(S.KILLED, KILL)}
        assert (await runner.find(run.run_id)).state is S.KILLED
        next_run = await runner.start(spec())
        (await backend.taken(next_run.run_id)).tell(KernelReady(), DONE)
        assert (await ended(runner, next_run.run_id)).state is S.SUCCEEDED
        return states(await events(runner, run.run_id))


async def nothing(*_: object) -> None:
    """What a run does by itself."""


async def test_while_the_run_is_brought_to_starting(tmp_path: Path) -> None:
    """Taken from the queue and not yet STARTING: it is never given to a worker."""
    told = await killed_when(tmp_path, S.STARTING, nothing)
    assert told == [S.QUEUED, S.STARTING, S.KILLING, S.KILLED]


async def test_between_starting_and_submit(tmp_path: Path) -> None:
    """STARTING, and its notebook is being read: it is never given to a worker."""
    told = await killed_when(tmp_path, "segments", nothing)
    assert told == [S.QUEUED, S.STARTING, S.KILLING, S.KILLED]


async def test_while_the_kill_itself_is_written(tmp_path: Path) -> None:
    """KILLING is being written, and more kills arrive: they wait for the same end."""

    async def act(runner: RunManager, backend: FakeBackend, run: Run) -> None:
        await backend.taken()
        task = asyncio.ensure_future(runner.kill(run.run_id, 0.0))
        task.add_done_callback(lambda done: done.result())

    told = await killed_when(tmp_path, S.KILLING, act)
    assert told == [S.QUEUED, S.STARTING, S.KILLING, S.KILLED]


async def test_while_the_kernel_gets_ready(tmp_path: Path) -> None:
    """RUNNING is being written: the run goes over KILLING all the same."""

    async def act(_: RunManager, backend: FakeBackend, run: Run) -> None:
        (await backend.taken()).tell(KernelReady())
        assert run.run_id

    told = await killed_when(tmp_path, S.RUNNING, act)
    assert told == [S.QUEUED, S.STARTING, S.RUNNING, S.KILLING, S.KILLED]


@pytest.mark.parametrize("state", [S.QUEUED, S.STARTING, S.RUNNING, S.KILLING])
async def test_in_every_state(tmp_path: Path, state: RunState) -> None:
    """The run ends as KILLED; the worker hears of it when it has one; its processes are counted."""
    backend = FakeBackend(obedient=False)
    async with running(a_store(Store, tmp_path), backend, 1) as runner:
        first = await runner.start(spec())
        handle = await backend.taken()
        run = await runner.start(spec()) if state is S.QUEUED else first
        if state in (S.RUNNING, S.KILLING):
            handle.tell(KernelReady())
            await reach(runner, run.run_id, S.RUNNING)
        kills = [asyncio.ensure_future(runner.kill(run.run_id, 7.0))]
        if state is S.KILLING:
            await handle.asked.wait()
            kills.append(asyncio.ensure_future(runner.kill(run.run_id, 0.0)))
        await answer(handle, len(kills) if run is first else 0)
        expected = (S.KILLED, 0 if state is S.QUEUED else 5)
        for killed, count in await asyncio.gather(*kills):
            assert (killed.state, count) == expected
            assert (killed.start_time == 0) == (state is S.QUEUED)
        graces = [7.0, 0.0] if state is S.KILLING else [7.0]
        assert handle.stops == ([] if state is S.QUEUED else [(KILL, grace) for grace in graces])
        if state is S.QUEUED:
            assert (await runner.find(first.run_id)).state is S.STARTING
            handle.tell(Ended(Failure(KILL, "test is over")))


async def answer(handle: Handle, stops: int) -> None:
    """Ends a run with five processes ended by force, when it was asked so many times."""
    if not stops:
        return
    while len(handle.stops) < stops:
        handle.asked.clear()
        await handle.asked.wait()
    handle.tell(Ended(Failure(KILL, "killed"), 5))


async def test_fifty_at_once_are_one(tmp_path: Path) -> None:
    """All get the same run and number of processes, and the log has one terminal event."""
    backend = FakeBackend(obedient=False)
    async with running(a_store(Store, tmp_path), backend) as runner:
        run = await runner.start(spec())
        handle = await backend.taken()
        handle.tell(KernelReady())
        await reach(runner, run.run_id, S.RUNNING)
        kills = [asyncio.ensure_future(runner.kill(run.run_id, 0.0)) for _ in range(50)]
        await answer(handle, 50)
        answers = await asyncio.gather(*kills)
        assert [one for one in answers if one != answers[0]] == []
        assert (answers[0][0].state, answers[0][1]) == (S.KILLED, 5)
        told = states(await events(runner, run.run_id))
        assert told == [S.QUEUED, S.STARTING, S.RUNNING, S.KILLING, S.KILLED]


async def test_fifty_at_once_of_a_queued_run_are_one(tmp_path: Path) -> None:
    """It ends once and without having begun, and the run with the worker is not touched."""
    backend = FakeBackend()
    async with running(a_store(Store, tmp_path), backend, 1) as runner:
        run, queued = await runner.start(spec()), await runner.start(spec())
        (await backend.taken()).tell(KernelReady())
        await reach(runner, run.run_id, S.RUNNING)
        answers = await asyncio.gather(*(runner.kill(queued.run_id, 0.0) for _ in range(50)))
        assert [one for one in answers if one != answers[0]] == []
        assert (answers[0][0].state, answers[0][1]) == (S.KILLED, 0)
        assert states(await events(runner, queued.run_id)) == [S.QUEUED, S.KILLED]
        assert (await runner.find(run.run_id)).state is S.RUNNING
        assert backend.handles[0].stops == []


async def test_fifty_beside_the_end_answer_a_run_that_has_ended(tmp_path: Path) -> None:
    """Some come before the end and some after it: all answer the same terminal state, none an earlier one."""
    backend = FakeBackend()
    async with running(a_store(Store, tmp_path), backend) as runner:
        for _ in range(5):
            run = await runner.start(spec())
            (await backend.taken(run.run_id)).tell(KernelReady())
            await reach(runner, run.run_id, S.RUNNING)
            answers = await asyncio.gather(*(runner.kill(run.run_id, 0.0) for _ in range(50)))
            assert {one.state for one, _ in answers} == {S.KILLED}
            assert [one for one, _ in answers if one != answers[0][0]] == []
            assert {count for _, count in answers} <= {0, 2}


async def test_a_run_that_has_ended_answers_its_own_end(tmp_path: Path) -> None:
    """As often as one likes, with and without grace; no process was ended by that."""
    backend = FakeBackend()
    async with running(a_store(Store, tmp_path), backend) as runner:
        run = await runner.start(spec())
        (await backend.taken()).tell(KernelReady(), DONE)
        end = await ended(runner, run.run_id)
        for grace in (0.0, 5.0, 0.0):
            assert await runner.kill(run.run_id, grace) == (end, 0)
        assert backend.handles[0].stops == []


async def test_an_end_that_comes_before_the_order_wins(tmp_path: Path) -> None:
    """A worker that was done already says so: the run SUCCEEDED, and Kill answers just that."""
    backend = FakeBackend(obedient=False)
    async with running(a_store(Store, tmp_path), backend) as runner:
        run = await runner.start(spec())
        handle = await backend.taken()
        handle.tell(KernelReady())
        await reach(runner, run.run_id, S.RUNNING)
        kill = asyncio.ensure_future(runner.kill(run.run_id, 0.0))
        await handle.asked.wait()
        handle.tell(DONE)
        killed, _ = await kill
        assert (killed.state, killed.failure) == (S.SUCCEEDED, None)
        told = states(await events(runner, run.run_id))
        assert told == [S.QUEUED, S.STARTING, S.RUNNING, S.KILLING, S.SUCCEEDED]


async def test_kills_of_all_runs_at_once(tmp_path: Path) -> None:
    """Two run, four wait: each is ended once, in whatever order they are asked for."""
    backend = FakeBackend(2)
    async with running(a_store(Store, tmp_path), backend, 4) as runner:
        runs = [await runner.start(spec()) for _ in range(6)]
        wanted = [run.run_id for _ in range(5) for run in runs]
        answers = await asyncio.gather(*(runner.kill(run_id, 0.0) for run_id in wanted))
        assert {one.state for one, _ in answers} == {S.KILLED}
        for run in runs:
            told = states(await events(runner, run.run_id))
            assert [state for state in told if state.is_terminal] == [S.KILLED]
        run = await runner.start(spec())
        (await backend.taken(run.run_id)).tell(KernelReady(), DONE)
        assert (await ended(runner, run.run_id)).state is S.SUCCEEDED


async def test_which_run_an_empty_id_means(tmp_path: Path) -> None:
    """The newest that has a worker, else the newest that is queued, else the newest of all."""
    backend = Shrinking(2)
    async with running(a_store(Store, tmp_path), backend, 4) as runner:
        runs = [await runner.start(spec()) for _ in range(4)]
        ids = [run.run_id for run in runs]
        second = await backend.taken(ids[1])
        assert (await runner.run_to_kill("")).run_id == ids[1]
        assert (await runner.run_to_kill(ids[0])).run_id == ids[0]
        second.tell(KernelReady(), DONE)
        await ended(runner, ids[1])
        assert (await runner.run_to_kill("")).run_id == ids[0]
        await runner.kill(ids[0], 0.0)
        assert (await runner.run_to_kill("")).run_id == ids[3]
        for run_id in ids:
            await runner.kill(run_id, 0.0)
        assert (await runner.run_to_kill("")).run_id == ids[3]


async def test_a_kill_that_does_not_wait_while_the_end_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that the run is being killed, and not that the disk is full."""
    store = a_store(GatedStore, tmp_path)
    store.held = S.KILLED
    async with running(store, FakeBackend()) as runner:
        run = await runner.start(spec())
        await reach(runner, run.run_id, S.STARTING)
        stop = runner._dispatcher.stop

        async def stop_late(*args: Any, **options: Any) -> None:
            await stop(*args, **options)
            await store.reached.wait()

        monkeypatch.setattr(runner._dispatcher, "stop", stop_late)
        try:
            told, _ = await runner.kill(run.run_id, 0.0, wait=False)
        finally:
            store.go_on.set()
        assert told.state is S.KILLING
        assert (await ended(runner, run.run_id)).state is S.KILLED


async def test_kills_of_a_queued_run_that_another_server_has_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is refused while the second waits for it: both learn where the run is, and neither fails."""
    store = a_store(GatedStore, tmp_path)
    store.held = S.KILLED
    async with running(store, FakeBackend(), queue_size=1) as runner:
        await reach(runner, (await runner.start(spec())).run_id, S.STARTING)
        run = await runner.start(spec())
        active = runner._dispatcher.find(run.run_id)
        assert active is not None
        kills = [asyncio.ensure_future(runner._dispatcher.stop(active, KILL, 0.0)) for _ in range(2)]
        await store.reached.wait()
        await settled(store)

        async def claimed(*_: Any, **__: Any) -> int:
            raise ClaimedError

        monkeypatch.setattr(Store, "append", claimed)
        store.go_on.set()
        await asyncio.gather(*kills)
        monkeypatch.undo()
        assert active.is_elsewhere
        assert not active.is_held
