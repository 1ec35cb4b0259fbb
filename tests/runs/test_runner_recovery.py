"""A server that died: what its history says after the next start, in whatever state its runs were."""

from dataclasses import replace
from pathlib import Path

import pytest

from notebook_runner_server.execution.interface import (
    Cause,
    CellFinished,
    CellOutcome,
    CellStarted,
    ClearOutput,
    Failure,
    KernelReady,
    SegmentChunk,
    StreamOutput,
)
from notebook_runner_server.runs.model import RunChanged, RunState
from notebook_runner_server.runs.store import Store
from tests.runs.fakes import (
    DONE,
    SIMPLE,
    FakeBackend,
    abandoned,
    cell,
    ended,
    events,
    executed,
    numbers,
    reach,
    running,
    spec,
    states,
    tells,
)
from tests.runs.samples import TERMINAL, a_run, changed
from tests.runs.stores import a_store, append, insert, opened
from tests.support.notebooks import printed

S = RunState
ON_THE_WAY = [S.STARTING, S.RUNNING, S.KILLING]


async def left_in(folder: Path, *last: RunState) -> list[str]:
    """A history with a run in each of these states, written as the runner does."""
    async with opened(folder) as store:
        for state in last:
            run = a_run(run_id=state.name)
            position = await insert(store, state.name)
            way = [S.STARTING, S.RUNNING, S.KILLING]
            for sequence, one in enumerate(way[: way.index(state) + 1] if state in way else [], start=2):
                run = replace(run, state=one, start_time=2)
                await append(store, position, run, changed(sequence, run))
            if state in TERMINAL:
                failure = None if state is S.SUCCEEDED else Failure(Cause.CELL_ERROR, "why")
                run = replace(run, state=state, end_time=3, failure=failure)
                await append(store, position, run, changed(2, run), expire_time=2**62)
    return [state.name for state in last]


async def test_runs_on_the_way_are_interrupted(tmp_path: Path) -> None:
    """STARTING, RUNNING and KILLING become INTERRUPTED with the next number, before anyone can ask."""
    await left_in(tmp_path, *ON_THE_WAY)
    backend = FakeBackend()
    async with running(a_store(Store, tmp_path), backend) as runner:
        for count, state in enumerate(ON_THE_WAY, start=2):
            run = await runner.find(state.name)
            assert run.state is S.INTERRUPTED
            assert run.failure is not None
            assert (run.failure.cause, run.failure.cell_index) == (Cause.SERVER_DIED, None)
            assert run.end_time > 0
            told = await events(runner, state.name)
            assert numbers(told) == list(range(1, count + 2))
            assert states(told) == [S.QUEUED, *ON_THE_WAY[: count - 1], S.INTERRUPTED]
            assert await runner.kill(state.name, 0.0) == (run, 0)
        assert backend.handles == []
        # What was in the way is in the way no more.
        run = await runner.start(spec())
        (await backend.taken()).tell(KernelReady(), DONE)
        assert (await ended(runner, run.run_id)).state is S.SUCCEEDED


async def test_runs_that_had_ended_stay_as_they_are(tmp_path: Path) -> None:
    """A terminal state is terminal over every restart, and nothing is added to the log."""
    names = await left_in(tmp_path, *TERMINAL)
    for _ in range(2):
        async with running(a_store(Store, tmp_path), FakeBackend()) as runner:
            found = [await runner.find(name) for name in names]
            assert [run.state for run in found] == TERMINAL
            assert [numbers(await events(runner, name)) for name in names] == [[1, 2]] * len(names)


async def test_queued_runs_go_on_in_order(tmp_path: Path) -> None:
    """Three waited: they are executed once each, first come first served, and newcomers come after."""
    names = []
    async with abandoned(a_store(Store, tmp_path), FakeBackend(), 3) as runner:
        names = [(await runner.start(spec(environment={"N": str(n)}))).run_id for n in range(4)]
        await reach(runner, names[0], S.STARTING)
    backend = FakeBackend()
    async with running(a_store(Store, tmp_path), backend, 3) as runner:
        names.append((await runner.start(spec(environment={"N": "4"}))).run_id)
        assert (await runner.find(names[0])).state is S.INTERRUPTED
        for number, name in enumerate(names[1:], start=1):
            handle = await backend.taken()
            assert (handle.job.run_id, handle.job.environment) == (name, {"N": str(number)})
            assert handle.job.notebook == SIMPLE + b"\n"
            handle.tell(KernelReady(), DONE)
            assert (await ended(runner, name)).state is S.SUCCEEDED
        assert len(backend.handles) == 4


async def test_what_was_reported_done_is_kept(tmp_path: Path) -> None:
    """Events and the finished cell are there; the cell it died in has the text that was told."""
    said = StreamOutput(1, "stdout", "last words\n")
    backend = FakeBackend()
    async with abandoned(a_store(Store, tmp_path), backend) as runner:
        run_id = (await runner.start(spec(request_id="mine"))).run_id
        _, log = await runner.log(run_id)
        told_now = [KernelReady(), *cell(0), CellStarted(1, "id", "2"), said]
        (await backend.taken()).tell(*told_now)
        last = await tells(log, said)
    store = a_store(Store, tmp_path)
    async with running(store, FakeBackend()) as runner:
        run = await runner.find(run_id)
        assert run.failure is not None
        assert (run.state, run.failure.cell_index, run.cells_completed) == (S.INTERRUPTED, 1, 1)
        assert (await runner.start(spec(request_id="mine"))).run_id == run_id
        told = await events(runner, run_id, last)
        finished, end = (event.body for event in told)
        assert isinstance(finished, CellFinished)
        assert (finished.cell_index, finished.outcome) == (1, CellOutcome.STOPPED)
        assert isinstance(end, RunChanged)
        node = await executed(store, run_id)
        assert [printed(node, 0), printed(node, 1)] == ["said 0\n", "last words\n"]


async def test_bytes_that_belong_to_no_segment_do_no_harm(tmp_path: Path) -> None:
    """A segment that was half written when the server died is not taken for a whole one."""
    backend = FakeBackend()
    started = CellStarted(1, "id", "2")
    async with abandoned(a_store(Store, tmp_path), backend) as runner:
        run_id = (await runner.start(spec())).run_id
        _, log = await runner.log(run_id)
        torn = SegmentChunk(1, b"torn", last=False)
        (await backend.taken()).tell(KernelReady(), *cell(0), started, torn, ClearOutput(1, wait=True))
        await tells(log, ClearOutput(1, wait=True))
    store = a_store(Store, tmp_path)
    async with running(store, FakeBackend()) as runner:
        assert (await runner.find(run_id)).state is S.INTERRUPTED
        node = await executed(store, run_id)
        assert [printed(node, 0), printed(node, 1)] == ["said 0\n", ""]


@pytest.mark.state_folder("it changes the files of a run")
@pytest.mark.parametrize("damage", ["folder", "segments"])
async def test_a_run_whose_files_are_gone_does_not_keep_the_server_from_starting(
    tmp_path: Path, damage: str
) -> None:
    """What can still be said of it is said: it is INTERRUPTED, and the next run works."""
    backend = FakeBackend()
    store = a_store(Store, tmp_path)
    async with abandoned(store, backend) as runner:
        run_id = (await runner.start(spec())).run_id
        _, log = await runner.log(run_id)
        started = CellStarted(0, "id", "1")
        (await backend.taken()).tell(KernelReady(), started)
        await tells(log, started)
        folder = store.folder(run_id)
    if damage == "folder":
        folder.remove()
    else:
        (folder.path / "segments").unlink()
    async with running(a_store(Store, tmp_path), FakeBackend()) as runner:
        assert (await runner.find(run_id)).state is S.INTERRUPTED


@pytest.mark.state_folder("it changes the files of a run")
async def test_a_queued_run_whose_files_are_gone_ends_with_a_name(tmp_path: Path) -> None:
    """It cannot be executed: CRASHED, by the state folder, and the next run works."""
    await left_in(tmp_path, S.QUEUED)
    backend = FakeBackend()
    store = a_store(Store, tmp_path)
    store.folder("QUEUED").remove()
    async with running(store, backend) as runner:
        run = await ended(runner, "QUEUED")
        assert run.failure is not None
        assert (run.state, run.failure.cause) == (S.CRASHED, Cause.STORAGE_FAILED)
        other = await runner.start(spec())
        (await backend.taken()).tell(KernelReady(), DONE)
        assert (await ended(runner, other.run_id)).state is S.SUCCEEDED
