"""Two things at the same moment: what a caller is told is true whichever comes first.

A call looks a run up in the store, on another thread, and in the runner. Between the two anything may
happen; these stores decide what does.
"""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from notebook_runner_server.errors import NotReadyError, damaged
from notebook_runner_server.execution.interface import KernelReady
from notebook_runner_server.runs.manager import RunManager
from notebook_runner_server.runs.model import Run, RunState, Segment
from notebook_runner_server.runs.replicas import ClaimedError
from notebook_runner_server.runs.store import Store
from notebook_runner_server.runs.tables import RunRecord
from tests.runs.fakes import DONE, FakeBackend, ended, events_of, reach, running, settled, spec, states
from tests.runs.samples import changed
from tests.runs.stores import a_store, append

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


class RefusingStore(Store):
    """A store that refuses a run once the test lets it."""

    error: Exception

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.is_reached, self.may_go_on = asyncio.Event(), asyncio.Event()

    @override
    async def insert(self, *args: Any, **options: Any) -> int:
        """Waits for the test, and inserts nothing."""
        self.is_reached.set()
        await self.may_go_on.wait()
        raise self.error


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


async def test_a_caller_that_left_is_refused_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A Start that is refused after its caller is gone is no error of the server; a failure is."""
    store, backend = a_store(RefusingStore, tmp_path), FakeBackend()
    async with running(store, backend) as runner:
        for store.error in (NotReadyError("later"), RuntimeError("a mistake")):
            call = asyncio.create_task(runner.start(spec()))
            await store.is_reached.wait()
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            store.may_go_on.set()
            await asyncio.gather(*runner._shielded_tasks, return_exceptions=True)
            store.is_reached.clear()
            store.may_go_on.clear()
    gc.collect()
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [(record.getMessage(), str(record.exc_info and record.exc_info[1])) for record in errors] == [
        ("abandoned_call_failed", "a mistake")
    ]


class LosingStore(Store):
    """A store of a run that another server claims, ends and deletes while this one begins it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.is_read, self.is_claimed = asyncio.Event(), False

    @override
    async def segments(self, position: int, as_of: int) -> list[Segment]:
        """Finds nothing of its notebook."""
        self.is_read.set()
        raise damaged("run", "it was deleted")

    @override
    async def append(self, position: int, run: Run, *args: Any, **options: Any) -> int:
        """Is refused, after the notebook was read."""
        await self.is_read.wait()
        await settled(self)
        self.is_claimed = True
        raise ClaimedError


async def test_a_run_that_another_server_has_ended_while_this_one_began_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """That its notebook is missing is no failure of the run, which is the other server's."""
    store = a_store(LosingStore, tmp_path)
    async with running(store, FakeBackend()) as runner:
        run = await runner.start(spec())
        active = runner._dispatcher.find(run.run_id)
        assert active is not None
        await active.settled.wait()
        assert store.is_claimed
        assert active.is_elsewhere
        assert active.run.state is S.QUEUED
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_what_another_server_has_written_is_newer(tmp_path: Path) -> None:
    """A run that waits here is shown as the history has it, before this server learns who executes it."""
    store = a_store(Store, tmp_path)
    async with running(store, FakeBackend(), 1) as runner:
        await runner.start(spec())
        waiting = await runner.start(spec())
        record = await store.find(waiting.run_id)
        assert record is not None
        begun = replace(record.run, state=S.STARTING, start_time=2)
        await append(store, record.position, begun, changed(2, begun))
        assert (await runner.find(waiting.run_id)).state is S.STARTING
        (_, newest), *_ = (await runner.list(2**62, 2, [], {}))[0]
        assert isinstance(newest, Run)
        assert newest.state is S.STARTING
