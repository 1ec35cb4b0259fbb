"""Retention: what is forgotten, in which order, and what is not."""

import asyncio
import resource
import shutil
from pathlib import Path

import pytest
from typing_extensions import override

from notebook_runner_server.runs import tables
from notebook_runner_server.runs.log import RunLog
from notebook_runner_server.runs.retention import BATCH, HistoryLimits, Readers, Retention
from notebook_runner_server.runs.store import Store
from notebook_runner_server.runs.tables import DamagedRecord, RunRecord
from tests.runs.reading import FullStore
from tests.runs.samples import some_options
from tests.runs.stores import a_store, check_folders, finish, insert, leave_file, opened

NEWEST = 2**63 - 1
FOR_EVER = 2**62


async def ended_run(store: Store, run_id: str, expire_time: int = FOR_EVER, size: int = 0) -> None:
    """A run that has ended, with a file of a size in its folder."""
    position = await insert(store, run_id)
    leave_file(store, run_id, size)
    await finish(store, position, run_id, expire_time=expire_time)


async def ids(store: Store) -> list[str]:
    """The ids of all runs, oldest first; each has its folder, and no other folder is there."""
    found = [row.run_id for row in await store.list(NEWEST, 1000, [], {})][::-1]
    check_folders(store._folder, found)
    return found


def nobody(_: str) -> bool:
    """Reads nothing."""
    return False


async def test_runs_are_forgotten_when_their_time_is_over(tmp_path: Path) -> None:
    """Ended and expired: gone with folder and events; not yet expired, or not ended: kept."""
    async with opened(tmp_path) as store:
        await ended_run(store, "over", 1)
        await ended_run(store, "kept")
        await insert(store, "queued", some_options(retention=0.0))
        await ended_run(store, "over-too", 2)
        await Retention(store, HistoryLimits(), nobody).sweep()
        assert await ids(store) == ["kept", "queued"]


async def test_more_runs_than_one_read_takes_are_forgotten(tmp_path: Path) -> None:
    """However many are over, one look forgets all of them, also past those that somebody reads."""
    async with opened(tmp_path) as store:
        for number in range(BATCH * 2 + 5):
            await ended_run(store, f"run-{number:03}", 1)
        read = {f"run-{number:03}" for number in range(BATCH)}
        await Retention(store, HistoryLimits(), read.__contains__).sweep()
        assert set(await ids(store)) == read
        await Retention(store, HistoryLimits(), nobody).sweep()
        assert await ids(store) == []


async def test_the_oldest_ended_runs_go_first_when_there_are_too_many(tmp_path: Path) -> None:
    """As many as are over, from the oldest; runs that go on do not count and do not go."""
    async with opened(tmp_path) as store:
        await insert(store, "queued")
        for number in range(5):
            await ended_run(store, f"run-{number}")
        await Retention(store, HistoryLimits(runs=3), nobody).sweep()
        assert await ids(store) == ["queued", "run-2", "run-3", "run-4"]
        await Retention(store, HistoryLimits(runs=3), nobody).sweep()
        assert len(await ids(store)) == 4


async def test_the_oldest_ended_runs_go_first_when_they_are_too_large(tmp_path: Path) -> None:
    """Until the folders are within the bound, and no run more than that."""
    async with opened(tmp_path) as store:
        for number in range(4):
            await ended_run(store, f"run-{number}", size=1000)
        sizes = store.sizes()
        assert min(sizes.values()) > 1000
        await Retention(store, HistoryLimits(total_bytes=sum(sizes.values())), nobody).sweep()
        assert len(await ids(store)) == 4
        await Retention(store, HistoryLimits(total_bytes=sum(sizes.values()) - 1), nobody).sweep()
        assert await ids(store) == ["run-1", "run-2", "run-3"]
        (oldest,) = [size for name, size in store.sizes().items() if name == "run-1"]
        limit = sum(store.sizes().values()) - oldest
        await Retention(store, HistoryLimits(total_bytes=limit), nobody).sweep()
        assert await ids(store) == ["run-2", "run-3"]
        await Retention(store, HistoryLimits(total_bytes=1), nobody).sweep()
        assert await ids(store) == []


async def test_what_an_active_run_stores_removes_no_ended_run(tmp_path: Path) -> None:
    """Else a run could delete those of others before it has ended, and before its own can be removed."""
    async with opened(tmp_path) as store:
        await ended_run(store, "ended", size=1000)
        limit = sum(store.sizes().values())
        await insert(store, "active")
        leave_file(store, "active", 10_000)
        await Retention(store, HistoryLimits(total_bytes=limit), nobody).sweep()
        assert await ids(store) == ["ended", "active"]


@pytest.mark.parametrize("limits", [HistoryLimits(runs=BATCH), HistoryLimits(total_bytes=1)])
async def test_runs_that_are_read_do_not_hide_those_behind_them(
    tmp_path: Path, limits: HistoryLimits
) -> None:
    """Also when a whole read of the history finds only runs that somebody reads."""
    async with opened(tmp_path) as store:
        for number in range(BATCH + 1):
            await ended_run(store, f"run-{number:03}")
        read = {f"run-{number:03}" for number in range(BATCH)}
        await Retention(store, limits, read.__contains__).sweep()
        assert set(await ids(store)) == read


async def test_one_run_too_many_goes(tmp_path: Path) -> None:
    """The limit is exact."""
    async with opened(tmp_path) as store:
        for number in range(3):
            await ended_run(store, f"run-{number}")
        await Retention(store, HistoryLimits(runs=2), nobody).sweep()
        assert await ids(store) == ["run-1", "run-2"]


@pytest.mark.parametrize("bounds", [HistoryLimits(), HistoryLimits(runs=1), HistoryLimits(total_bytes=1)])
async def test_a_run_that_is_read_waits(tmp_path: Path, bounds: HistoryLimits) -> None:
    """A run whose stream is open is not forgotten, whatever the reason; afterwards it is."""
    async with opened(tmp_path) as store:
        for number in range(3):
            await ended_run(store, f"run-{number}", 1 if bounds == HistoryLimits() else FOR_EVER, 10)
        readers = Readers()
        retention = Retention(store, bounds, readers.is_read)
        with readers.stream("run-0", RunLog(store, 1, 2, ended=True)):
            await retention.sweep()
            assert "run-0" in await ids(store)
        await retention.sweep()
        assert "run-0" not in await ids(store) or bounds.runs


async def test_a_full_disk_does_not_end_what_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A look that fails is logged, and the next one forgets what is over."""
    monkeypatch.setattr("notebook_runner_server.runs.retention.INTERVAL", 0.01)

    class Failing(FullStore):
        """A store whose first deletion fails."""

        @override
        async def delete(self, row: RunRecord | DamagedRecord, *, is_expired: bool = False) -> bool:
            """Fails once, then deletes."""
            full, self.full = self.full, False
            if full:
                raise OSError(28, "No space left on device")
            is_deleted = await super().delete(row, is_expired=is_expired)
            gone.set()
            return is_deleted

    gone = asyncio.Event()
    store = a_store(Failing, tmp_path)
    await store.open()
    await ended_run(store, "over", 1)
    store.full = True
    task = asyncio.ensure_future(Retention(store, HistoryLimits(), nobody).run())
    await gone.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await ids(store) == []
    await store.close()
    assert "retention_failed" in [record.message for record in caplog.records]


@pytest.mark.state_folder("a run's files are in the database")
async def test_a_folder_of_no_run_is_set_aside_when_the_store_is_opened(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be a run that the history has lost: all of it is kept, the log names it, and its size counts."""
    async with opened(tmp_path) as store:
        await ended_run(store, "kept")
        size = store.size()
    stray = tmp_path / "runs" / "stray" / "work"
    stray.mkdir(parents=True)
    (stray / "file").write_text("x" * 10**7)
    async with opened(tmp_path) as store:
        assert await ids(store) == ["kept"]
        assert store.size() >= 10**7 > size
        assert "stray" not in store.sizes()
    (aside,) = tmp_path.glob("damaged-*/runs/stray/*/file")
    assert aside.stat().st_size == 10**7
    assert "damaged_file_moved" in caplog.text


@pytest.mark.state_folder("the folder of an ended run is in the state folder")
async def test_the_folder_of_a_forgotten_run_is_removed_by_the_next_server(tmp_path: Path) -> None:
    """A server died when the row was gone and the folder was not: that was meant to go."""
    async with opened(tmp_path) as store:
        await ended_run(store, "over")
        await ended_run(store, "kept")
        row = await store.find("over")
        assert row is not None
        await store._db.write(tables.delete_run, row.position)
    async with opened(tmp_path) as store:
        assert await ids(store) == ["kept"]
        assert await store._db.read(tables.deleted_run_ids) == set()
    assert not list(tmp_path.glob("damaged-*"))


@pytest.mark.state_folder("it damages SQLite's file")
async def test_a_damaged_history_is_set_aside_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The server starts with an empty history; file and run folders are kept for whoever can mend them."""

    async def fill(*names: str) -> list[str]:
        async with opened(tmp_path) as store:
            before = await ids(store)
            for name in names:
                await ended_run(store, name)
            return before

    await fill(*(f"run-{number}" for number in range(50)))
    path = tmp_path / "notebook-runner.db"
    data = bytearray(path.read_bytes())
    data[4096 : len(data) : 512] = b"\xff" * len(data[4096 : len(data) : 512])
    path.write_bytes(data)
    assert await fill("new") == []
    (aside,) = tmp_path.glob("damaged-*")
    assert (aside / "notebook-runner.db").read_bytes() == bytes(data)
    assert len(list((aside / "runs").iterdir())) == 50
    assert await fill() == ["new"]
    assert "damaged_file_moved" in caplog.text


@pytest.mark.state_folder("the folder of an ended run is in the state folder")
async def test_a_folder_that_cannot_be_removed_is_tried_again(tmp_path: Path) -> None:
    """The next start knows that its run was forgotten, and does not take it for damage."""
    folder = tmp_path / "runs" / "one"
    async with opened(tmp_path) as store:
        await ended_run(store, "one", 1)
        shutil.rmtree(folder)
        folder.touch()
        await Retention(store, HistoryLimits(), nobody).sweep()
        assert folder.exists()
    async with opened(tmp_path):
        assert folder.exists()
        assert list(tmp_path.glob("damaged-*")) == []
    folder.unlink()
    folder.mkdir()
    async with opened(tmp_path):
        assert not folder.exists()
        assert list(tmp_path.glob("damaged-*")) == []


@pytest.mark.state_folder("the reserve is in the state folder")
async def test_a_run_is_forgotten_on_a_full_disk(tmp_path: Path) -> None:
    """The room that is kept serves what makes room as well."""
    async with opened(tmp_path) as store:
        await ended_run(store, "one", 1)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        release = store._reserve.release

        def given() -> None:
            release()
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

        store._reserve.release = given  # type: ignore[method-assign] # the file system's segment of it
        size = (tmp_path / "notebook-runner.db-wal").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            await Retention(store, HistoryLimits(), nobody).sweep()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert await ids(store) == []
