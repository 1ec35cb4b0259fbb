"""The life of runs on a backend that does what the test says: admission, dispatch, history."""

import asyncio
from pathlib import Path

import pytest
from nbformat import NotebookNode

from notebook_runner_server.errors import RequestIdReusedError, RunnerBusyError, RunNotFoundError
from notebook_runner_server.execution.interface import Cause, CellFinished, Ended, Failure, KernelReady
from notebook_runner_server.runs.model import Run, RunState
from notebook_runner_server.runs.store import Store
from tests.runs.fakes import (
    DONE,
    SIMPLE,
    WHOLE,
    FakeBackend,
    cell,
    ended,
    events,
    events_of,
    executed,
    numbers,
    reach,
    running,
    spec,
    states,
)
from tests.runs.stores import a_store, check_folders
from tests.support.notebooks import printed

S = RunState
FAILED = Ended(Failure(Cause.CELL_ERROR, "no", cell_index=1, exception_name="ValueError"))


async def test_a_run_goes_from_its_start_to_its_end(tmp_path: Path) -> None:
    """Every state is told once, in order and without a gap, and the notebook has what was executed."""
    store, backend = a_store(Store, tmp_path), FakeBackend()
    async with running(store, backend) as runner:
        started = await runner.start(spec(request_id="mine", environment={"A": "b"}))
        assert (started.state, started.queue_position) == (S.QUEUED, 0)
        handle = await backend.taken()
        assert handle.job.environment == {"A": "b"}
        assert handle.job.working_folder == str(store.folder(started.run_id).work)
        assert handle.job.notebook == SIMPLE + b"\n"
        handle.tell(*WHOLE)
        told = await events(runner, started.run_id)
        assert numbers(told) == list(range(1, len(told) + 1))
        assert states(told) == [S.QUEUED, S.STARTING, S.RUNNING, S.SUCCEEDED]
        run = await runner.find(started.run_id)
        assert (run.state, run.cells_completed, run.current_cell) == (S.SUCCEEDED, 2, None)
        assert 0 < run.create_time <= run.start_time <= run.end_time
        node = await executed(store, started.run_id)
        assert [printed(node, 0), printed(node, 1), node.metadata] == ["said 0\n", "said 1\n", {"a": 1}]


async def test_batches_make_no_difference(tmp_path: Path) -> None:
    """One batch with everything and one batch for each event give the same history and notebook."""

    async def scenario(folder: Path, *, apart: bool) -> tuple[list[str], NotebookNode]:
        store, backend = a_store(Store, folder), FakeBackend()
        async with running(store, backend) as runner:
            run = await runner.start(spec())
            handle = await backend.taken()
            for batch in [[event] for event in WHOLE] if apart else [WHOLE]:
                handle.tell(*batch)
            told = await events(runner, run.run_id)
            return [type(event.body).__name__ for event in told], await executed(store, run.run_id)

    one = await scenario(tmp_path / "one", apart=True)
    assert await scenario(tmp_path / "two", apart=False) == one


async def test_a_segment_shows_from_the_event_on_that_tells_of_it(tmp_path: Path) -> None:
    """The notebook as of the event before has the cell as it was, as of `CellFinished` as it is."""
    store, backend = a_store(Store, tmp_path), FakeBackend()
    async with running(store, backend) as runner:
        run = await runner.start(spec())
        handle = await backend.taken()
        handle.tell(KernelReady(), *cell(0))
        handle.tell(DONE)
        told = await events(runner, run.run_id)
        finished = next(one.sequence for one in told if isinstance(one.body, CellFinished))
        assert printed(await executed(store, run.run_id, finished - 1), 0) == ""
        assert printed(await executed(store, run.run_id, finished), 0) == "said 0\n"


async def test_only_as_many_runs_are_admitted_as_there_is_room_for(tmp_path: Path) -> None:
    """Workers and queue together; who is refused learns which run is in the way, and nothing is left."""
    store, backend = a_store(Store, tmp_path), FakeBackend(2)
    async with running(store, backend, 1) as runner:
        runs = [await runner.start(spec()) for _ in range(3)]
        for _ in range(2):
            await backend.taken()
        with pytest.raises(RunnerBusyError) as caught:
            await runner.start(spec())
        assert caught.value.metadata["run_id"] == runs[0].run_id
        assert caught.value.retry_after > 0
        assert (await runner.find(runs[2].run_id)).queue_position == 0
        check_folders(tmp_path, [run.run_id for run in runs])
        assert len((await runner.list(10**6, 100, [], {}))[0]) == 3


async def test_twenty_at_once_are_one_and_the_queue(tmp_path: Path) -> None:
    """Callers that pass the first check together do not pass the second one together."""
    backend = FakeBackend()
    async with running(a_store(Store, tmp_path), backend, 3) as runner:
        answers = await asyncio.gather(*(runner.start(spec()) for _ in range(20)), return_exceptions=True)
        refused = [one for one in answers if isinstance(one, RunnerBusyError)]
        assert (len(answers), len(refused)) == (20, 16)
        assert len((await runner.list(10**6, 100, [], {}))[0]) == 4


async def test_a_place_is_free_as_soon_as_a_run_has_told_its_end(tmp_path: Path) -> None:
    """Whoever reads the terminal event and starts the next run is admitted, and the run is executed."""
    backend = FakeBackend()
    async with running(a_store(Store, tmp_path), backend) as runner:
        for _ in range(20):
            run = await runner.start(spec())
            (await backend.taken()).tell(KernelReady(), DONE)
            # Returns with the event, before the worker is given back.
            await reach(runner, run.run_id, S.SUCCEEDED)
        assert len(backend.handles) == 20


async def test_an_admission_and_an_end_at_the_same_moment_agree(tmp_path: Path) -> None:
    """A Start beside the last event is either refused or admitted and executed; never admitted and lost."""
    backend = FakeBackend()
    async with running(a_store(Store, tmp_path), backend) as runner:
        admitted = 0
        for _ in range(30):
            run = await runner.start(spec())
            handle = await backend.taken()
            handle.tell(KernelReady())
            await reach(runner, run.run_id, S.RUNNING)
            _, log = await runner.log(run.run_id)
            handle.tell(DONE)
            other = (await asyncio.gather(runner.start(spec()), return_exceptions=True))[0]
            assert states(await events_of(log))[-1] is S.SUCCEEDED
            if isinstance(other, RunnerBusyError):
                continue
            assert not isinstance(other, BaseException)
            admitted += 1
            (await backend.taken()).tell(KernelReady(), DONE)
            assert (await ended(runner, other.run_id)).state is S.SUCCEEDED
        assert len(backend.handles) == 30 + admitted


async def test_runs_are_executed_first_come_first_served(tmp_path: Path) -> None:
    """The queue keeps the order, tells the places, and gives each worker one run at a time."""
    backend = FakeBackend(2)
    async with running(a_store(Store, tmp_path), backend, 4) as runner:
        runs = [await runner.start(spec()) for _ in range(6)]
        taken = [await backend.taken(), await backend.taken()]
        places = [(await runner.find(run.run_id)).queue_position for run in runs]
        assert places == [None, None, 0, 1, 2, 3]
        for number in range(6):
            taken[number].tell(KernelReady(), DONE)
            assert (await ended(runner, runs[number].run_id)).state is S.SUCCEEDED
            if number < 4:
                taken.append(await backend.taken())
        assert [handle.job.run_id for handle in taken] == [run.run_id for run in runs]


async def test_a_failed_run_leaves_the_next_one_alone(tmp_path: Path) -> None:
    """One run fails, the next one succeeds, each with its own end."""
    backend = FakeBackend()
    async with running(a_store(Store, tmp_path), backend, 1) as runner:
        first, second = await runner.start(spec()), await runner.start(spec())
        (await backend.taken()).tell(KernelReady(), FAILED)
        (await backend.taken()).tell(KernelReady(), DONE)
        assert (await ended(runner, first.run_id)).failure == FAILED.failure
        assert (await ended(runner, second.run_id)).failure is None


async def test_a_hundred_repeats_of_one_request_are_one_run(tmp_path: Path) -> None:
    """Also when they arrive at once, also when the server is full, also when the run has ended."""
    backend = FakeBackend()
    async with running(a_store(Store, tmp_path), backend) as runner:
        mine = spec(request_id="mine")
        answers = await asyncio.gather(*(runner.start(mine) for _ in range(100)))
        assert len({run.run_id for run in answers}) == 1
        (await backend.taken()).tell(KernelReady(), DONE)
        await ended(runner, answers[0].run_id)
        assert (await runner.start(mine)).state is S.SUCCEEDED
        with pytest.raises(RequestIdReusedError):
            await runner.start(spec(request_id="mine", labels={"a": "b"}))
        assert len(backend.handles) == 1


async def test_what_is_not_there_is_said_so(tmp_path: Path) -> None:
    """An unknown run and an empty history answer that there is none, in find, log and kill."""
    backend = FakeBackend()
    async with running(a_store(Store, tmp_path), backend) as runner:
        for run_id in ("", "unknown"):
            for call in (runner.find(run_id), runner.log(run_id), runner.kill(run_id, 0.0)):
                with pytest.raises(RunNotFoundError):
                    await call
        assert await runner.list(10**6, 10, [], {}) == ([], 0)
        run = await runner.start(spec())
        assert (await runner.find("")).run_id == run.run_id


async def test_a_list_tells_where_to_go_on(tmp_path: Path) -> None:
    """Every page but the last gives a position, and the pages together are all runs, once each."""
    backend = FakeBackend()
    async with running(a_store(Store, tmp_path), backend, 9) as runner:
        runs = [(await runner.start(spec())).run_id for _ in range(5)]
        for size in (1, 2, 5, 6):
            seen, before = [], 10**6
            while before:
                page, before = await runner.list(before, size, [], {})
                assert 0 < len(page) <= size
                seen += [run.run_id for _, run in page if isinstance(run, Run)]
            assert seen == runs[::-1]
