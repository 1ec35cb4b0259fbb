"""Room for the ends of runs: taken, given, and why it cannot be taken."""

import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest

from notebook_runner_server.errors import StorageFullError
from notebook_runner_server.runs.model import RunState, WriteBatch
from notebook_runner_server.runs.state_folder import RESERVE_BYTES, DiskReserve
from tests.runs.samples import a_run, changed, some_options
from tests.runs.stores import SEGMENTS, insert, opened

pytestmark = pytest.mark.state_folder("the space for the ends of runs is in the state folder")

SECONDS = 60


async def test_an_error_that_is_no_full_disk_is_told_as_it_is(tmp_path: Path) -> None:
    """Nobody is to free space where that changes nothing."""
    async with opened(tmp_path) as store:
        store._reserve.release()
        (tmp_path / "reserve").mkdir()
        run = a_run(run_id="one")
        with pytest.raises(StorageFullError, match=r"cannot be written: .*Is a directory"):
            await store.insert(run, some_options(), "", changed(1, run), SEGMENTS)
        assert "Is a directory" in store.problem
        (tmp_path / "reserve").rmdir()
        await store.retry_writing()
        assert store.problem == ""


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL])
def test_room_is_written_where_it_cannot_be_taken_in_advance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Some file systems have no fallocate."""

    def unsupported(*_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    reserve = DiskReserve(tmp_path / "reserve")
    assert reserve.allocate()
    assert (tmp_path / "reserve").stat().st_blocks * 512 >= RESERVE_BYTES


@pytest.mark.parametrize(("code", "said"), [(errno.ENOSPC, "Free some space"), (errno.EDQUOT, "quota")])
def test_a_full_disk_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str
) -> None:
    """A quota may be full on a disk that is not."""

    def full(*_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", full)
    reserve = DiskReserve(tmp_path / "reserve")
    assert not reserve.allocate()
    assert said in reserve.problem
    assert not (tmp_path / "reserve").exists()


async def test_nobody_takes_the_room_back_while_an_end_is_written(tmp_path: Path) -> None:
    """Other runs look for room as well, and may come between the two tries."""
    released, looked = threading.Event(), threading.Event()
    async with opened(tmp_path) as store:
        position = await insert(store, "one")
        release, write = store._reserve.release, store._db.write
        calls = 0

        def give() -> None:
            release()
            released.set()
            assert looked.wait(SECONDS)

        async def first_is_refused(*args: object) -> object:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise StorageFullError("full")
            return await write(*args)  # type: ignore[arg-type] # passed on

        store._reserve.release = give  # type: ignore[method-assign] # the file system's segment of it
        store._db.write = first_is_refused  # type: ignore[assignment,method-assign] # the same
        end = a_run(RunState.KILLED, run_id="one")
        ending = asyncio.ensure_future(
            store.append(position, end, [changed(2, end)], WriteBatch(), 1, is_end=True)
        )
        assert await asyncio.to_thread(released.wait, SECONDS)
        await store.retry_writing()
        was_taken = (tmp_path / "reserve").exists()
        looked.set()
        await ending
        assert not was_taken
        await store.retry_writing()
        assert (tmp_path / "reserve").exists()
