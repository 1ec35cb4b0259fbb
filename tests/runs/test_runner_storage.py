"""A state folder that takes no more: runs end with a name, callers are told, and the server serves on."""

import asyncio
import sqlite3
from pathlib import Path

import pytest
from typing_extensions import override

from notebook_runner_server.execution.interface import (
    Cause,
    CellFinished,
    CellOutcome,
    CellStarted,
    Ended,
    Failure,
    KernelReady,
)
from notebook_runner_server.runs.errors import StorageFullError
from notebook_runner_server.runs.model import Event, Run, RunState
from notebook_runner_server.runs.store import Store
from tests.runs.doubles import (
    DONE,
    WHOLE,
    Double,
    cell,
    ended,
    events,
    events_of,
    reach,
    running,
    settled,
    spec,
    states,
)
from tests.runs.reading import FullStore
from tests.runs.samples import a_run, an_order, changed, printed
from tests.runs.stores import PARTS, append, insert, opened

S = RunState
LARGE = "x" * 100_000
STOPPED = Ended(Failure(Cause.STORAGE_FAILED, "asked to stop"))


def bound(db: sqlite3.Connection, pages: int) -> None:
    """Lets the database have so many pages more: the next ones answer as on a full disk."""
    used = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {used + pages}")


async def test_a_full_disk_refuses_a_start_and_leaves_nothing(tmp_path: Path) -> None:
    """SQLite's own refusal becomes STORAGE_FULL, the run's folder goes, and with room it works again."""
    async with opened(tmp_path) as store:
        await insert(store, "before")
        await store._db.write(bound, 1)
        run = a_run(run_id="large", parameters={"a": LARGE})
        with pytest.raises(StorageFullError, match="full"):
            await store.insert(run, an_order(), "", changed(1, run), PARTS)
        assert await store.find("large") is None
        assert [path.name for path in (tmp_path / "runs").iterdir()] == ["before"]
        await store._db.write(bound, 1000)
        await store.insert(run, an_order(), "", changed(1, run), PARTS)


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


@pytest.mark.parametrize("comes_back", [False, True], ids=["stays full", "has room again"])
async def test_a_run_in_progress_ends_with_a_name(tmp_path: Path, *, comes_back: bool) -> None:
    """The worker is told to end it, and whoever follows sees CRASHED by the state folder, and an end."""
    store, backend = FullStore(tmp_path), Double(obedient=False)
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
        told = await reader
        assert handle.stops == [(Cause.STORAGE_FAILED, 0.0)]
        assert states(told) == [S.QUEUED, S.STARTING, S.RUNNING, S.CRASHED]
        assert len(told) == 4
        store.full = False
        # The server serves on.
        other = await runner.start(spec())
        (await backend.taken(other.run_id)).tell(*WHOLE)
        assert (await ended(runner, other.run_id)).state is S.SUCCEEDED


@pytest.mark.parametrize("comes_back", [False, True], ids=["stays full", "has room again"])
async def test_everybody_is_told_the_same_end(tmp_path: Path, *, comes_back: bool) -> None:
    """Whoever asks after the end gets it too: the run, a new reader, a Kill and a List."""
    store, backend = FullStore(tmp_path), Double(obedient=False)
    async with running(store, backend) as runner:
        run = await runner.start(spec())
        handle = await backend.taken()
        handle.tell(KernelReady())
        await reach(runner, run.run_id, S.RUNNING)
        _, log = await runner.log(run.run_id)
        store.full = True
        handle.tell(*cell(0))
        await handle.asked.wait()
        store.full = not comes_back
        handle.tell(STOPPED)
        await events_of(log)
        await settled(store)
        found = await runner.find(run.run_id)
        assert found.failure is not None
        assert (found.state, found.failure.cause) == (S.CRASHED, Cause.STORAGE_FAILED)
        assert (await runner.kill(run.run_id, 0.0))[0].state is S.CRASHED
        assert [
            one.state for _, one in (await runner.list(10**6, 10, [], {}))[0] if isinstance(one, Run)
        ] == [S.CRASHED]
        assert states(await events(runner, run.run_id))[-1] is S.CRASHED


async def test_a_run_whose_end_cannot_be_written_has_an_end(tmp_path: Path) -> None:
    """The last batch is the one that does not fit: no reader waits for ever."""
    store, backend = FullStore(tmp_path), Double()
    async with running(store, backend) as runner:
        run = await runner.start(spec())
        handle = await backend.taken()
        handle.tell(KernelReady())
        await reach(runner, run.run_id, S.RUNNING)
        _, log = await runner.log(run.run_id)
        store.full = True
        handle.tell(Ended(None))
        assert states(await events_of(log))[-1] is S.CRASHED


@pytest.mark.parametrize("state", [S.QUEUED, S.STARTING, S.RUNNING])
async def test_a_kill_works_on_a_full_disk(tmp_path: Path, state: RunState) -> None:
    """The run is ended, whatever can be written of it: its worker is told, and the call answers an end."""
    store, backend = FullStore(tmp_path), Double()
    async with running(store, backend, 1) as runner:
        run = await runner.start(spec())
        handle = await backend.taken()
        if state is S.QUEUED:
            run = await runner.start(spec())
        elif state is S.RUNNING:
            handle.tell(KernelReady())
            await reach(runner, run.run_id, S.RUNNING)
        store.full = True
        killed, _ = await runner.kill(run.run_id, 0.0)
        assert killed.state.is_terminal
        assert bool(handle.stops) == (state is not S.QUEUED)
        store.full = False


async def test_draining_works_on_a_full_disk(tmp_path: Path) -> None:
    """A server whose disk is full can be stopped: the run's worker is told, and drain returns."""
    store, backend = FullStore(tmp_path), Double()
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


async def test_a_queued_run_that_cannot_be_begun_ends_with_a_name(tmp_path: Path) -> None:
    """Its turn comes when nothing can be written: CRASHED by the state folder, and the next one runs."""
    store, backend = FullStore(tmp_path), Double()
    async with running(store, backend, 1) as runner:
        first, second = await runner.start(spec()), await runner.start(spec())
        handle = await backend.taken()
        handle.tell(KernelReady())
        await reach(runner, first.run_id, S.RUNNING)
        _, log = await runner.log(second.run_id)
        store.full = True
        handle.tell(DONE)
        told = await events_of(log)
        assert states(told)[-1] is S.CRASHED
        store.full = False
        third = await runner.start(spec())
        (await backend.taken(third.run_id)).tell(*WHOLE)
        assert (await ended(runner, third.run_id)).state is S.SUCCEEDED


class BrokenStore(Store):
    """A store whose events cannot be read, as those of a damaged file."""

    @override
    async def events_before(self, position: int, before: int) -> list[Event]:
        """Fails."""
        raise sqlite3.DatabaseError(f"malformed: {position} {before}")


@pytest.mark.parametrize("damage", ["parts", "events"])
async def test_a_worker_that_dies_on_a_damaged_folder_leaves_an_end(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The cell's text cannot be saved, which is logged; the run and its cell end all the same."""
    store, backend = BrokenStore(tmp_path) if damage == "events" else Store(tmp_path), Double()
    async with running(store, backend) as runner:
        run = await runner.start(spec())
        handle = await backend.taken()
        handle.tell(KernelReady(), CellStarted(0, "id", "1"))
        await reach(runner, run.run_id, S.RUNNING)
        _, log = await runner.log(run.run_id)
        if damage == "parts":
            (store.folder(run.run_id).path / "parts").unlink()
        handle.tell(Ended(Failure(Cause.WORKER_DIED, "gone")))
        *_, cell_end, run_end = await events_of(log)
        assert isinstance(cell_end.body, CellFinished)
        assert (cell_end.body.cell_index, cell_end.body.outcome) == (0, CellOutcome.STOPPED)
        assert states([run_end]) == [S.CRASHED]
        run = await runner.find(run.run_id)
        assert run.failure is not None
        assert (run.failure.cause, run.failure.cell_index) == (Cause.WORKER_DIED, 0)
    assert "the text of a cell could not be saved" in caplog.text
    assert ("malformed" in caplog.text) == (damage == "events")


async def test_a_backend_that_tells_nonsense_is_left(tmp_path: Path) -> None:
    """A fault of the program ends the run; the backend learns that nobody listens, and the next run works."""
    backend = Double()
    async with running(Store(tmp_path), backend) as runner:
        run = await runner.start(spec())
        handle = await backend.taken()
        _, log = await runner.log(run.run_id)
        handle.tell(KernelReady(), KernelReady())
        assert states(await events_of(log))[-1] is S.CRASHED
        await handle.left.wait()
        other = await runner.start(spec())
        (await backend.taken(other.run_id)).tell(*WHOLE)
        assert (await ended(runner, other.run_id)).state is S.SUCCEEDED
