"""Shutdown: runs with a worker get their time, queued ones stay, and readers are told the truth."""

import asyncio
from pathlib import Path

import pytest

from notebook_runner_server.errors import ShuttingDownError
from notebook_runner_server.execution.interface import Cause, KernelReady
from notebook_runner_server.runs.model import RunState
from notebook_runner_server.runs.store import Store
from tests.runs.fakes import (
    DONE,
    FakeBackend,
    ended,
    events,
    events_of,
    reach,
    running,
    settled,
    spec,
    states,
)
from tests.runs.reading import first, following
from tests.runs.stores import a_store

S = RunState
LONG = 3600.0


async def test_a_run_that_ends_in_time_is_left_alone(tmp_path: Path) -> None:
    """Draining waits for the end that comes by itself, and orders nothing."""
    store, backend = a_store(Store, tmp_path), FakeBackend()
    async with running(store, backend) as runner:
        run = await runner.start(spec())
        handle = await backend.taken()
        drain = asyncio.ensure_future(runner.drain(asyncio.Event(), LONG))
        await settled(store)
        assert not drain.done()
        handle.tell(KernelReady(), DONE)
        await drain
        assert (await runner.find(run.run_id)).state is S.SUCCEEDED
        assert handle.stops == []


@pytest.mark.parametrize("hurried", [False, True], ids=["at the deadline", "in a hurry"])
async def test_a_run_that_does_not_end_is_interrupted(tmp_path: Path, *, hurried: bool) -> None:
    """At the deadline, or as soon as somebody hurries, it is ended; its reader sees the end."""
    store, backend = a_store(Store, tmp_path), FakeBackend()
    async with running(store, backend) as runner:
        run = await runner.start(spec())
        handle = await backend.taken()
        handle.tell(KernelReady())
        await reach(runner, run.run_id, S.RUNNING)
        reader = asyncio.ensure_future(events(runner, run.run_id))
        hurry = asyncio.Event()
        drain = asyncio.ensure_future(runner.drain(hurry, LONG if hurried else 0.0))
        if hurried:
            await settled(store)
            assert handle.stops == []
            hurry.set()
        await drain
        assert handle.stops == [(Cause.SERVER_STOPPED, 0.0)]
        told = states(await reader)
        assert told == [S.QUEUED, S.STARTING, S.RUNNING, S.KILLING, S.INTERRUPTED]
        failure = (await runner.find(run.run_id)).failure
        assert failure is not None
        assert failure.cause is Cause.SERVER_STOPPED


async def test_nothing_new_begins(tmp_path: Path) -> None:
    """A Start is refused, also with a request id that is new; one that is known is answered."""
    backend = FakeBackend()
    async with running(a_store(Store, tmp_path), backend, 5) as runner:
        run = await runner.start(spec(request_id="mine"))
        (await backend.taken()).tell(KernelReady(), DONE)
        await ended(runner, run.run_id)
        await runner.drain(asyncio.Event(), LONG)
        for request in (spec(), spec(request_id="new")):
            with pytest.raises(ShuttingDownError):
                await runner.start(request)
        assert (await runner.start(spec(request_id="mine"))).run_id == run.run_id
        assert len(backend.handles) == 1


async def test_queued_runs_stay_queued_and_their_readers_are_sent_away(tmp_path: Path) -> None:
    """What waits is not started when a worker becomes free; its readers hear that the server goes."""
    store, backend = a_store(Store, tmp_path), FakeBackend()
    async with running(store, backend, 2) as runner:
        running_one = await runner.start(spec())
        waiting = [await runner.start(spec()) for _ in range(2)]
        handle = await backend.taken()
        _, log = await runner.log(waiting[0].run_id)
        async with following(log, 0) as reader:
            assert await first(reader) == [1]
            drain = asyncio.ensure_future(runner.drain(asyncio.Event(), LONG))
            with pytest.raises(ShuttingDownError):
                await anext(reader)
        handle.tell(KernelReady(), DONE)
        await drain
        await settled(store)
        assert len(backend.handles) == 1
        found = [await runner.find(run.run_id) for run in waiting]
        assert [(run.state, run.queue_position) for run in found] == [(S.QUEUED, 0), (S.QUEUED, 1)]
        assert (await runner.find(running_one.run_id)).state is S.SUCCEEDED


async def test_a_queued_run_can_be_killed_while_the_server_drains(tmp_path: Path) -> None:
    """Kill works until the end."""
    store, backend = a_store(Store, tmp_path), FakeBackend()
    async with running(store, backend, 1) as runner:
        await runner.start(spec())
        waiting = await runner.start(spec())
        handle = await backend.taken()
        drain = asyncio.ensure_future(runner.drain(asyncio.Event(), LONG))
        await settled(store)
        killed, _ = await runner.kill(waiting.run_id, 0.0)
        assert killed.state is S.KILLED
        handle.tell(KernelReady(), DONE)
        await drain


async def test_kill_and_drain_at_the_same_moment_agree(tmp_path: Path) -> None:
    """Whoever comes first names the cause; there is one end, and both return."""
    backend = FakeBackend()
    async with running(a_store(Store, tmp_path), backend) as runner:
        run = await runner.start(spec())
        (await backend.taken()).tell(KernelReady())
        await reach(runner, run.run_id, S.RUNNING)
        kill = asyncio.ensure_future(runner.kill(run.run_id, 0.0))
        await asyncio.gather(kill, runner.drain(asyncio.Event(), 0.0))
        told = states(await events(runner, run.run_id))
        assert [state for state in told if state.is_terminal] == [(await kill)[0].state]
        assert told[-1] in (S.KILLED, S.INTERRUPTED)


async def test_a_run_that_is_being_started_is_drained_too(tmp_path: Path) -> None:
    """A run that has left the queue and has no worker yet is neither lost nor left behind."""
    store, backend = a_store(Store, tmp_path), FakeBackend()
    async with running(store, backend) as runner:
        run = await runner.start(spec())
        _, log = await runner.log(run.run_id)
        await runner.drain(asyncio.Event(), 0.0)
        state = (await runner.find(run.run_id)).state
        assert state in (S.QUEUED, S.INTERRUPTED)
        if state is S.INTERRUPTED:
            assert states(await events_of(log))[-1] is S.INTERRUPTED


async def test_closing_ends_the_backend(tmp_path: Path) -> None:
    """A runner that was closed has given its store and its backend back."""
    backend = FakeBackend()
    for _ in range(2):
        async with running(a_store(Store, tmp_path), backend) as runner:
            assert backend.is_open
            run = await runner.start(spec())
            (await backend.taken(run.run_id)).tell(KernelReady(), DONE)
            await ended(runner, run.run_id)
        assert not backend.is_open
