"""The process pool when its workers die: one run at the most is lost, and nothing is left behind."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path
from uuid import uuid4

import pytest

from notebook_runner_server.execution import pool as pools
from notebook_runner_server.execution.interface import Cause, Ended, ExecutionEvent
from notebook_runner_server.execution.options import WarmKernels, WorkerOptions
from notebook_runner_server.execution.pool import ProcessPoolBackend
from notebook_runner_server.execution.processes import descendants
from notebook_runner_server.execution.worker_process import WorkerProcess
from tests.execution.pools import (
    FOR_EVER,
    MARK_VARIABLE,
    SECONDS,
    Pool,
    end,
    everything,
    loading,
    said,
    until_said,
    worker,
)
from tests.support.gate import Gate
from tests.support.polling import pause
from tests.support.processes import is_alive, marked

pytestmark = pytest.mark.fault

KEPT = 3
# What a busy machine does to a thread that ends processes.
SLOW_TO_STOP = """
import os, signal, time

def kill(pid, number, kill=os.kill):
    kill(pid, number)
    if number == signal.SIGSTOP:
        open(__file__ + ".stopped", "w").close()
        time.sleep(0.3)

os.kill = kill
"""


def test_a_worker_that_dies_is_replaced_once_whoever_gives_up_to_wait(pool: Pool) -> None:
    """A run that is ended meanwhile is nothing to the next one's worker."""

    async def scenario() -> None:
        await pool.backend.wait_for_worker()
        os.kill(worker(pool), signal.SIGKILL)
        (one,) = pool.backend._workers
        assert one.connection is not None
        while not one.connection.closed:
            await one.connection.receive()
        for _ in range(3):
            waiting = asyncio.ensure_future(pool.backend.wait_for_worker())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        assert end(await pool.execute("1")).failure is None

    deaths = pool.backend.worker_deaths
    pool.do(scenario())
    assert pool.backend.worker_deaths == deaths + 1
    assert len(pool.backend._workers) == 1


@pytest.mark.parametrize("chosen", [False, True], ids=["waiting", "chosen"])
def test_a_worker_that_dies_before_a_run_is_replaced(pool: Pool, *, chosen: bool) -> None:
    """The next run works and is not the one that finds out, also when the worker was in hand already."""

    async def scenario() -> list[ExecutionEvent]:
        if chosen:
            await pool.backend.wait_for_worker()
        (one,) = pool.backend._workers
        os.kill(one.info.pid, signal.SIGKILL)
        assert one.connection is not None
        while not one.connection.closed:
            await one.connection.receive()
        return await pool.execute("1")

    pool.run("1")
    pid = worker(pool)
    assert end(pool.do(scenario())).failure is None
    assert worker(pool) != pid


def test_an_order_after_the_end_does_not_end_the_worker(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Kill may cross the end of its run: the worker, and the next run on it, have nothing to do with it."""
    monkeypatch.setattr(pools, "STUCK_SECONDS", 0.0)
    before = worker(pool)

    async def scenario() -> None:
        handle = await pool.submit("1")
        await everything(handle)
        handle.stop(Cause.KILL_REQUESTED, 0.0)

    pool.do(scenario())
    assert end(pool.run("2")).failure is None
    assert worker(pool) == before


def test_a_worker_that_is_killed_in_a_run_ends_that_run_alone(pool: Pool) -> None:
    """The end says so, its processes are gone and counted, and the next run works."""
    mark = uuid4().hex

    async def scenario() -> list[ExecutionEvent]:
        rest = await until_said(pool, FOR_EVER, mark)
        assert len(marked(mark)) >= 2
        os.kill(worker(pool), signal.SIGKILL)
        return [event async for batch in rest for event in batch]

    events = pool.do(scenario())
    failure = end(events).failure
    assert failure is not None
    assert failure.cause is Cause.WORKER_DIED
    assert end(events).processes_ended >= 4
    assert marked(mark) == {}
    assert end(pool.run("1")).failure is None


def test_a_worker_whose_kernel_is_killed_goes_on(pool: Pool) -> None:
    """The kernel's death is the run's end, by its signal; the same worker takes the next run."""
    pid = worker(pool)
    failure = end(pool.run("import os; os.kill(os.getpid(), 9)")).failure
    assert failure is not None
    assert (failure.cause, failure.signal) == (Cause.KERNEL_SIGNALED, "SIGKILL")
    assert end(pool.run("1")).failure is None
    assert worker(pool) == pid


def test_a_run_that_nobody_follows_any_more_does_not_go_on(pool: Pool) -> None:
    """Whoever leaves before the end leaves nothing behind, and nothing of it reaches the next run."""
    mark = uuid4().hex

    async def scenario() -> list[ExecutionEvent]:
        rest = await until_said(pool, FOR_EVER, mark)
        await rest.aclose()
        return await pool.execute("print('next')")

    events = pool.do(scenario())
    assert (end(events).failure, said(events)) == (None, "next\n")
    assert marked(mark) == {}


def test_the_death_of_one_worker_is_nothing_to_the_other(tmp_path: Path, gate: Gate) -> None:
    """Two runs at once: one loses its worker, the other one ends well, and there are two again."""

    async def scenario(pool: Pool) -> tuple[Ended, Ended]:
        source = f"print(1, flush=True)\n{gate.source}"
        stays = await until_said(pool, source, "")
        kept = busy(pool)
        dies = await until_said(pool, source, "")
        (victim,) = busy(pool) - kept
        os.kill(victim, signal.SIGKILL)
        lost = [event async for batch in dies for event in batch]
        gate.open()
        well = [event async for batch in stays for event in batch]
        both = [await pool.submit("1") for _ in range(2)]
        assert [end(await everything(handle)).failure for handle in both] == [None, None]
        return end(lost), end(well)

    with Pool(tmp_path, workers=2) as pool:
        lost, well = pool.do(scenario(pool))
    assert lost.failure is not None
    assert lost.failure.cause is Cause.WORKER_DIED
    assert well.failure is None


def busy(pool: Pool) -> set[int]:
    """The processes of the workers that have a run."""
    idle = [*pool.backend._idle._queue, pool.backend._next]  # type: ignore[attr-defined] # asyncio's own
    return {one.info.pid for one in pool.backend._workers if one not in idle}


def test_closing_in_the_middle_of_a_run_leaves_nothing(tmp_path: Path) -> None:
    """Worker, kernel and all that a notebook started are gone when the pool is closed."""
    mark = uuid4().hex
    with Pool(tmp_path) as pool:
        rest = pool.do(until_said(pool, FOR_EVER, mark))
        assert len(marked(mark)) >= 2
        pool.do(pool.backend.close())
        assert marked(mark) == {}
        pool.do(rest.aclose())


def test_the_processes_of_a_start_load_before_it(tmp_path: Path) -> None:
    """The workers are those that were spawned, and there are no others."""
    with Pool(tmp_path, workers=2) as pool:
        assert {one.info.pid for one in pool.backend._workers} == pool.spawned
        assert len(pool.spawned) == 2


def test_a_pool_that_never_starts_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is refused while its workers load."""
    mark = uuid4().hex
    # A helper of the interpreter, which stays as long as the interpreter.
    resource_tracker.ensure_running()
    monkeypatch.setenv(MARK_VARIABLE, mark)
    backend = ProcessPoolBackend(2, tmp_path / "scratch")
    backend.spawn()
    assert len(loading(mark, 2)) == 2
    asyncio.run(backend.close())
    assert marked(mark) == {}
    assert list(tmp_path.iterdir()) == []


def test_closing_while_a_worker_is_replaced_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is being started when the pool is closed is ended as well."""
    on_its_way = asyncio.Event()
    start = WorkerProcess.start

    async def told(one: WorkerProcess, options: WorkerOptions) -> None:
        task = asyncio.ensure_future(start(one, options))
        while not one._pool._processes:
            await asyncio.wait([task], timeout=0.01)
        on_its_way.set()
        await task

    async def scenario(pool: Pool) -> None:
        monkeypatch.setattr(WorkerProcess, "start", told)
        handle = await pool.submit("1")
        os.kill(worker(pool), signal.SIGKILL)
        await everything(handle)
        await on_its_way.wait()

    with Pool(tmp_path) as pool:
        pool.do(scenario(pool))


def until(pool: Pool, true: Callable[[], bool]) -> None:
    """Lets the pool go on until something is true."""
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end
        pause()
        pool.do(asyncio.sleep(0.01))


def test_a_worker_does_not_end_while_it_ends_what_is_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it leaves would stay, stopped: whoever would end that may be killed meanwhile."""
    program = tmp_path / "sitecustomize.py"
    program.write_text(SLOW_TO_STOP)

    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with Pool(tmp_path, warm=WarmKernels({"python3": KEPT})) as pool:
        (one,) = pool.backend._workers
        until(pool, lambda: pool.backend.warm_counts["python3"].ready == KEPT)
        below = descendants(one.info.pid)
        assert len(below) > KEPT
        assert one.connection is not None
        one.connection.close()
        until(pool, program.with_name(program.name + ".stopped").exists)
        pool.do(one.close())
        assert not any(map(is_alive, below))
