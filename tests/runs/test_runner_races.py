"""Two things at the same moment: what a caller is told is true whichever comes first.

A call looks a run up in the store, on another thread, and in the runner. Between the two anything may
happen; these stores decide what does.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from typing_extensions import override

from notebook_runner_server.execution.interface import KernelReady
from notebook_runner_server.runs.manager import RunManager
from notebook_runner_server.runs.model import Run, RunState
from notebook_runner_server.runs.store import Store
from notebook_runner_server.runs.tables import RunRecord
from tests.runs.fakes import DONE, FakeBackend, ended, events_of, reach, running, settled, spec, states
from tests.runs.stores import a_store

S = RunState
Between = Callable[[], Awaitable[object]]


class LookingStore(Store):
    """A store in which something happens after a run was looked up, before who asked goes on."""

    between: Between | None = None

    @override
    async def find(self, run_id: str, owner: str | None = None) -> RunRecord | None:
        """Looks a run up, lets something happen once, and answers what it saw."""
        row = await super().find(run_id, owner)
        between, self.between = self.between, None
        if between is not None:
            await between()
        return row


class InsertingStore(Store):
    """A store in which something happens after a run is durable, before who started it goes on."""

    between: Between | None = None

    @override
    async def insert(self, *args: Any, **options: Any) -> int:
        """Inserts a run, and lets something happen once."""
        position = await super().insert(*args, **options)
        between, self.between = self.between, None
        if between is not None:
            await between()
        return position


async def to_its_end(runner: RunManager, backend: FakeBackend, run_id: str) -> None:
    """Lets the run that has just begun end, and waits until the runner has let go of it."""
    handle = backend.handles[-1]
    _, log = await runner.log(run_id)
    handle.tell(DONE)
    await events_of(log)
    await asyncio.gather(*runner._dispatcher._followers)


async def begun(runner: RunManager, backend: FakeBackend) -> Run:
    """A run whose kernel is ready."""
    run = await runner.start(spec())
    (await backend.taken()).tell(KernelReady())
    await reach(runner, run.run_id, S.RUNNING)
    return run


async def test_a_kill_beside_the_end_answers_the_end(tmp_path: Path) -> None:
    """Kill looks the run up while it runs, and it ends by itself: the answer is its terminal state."""
    store, backend = a_store(LookingStore, tmp_path), FakeBackend()
    async with running(store, backend) as runner:
        run = await begun(runner, backend)
        store.between = lambda: to_its_end(runner, backend, run.run_id)
        killed, processes = await runner.kill(run.run_id, 0.0)
        assert (killed.state, processes) == (S.SUCCEEDED, 0)


async def test_a_reader_that_comes_beside_the_end_sees_it(tmp_path: Path) -> None:
    """Progress looks the run up while it runs, and it ends: the stream has the end, and ends."""
    store, backend = a_store(LookingStore, tmp_path), FakeBackend()
    async with running(store, backend) as runner:
        run = await begun(runner, backend)
        store.between = lambda: to_its_end(runner, backend, run.run_id)
        _, log = await runner.log(run.run_id)
        assert states(await events_of(log)) == [S.QUEUED, S.STARTING, S.RUNNING, S.SUCCEEDED]


async def test_a_run_that_was_found_is_not_older_than_the_question(tmp_path: Path) -> None:
    """Output looks a run up beside its end: it may say either, and a later look says the end."""
    store, backend = a_store(LookingStore, tmp_path), FakeBackend()
    async with running(store, backend) as runner:
        run = await begun(runner, backend)
        store.between = lambda: to_its_end(runner, backend, run.run_id)
        assert (await runner.find(run.run_id)).state in (S.RUNNING, S.SUCCEEDED)
        assert (await runner.find(run.run_id)).state is S.SUCCEEDED


async def test_the_newest_run_can_be_followed_from_the_moment_it_is_in_the_history(tmp_path: Path) -> None:
    """A reader that finds the run before its Start has answered gets all of it, to the end."""
    store, backend = a_store(InsertingStore, tmp_path), FakeBackend()
    async with running(store, backend) as runner:
        readers: list[asyncio.Task[list[S]]] = []

        async def read() -> list[S]:
            return states(await events_of((await runner.log(""))[1]))

        async def join() -> None:
            readers.append(asyncio.ensure_future(read()))
            await settled(store)

        store.between = join
        run = await runner.start(spec())
        (await backend.taken()).tell(KernelReady(), DONE)
        assert (await ended(runner, run.run_id)).state is S.SUCCEEDED
        assert await readers[0] == [S.QUEUED, S.STARTING, S.RUNNING, S.SUCCEEDED]


async def test_the_newest_run_can_be_killed_from_the_moment_it_is_in_the_history(tmp_path: Path) -> None:
    """A Kill that finds the run before its Start has answered ends it, and does not just say OK."""
    store, backend = a_store(InsertingStore, tmp_path), FakeBackend()
    async with running(store, backend) as runner:
        kills: list[asyncio.Task[tuple[Run, int]]] = []

        async def join() -> None:
            kills.append(asyncio.ensure_future(runner.kill("", 0.0)))
            await settled(store)

        store.between = join
        run = await runner.start(spec())
        killed, _ = await kills[0]
        assert (killed.run_id, killed.state) == (run.run_id, S.KILLED)
        assert (await ended(runner, run.run_id)).state is S.KILLED
