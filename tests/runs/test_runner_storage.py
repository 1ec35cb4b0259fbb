"""A state folder that takes no more: runs end with a name, callers are told, and the server serves on."""

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from notebook_runner_server.errors import ShuttingDownError, StorageFullError
from notebook_runner_server.execution.interface import (
    Cause,
    CellFinished,
    CellOutcome,
    CellStarted,
    Ended,
    Failure,
    KernelReady,
)
from notebook_runner_server.runs import dispatcher
from notebook_runner_server.runs.database import Connection
from notebook_runner_server.runs.model import Event, Run, RunState, WriteBatch
from notebook_runner_server.runs.sqlite import SqliteDatabase
from notebook_runner_server.runs.state_folder import RESERVE_BYTES
from notebook_runner_server.runs.store import Store
from tests.runs.fakes import (
    DONE,
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
    settled,
    spec,
    states,
    tells,
)
from tests.runs.reading import FullStore
from tests.runs.samples import a_run, changed, printed, some_options
from tests.runs.stores import SEGMENTS, a_store, append, insert, opened

S = RunState
LARGE = "x" * 100_000
STOPPED = Ended(Failure(Cause.STORAGE_FAILED, "asked to stop"))


def bound(db: Connection, pages: int) -> None:
    """Lets the database have so many pages more: the next ones answer as on a full disk."""
    used = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {used + pages}")


@pytest.mark.state_folder("it limits SQLite's file")
async def test_a_full_disk_refuses_a_start_and_leaves_nothing(tmp_path: Path) -> None:
    """SQLite's own refusal becomes STORAGE_FULL, the run's folder goes, and with room it works again."""
    async with opened(tmp_path) as store:
        await insert(store, "before")
        await store._db.write(bound, 1)
        run = a_run(run_id="large", parameters={"a": LARGE})
        with pytest.raises(StorageFullError, match="full"):
            await store.insert(run, some_options(), "", changed(1, run), SEGMENTS)
        assert await store.find("large") is None
        assert [path.name for path in (tmp_path / "runs").iterdir()] == ["before"]
        await store._db.write(bound, 1000)
        await store.insert(run, some_options(), "", changed(1, run), SEGMENTS)


@pytest.mark.state_folder("it limits SQLite's file")
async def test_a_full_disk_takes_a_whole_batch_or_none_of_it(tmp_path: Path) -> None:
    """Of events that did not all fit none is there, and what was there before still is."""
    async with opened(tmp_path) as store:
        position = await insert(store, "one")
        await store._db.write(bound, 1)
        run = a_run(S.RUNNING, run_id="one")
        with pytest.raises(StorageFullError):
            await append(store, position, run, printed(2), printed(3, LARGE))
        assert [event.sequence for event in await store.events(position, 0)] == [1]
        row = await store.find("one")
        assert row is not None
        assert row.run.state is S.QUEUED


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for room is tried again at once."""
    monkeypatch.setattr(dispatcher, "SAVE_INTERVAL", 0.001)


@pytest.mark.parametrize("comes_back", [False, True], ids=["stays full", "has room again"])
async def test_the_end_of_a_run_waits_for_room(tmp_path: Path, *, comes_back: bool) -> None:
    """The worker is told to end it; an end that is not durable is told to nobody, then to everybody."""
    store, backend = a_store(FullStore, tmp_path), FakeBackend(obedient=False)
    async with running(store, backend) as runner:
        run = await runner.start(spec())
        handle = await backend.taken()
        handle.tell(KernelReady())
        await reach(runner, run.run_id, S.RUNNING)
        _, log = await runner.log(run.run_id)
        reader = asyncio.ensure_future(events_of(log))
        store.full = True
        handle.tell(*cell(0))
        await handle.asked.wait()
        store.full = not comes_back
        handle.tell(STOPPED)
        assert handle.stops == [(Cause.STORAGE_FAILED, 0.0)]
        await handle.left.wait()
        if not comes_back:
            with pytest.raises(StorageFullError, match="All processes have ended"):
                await runner.kill(run.run_id, 0.0)
            assert not reader.done()
            assert (await runner.find(run.run_id)).state is S.RUNNING
            store.full = False
        told = await reader
        assert states(told) == [S.QUEUED, S.STARTING, S.RUNNING, S.CRASHED]
        assert numbers(told) == [1, 2, 3, 4]
        found = await runner.find(run.run_id)
        assert found.failure is not None
        assert (found.state, found.failure.cause) == (S.CRASHED, Cause.STORAGE_FAILED)
        assert (await runner.kill(run.run_id, 0.0))[0].state is S.CRASHED
        listed = [one.state for _, one in (await runner.list(10**6, 10, [], {}))[0] if isinstance(one, Run)]
        assert listed == [S.CRASHED]
        assert await events(runner, run.run_id) == told
        # The server serves on.
        other = await runner.start(spec())
        (await backend.taken(other.run_id)).tell(*WHOLE)
        assert (await ended(runner, other.run_id)).state is S.SUCCEEDED


async def test_an_end_of_which_all_else_is_written_stays_what_it_is(tmp_path: Path) -> None:
    """A run that succeeded when the disk was full has succeeded when there is room."""
    store, backend = a_store(FullStore, tmp_path), FakeBackend()
    async with running(store, backend) as runner:
        run = await runner.start(spec())
        handle = await backend.taken()
        handle.tell(KernelReady())
        await reach(runner, run.run_id, S.RUNNING)
        store.full = True
        handle.tell(Ended(None))
        await handle.left.wait()
        assert (await runner.find(run.run_id)).state is S.RUNNING
        (saving,) = runner._dispatcher._savers
        store.full = False
        assert (await ended(runner, run.run_id)).state is S.SUCCEEDED
        await saving
        await asyncio.sleep(0)
        assert runner._dispatcher._savers == set()


async def test_what_was_told_of_a_cell_is_in_it_when_its_end_had_to_wait(tmp_path: Path) -> None:
    """Text that readers have seen is in the notebook, once, however often its end was tried."""
    store, backend = a_store(FullStore, tmp_path), FakeBackend(obedient=False)
    async with running(store, backend) as runner:
        run = await runner.start(spec())
        handle = await backend.taken()
        handle.tell(KernelReady(), *cell(0)[:2])
        _, log = await runner.log(run.run_id)
        await tells(log, cell(0)[1])
        store.full = True
        handle.tell(*cell(0)[2:])
        await handle.asked.wait()
        handle.tell(STOPPED)
        await handle.left.wait()
        with pytest.raises(StorageFullError):
            await runner.kill(run.run_id, 0.0)
        store.full = False
        assert (await ended(runner, run.run_id)).state is S.CRASHED
        node = await executed(store, run.run_id)
        assert node.cells[0].outputs[0].text == "said 0\n"
        assert len(node.cells[0].outputs) == 1


@pytest.mark.parametrize("state", [S.QUEUED, S.STARTING, S.RUNNING])
async def test_a_kill_ends_a_run_on_a_full_disk(tmp_path: Path, state: RunState) -> None:
    """Its worker is told, the call says that the end waits for room, and with room it is told."""
    store, backend = a_store(FullStore, tmp_path), FakeBackend()
    async with running(store, backend, 1) as runner:
        run = await runner.start(spec())
        handle = await backend.taken()
        if state is S.QUEUED:
            run = await runner.start(spec())
        elif state is S.RUNNING:
            handle.tell(KernelReady())
            await reach(runner, run.run_id, S.RUNNING)
        store.full = True
        with pytest.raises(StorageFullError):
            await runner.kill(run.run_id, 0.0)
        assert bool(handle.stops) == (state is not S.QUEUED)
        store.full = False
        assert (await ended(runner, run.run_id)).state is (S.KILLED)


@pytest.mark.state_folder("the mark of a kill that cannot be written is in the state folder")
async def test_a_queued_run_that_was_killed_is_not_executed_after_a_restart(tmp_path: Path) -> None:
    """Whoever killed it was told that it has no process; the server could not write that."""
    store, backend = a_store(FullStore, tmp_path), FakeBackend()
    async with running(store, backend, 1) as runner:
        await runner.start(spec())
        await backend.taken()
        run = await runner.start(spec())
        store.full = True
        with pytest.raises(StorageFullError):
            await runner.kill(run.run_id, 0.0)
    async with running(a_store(Store, tmp_path), FakeBackend()) as runner:
        found = await runner.find(run.run_id)
        assert found.state is S.INTERRUPTED
        assert found.failure is not None
        assert found.failure.cause is Cause.SERVER_DIED


async def test_the_first_end_of_a_run_is_the_one_that_is_told(tmp_path: Path) -> None:
    """An end that waits for room is not replaced by another."""
    store, backend = a_store(FullStore, tmp_path), FakeBackend()
    async with running(store, backend, 1) as runner:
        await runner.start(spec())
        await backend.taken()
        run = await runner.start(spec())
        active = runner._dispatcher.find(run.run_id)
        assert active is not None
        store.full = True
        with pytest.raises(StorageFullError):
            await runner.kill(run.run_id, 0.0)
        await active.finish(Failure(Cause.WORKER_DIED, "later"))
        store.full = False
        assert (await ended(runner, run.run_id)).state is S.KILLED


async def test_draining_works_on_a_full_disk(tmp_path: Path) -> None:
    """A server whose disk is full can be stopped: the run's worker is told, and drain returns."""
    store, backend = a_store(FullStore, tmp_path), FakeBackend()
    async with running(store, backend) as runner:
        run = await runner.start(spec())
        handle = await backend.taken()
        handle.tell(KernelReady())
        await reach(runner, run.run_id, S.RUNNING)
        store.full = True
        try:
            await runner.drain(asyncio.Event(), 0.0)
            assert handle.stops[0][0] is Cause.SERVER_STOPPED
        finally:
            store.full = False


async def test_a_queued_run_waits_for_room(tmp_path: Path) -> None:
    """Its turn comes when nothing can be written: it stays, and is executed when there is room."""
    store, backend = a_store(FullStore, tmp_path), FakeBackend()
    async with running(store, backend, 1) as runner:
        first, second = await runner.start(spec()), await runner.start(spec())
        handle = await backend.taken()
        handle.tell(KernelReady())
        await reach(runner, first.run_id, S.RUNNING)
        store.full = True
        handle.tell(DONE)
        await handle.left.wait()
        # While its turn is tried, it has no place in the queue.
        while (found := await runner.find(second.run_id)).queue_position is None:
            await settled(store)
        assert (found.state, found.queue_position) == (S.QUEUED, 0)
        store.full = False
        (await backend.taken(second.run_id)).tell(*WHOLE)
        assert (await ended(runner, second.run_id)).state is S.SUCCEEDED
        assert (await runner.find(first.run_id)).state is S.SUCCEEDED


async def test_what_waits_for_room_is_told_once_over_a_restart(tmp_path: Path) -> None:
    """An end that a server could not write was told to nobody: the next one says another."""
    store, backend = a_store(FullStore, tmp_path), FakeBackend()
    async with running(store, backend, 1) as runner:
        first, second = await runner.start(spec()), await runner.start(spec())
        handle = await backend.taken()
        handle.tell(KernelReady())
        await reach(runner, first.run_id, S.RUNNING)
        _, log = await runner.log(first.run_id)
        reader = asyncio.ensure_future(events_of(log))
        store.full = True
        handle.tell(DONE)
        await handle.left.wait()
    with pytest.raises(ShuttingDownError):
        await reader
    backend = FakeBackend()
    async with running(a_store(Store, tmp_path), backend, 1) as runner:
        assert states(await events(runner, first.run_id)) == [S.QUEUED, S.STARTING, S.RUNNING, S.INTERRUPTED]
        (await backend.taken(second.run_id)).tell(*WHOLE)
        assert (await ended(runner, second.run_id)).state is S.SUCCEEDED


@pytest.mark.state_folder("the reserve is in the state folder")
async def test_room_is_kept_for_ends(tmp_path: Path) -> None:
    """What is refused for want of room is taken for an end, and only for that."""
    reserve = tmp_path / "reserve"
    async with opened(tmp_path) as store:
        assert reserve.stat().st_blocks * 512 >= RESERVE_BYTES
        position = await insert(store, "one")
        release, limits = store._reserve.release, [store._db.write]

        async def bounded(pages: int) -> None:
            await limits[0](bound, pages)

        await bounded(0)

        def give() -> None:
            release()
            assert isinstance(store._db, SqliteDatabase)
            bound(store._db._writing, 1000)

        store._reserve.release = give  # type: ignore[method-assign] # the file system's segment of it
        run = a_run(S.RUNNING, run_id="one", parameters={"a": LARGE})
        with pytest.raises(StorageFullError):
            await append(store, position, run, printed(2, LARGE))
        assert store.problem
        end = a_run(S.KILLED, run_id="one")
        await store.append(position, end, [printed(2, LARGE), changed(3, end)], WriteBatch(), 1, is_end=True)
        assert not reserve.exists()
        await store.retry_writing()
        assert not store.problem
        assert reserve.exists()


class StrangeStore(Store):
    """A store that fails in a way nobody has thought of to record an end, until it is mended."""

    is_mended = False
    failed = asyncio.Semaphore(0)

    @override
    async def append(self, *args: Any, **options: Any) -> int:
        """Fails, or appends."""
        if options.get("is_end") and not self.is_mended:
            self.failed.release()
            raise ValueError("strange")
        return await super().append(*args, **options)


async def test_an_end_that_cannot_be_recorded_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the error was; a kill does not wait for it, and the log has it once."""
    store, backend = a_store(StrangeStore, tmp_path), FakeBackend()
    async with running(store, backend) as runner:
        run = await runner.start(spec())
        handle = await backend.taken()
        handle.tell(*WHOLE)
        await handle.left.wait()
        for _ in range(2):
            with pytest.raises(StorageFullError, match="All processes have ended"):
                await runner.kill(run.run_id, 0.0)
        # The first is the run's own, and a third would have written a second line.
        for _ in range(4):
            await store.failed.acquire()
        store.is_mended = True
        assert (await ended(runner, run.run_id)).state is S.SUCCEEDED
    assert [record.getMessage() for record in caplog.records].count("run_end_failed") == 1


class BrokenStore(Store):
    """A store whose events cannot be read, as those of a damaged file."""

    @override
    async def events_before(self, position: int, before: int) -> list[Event]:
        """Fails."""
        raise sqlite3.DatabaseError(f"malformed: {position} {before}")


@pytest.mark.parametrize(
    "damage",
    [pytest.param("segments", marks=pytest.mark.state_folder("it removes a file of the run")), "events"],
)
async def test_a_worker_that_dies_on_a_damaged_folder_leaves_an_end(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The cell's text cannot be saved, which is logged; the run and its cell end all the same."""
    kind: type[Store] = BrokenStore if damage == "events" else Store
    store, backend = a_store(kind, tmp_path), FakeBackend()
    async with running(store, backend) as runner:
        run = await runner.start(spec())
        handle = await backend.taken()
        handle.tell(KernelReady(), CellStarted(0, "id", "1"))
        await reach(runner, run.run_id, S.RUNNING)
        _, log = await runner.log(run.run_id)
        if damage == "segments":
            (store.folder(run.run_id).path / "segments").unlink()
        handle.tell(Ended(Failure(Cause.WORKER_DIED, "gone")))
        *_, cell_end, run_end = await events_of(log)
        assert isinstance(cell_end.body, CellFinished)
        assert (cell_end.body.cell_index, cell_end.body.outcome) == (0, CellOutcome.STOPPED)
        assert states([run_end]) == [S.CRASHED]
        run = await runner.find(run.run_id)
        assert run.failure is not None
        assert (run.failure.cause, run.failure.cell_index) == (Cause.WORKER_DIED, 0)
    assert "cell_output_lost" in caplog.text
    assert ("malformed" in caplog.text) == (damage == "events")


async def test_a_backend_that_tells_nonsense_is_left(tmp_path: Path) -> None:
    """A fault of the program ends the run; the backend learns that nobody listens, and the next run works."""
    backend = FakeBackend()
    async with running(a_store(Store, tmp_path), backend) as runner:
        run = await runner.start(spec())
        handle = await backend.taken()
        _, log = await runner.log(run.run_id)
        handle.tell(KernelReady(), KernelReady())
        assert states(await events_of(log))[-1] is S.CRASHED
        await handle.left.wait()
        other = await runner.start(spec())
        (await backend.taken(other.run_id)).tell(*WHOLE)
        assert (await ended(runner, other.run_id)).state is S.SUCCEEDED
