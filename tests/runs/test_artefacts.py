"""Room for artefacts: bounded for each run and in all, least recently read first, and never the runs'."""

import asyncio
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from notebook_runner_server.errors import RunNotFoundError
from notebook_runner_server.execution.interface import KernelReady
from notebook_runner_server.export.service import ExportService
from notebook_runner_server.runs.artefacts import RUN_SHARE, Artefact, Artefacts
from notebook_runner_server.runs.database import Connection
from notebook_runner_server.runs.outputs import NOTEBOOK, Outputs
from notebook_runner_server.runs.store import Store
from notebook_runner_server.runs.tables import RunRecord
from tests.runs.fakes import DONE, FakeBackend, cell, ended, running, spec
from tests.runs.stores import a_store

SIZE = 1000


def artefacts(folder: Path, number: int) -> Artefacts:
    """Room for so many artefacts."""
    made = Artefacts(folder / "artefacts", number * SIZE)
    made.clear()
    return made


async def made(room: Artefacts, run_id: str, name: str, size: int = SIZE) -> Artefact:
    """An artefact of a run."""
    return await room.add(room.path(run_id, name), "text/plain", lambda path: path.write_bytes(b"x" * size))


def found(folder: Path) -> Counter[str]:
    """How many files each run has."""
    return Counter(path.parent.name for path in (folder / "artefacts").rglob("*") if path.is_file())


async def test_what_was_read_longest_ago_goes_first(tmp_path: Path) -> None:
    """A read counts as use; what is gone is not found, and its file is not there."""
    room = artefacts(tmp_path, 3)
    paths = [(await made(room, f"run-{number}", "a")).path for number in range(3)]
    assert room.find(paths[0]) is not None
    await made(room, "run-3", "a")
    assert [path.exists() for path in paths] == [True, False, True]
    assert [room.find(path) is not None for path in paths] == [True, False, True]


async def test_one_run_leaves_room_for_the_others(tmp_path: Path) -> None:
    """However many artefacts of it are asked for, it has its share and no more."""
    room = artefacts(tmp_path, 2 * RUN_SHARE)
    kept = [(await made(room, f"run-{number}", "a")).path for number in range(6)]
    for number in range(50):
        await made(room, "busy", str(number))
    assert found(tmp_path)["busy"] == 2
    assert all(path.exists() for path in kept)


async def test_the_newest_stays_however_large_it_is(tmp_path: Path) -> None:
    """What is asked for is answered."""
    room = artefacts(tmp_path, 2)
    large = await made(room, "large", "a", 10 * SIZE)
    assert large.path.exists()
    await made(room, "other", "a")
    assert not large.path.exists()


async def test_what_is_in_use_stays(tmp_path: Path) -> None:
    """Its reader finishes; then it goes like every other."""
    room = artefacts(tmp_path, 1)
    path = room.path("run", "a")
    with room.held(path):
        await made(room, "run", "a")
        await made(room, "other", "a")
        assert path.exists()
    await made(room, "third", "a")
    assert not path.exists()


async def test_a_full_disk_takes_the_others_first(tmp_path: Path) -> None:
    """What can be made again makes room for what is asked for; then the error is the disk's."""
    room = artefacts(tmp_path, 9)
    other = await made(room, "other", "a")

    def fill(path: Path) -> object:
        if other.path.exists():
            raise OSError(28, "No space left on device")
        return path.write_bytes(b"x")

    assert (await room.add(room.path("run", "a"), "text/plain", fill)).path.exists()

    def fail(path: Path) -> object:
        raise OSError(28, f"No space left on device: {path}")

    with pytest.raises(OSError, match="No space left"):
        await room.add(room.path("run", "b"), "text/plain", fail)
    assert found(tmp_path) == Counter()


async def test_another_error_takes_none_of_the_others(tmp_path: Path) -> None:
    """Only a disk or a quota that is full is a reason to remove what was made."""
    room = artefacts(tmp_path, 9)
    other = await made(room, "other", "a")

    def fail(path: Path) -> object:
        raise PermissionError(13, f"Permission denied: {path}")

    with pytest.raises(PermissionError):
        await room.add(room.path("run", "a"), "text/plain", fail)
    assert other.path.exists()


async def test_what_is_forgotten_while_others_are_removed_is_gone(tmp_path: Path) -> None:
    """Retention may come between the choice of what has to go and its removal."""
    room = artefacts(tmp_path, 2)
    first, second = [await made(room, f"run-{number}", "a") for number in range(2)]
    adding = asyncio.ensure_future(made(room, "large", "a", 2 * SIZE))
    while room.find(first.path) is not None:
        room.find(second.path)
        await asyncio.sleep(0)
    await room.delete("run-1")
    await adding
    assert found(tmp_path) == Counter({"large": 1})


async def test_what_is_taken_while_others_are_removed_stays(tmp_path: Path) -> None:
    """A reader may come between the choice of what has to go and its removal."""
    room = artefacts(tmp_path, 2)
    first, second = [await made(room, f"run-{number}", "a") for number in range(2)]
    adding = asyncio.ensure_future(made(room, "large", "a", 2 * SIZE))
    while room.find(first.path) is not None:
        room.find(second.path)
        await asyncio.sleep(0)
    with room.held(second.path):
        await adding
        assert second.path.exists()
        assert room.find(second.path) is not None


async def test_what_somebody_has_removed_is_made_again(tmp_path: Path) -> None:
    """An operator may remove files, or all, below the folder of artefacts while the server runs."""
    backend, store = FakeBackend(), a_store(Store, tmp_path, 10**6)
    async with running(store, backend) as runner:
        run_id = (await runner.start(spec())).run_id
        (await backend.taken(run_id)).tell(KernelReady(), *cell(0), *cell(1), DONE)
        run = await ended(runner, run_id)
        outputs = Outputs(store, ExportService([], 1.0), 100, 10**6, 10**6)
        page = await outputs.page(run, NOTEBOOK, 0, 100, 0)
        for gone in (store.artefacts.path(run_id, ""), tmp_path / "artefacts"):
            shutil.rmtree(gone)
            assert await outputs.page(run, NOTEBOOK, 0, 100, 0) == page


async def test_pages_of_an_ended_run_read_the_history_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Further pages read only the artefact, and after the deletion of the run there are none."""
    backend, store = FakeBackend(), a_store(Store, tmp_path, 10**6)
    async with running(store, backend) as runner:
        run_id = (await runner.start(spec())).run_id
        (await backend.taken(run_id)).tell(KernelReady(), *cell(0), *cell(1), DONE)
        run = await ended(runner, run_id)
        outputs = Outputs(store, ExportService([], 1.0), 100, 10**6, 10**6)
        first = await outputs.page(await runner.find(run_id), NOTEBOOK, 0, 100, 0)
        record = await store.find(run_id)
        assert record is not None
        pages = [await outputs.page(run, NOTEBOOK, 100, 100, first.as_of)]
        with monkeypatch.context() as patched:
            patched.delattr(store, "_db")
            assert await runner.find(run_id) == run
            pages.append(await outputs.page(run, NOTEBOOK, 100, 100, first.as_of))
        assert pages[0] == pages[1]
        await store.delete(record)
        with pytest.raises(RunNotFoundError):
            await runner.find(run_id)
        with pytest.raises(RunNotFoundError):
            await outputs.page(run, NOTEBOOK, 100, 100, first.as_of)


async def test_a_read_that_a_deletion_overtakes_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that the read returns late is not found by the next one."""
    backend, store = FakeBackend(), a_store(Store, tmp_path, 10**6)
    async with running(store, backend) as runner:
        run_id = (await runner.start(spec())).run_id
        (await backend.taken(run_id)).tell(KernelReady(), *cell(0), *cell(1), DONE)
        await ended(runner, run_id)
        record, deleted = await store.find(run_id), asyncio.Event()

        async def late(*_: object) -> RunRecord | None:
            await deleted.wait()
            return record

        assert record is not None
        store._ended.clear()
        with monkeypatch.context() as patched:
            patched.setattr(store._db, "read", late)
            reading = asyncio.ensure_future(store.find(run_id))
            await asyncio.sleep(0)
        await store.delete(record)
        deleted.set()
        assert await reading == record
        assert await store.find(run_id) is None


async def test_what_is_read_during_a_deletion_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run can be found until its deletion is durable, and never after."""
    backend, store = FakeBackend(), a_store(Store, tmp_path, 10**6)
    async with running(store, backend) as runner:
        run_id = (await runner.start(spec())).run_id
        (await backend.taken(run_id)).tell(KernelReady(), *cell(0), *cell(1), DONE)
        await ended(runner, run_id)
        record, write = await store.find(run_id), store._write_with_reserve

        async def delayed(function: Callable[[Connection], bool]) -> bool:
            assert await store.find(run_id) == record
            return await write(function)

        assert record is not None
        with monkeypatch.context() as patched:
            patched.setattr(store, "_write_with_reserve", delayed)
            await store.delete(record)
        assert await store.find(run_id) is None


async def test_an_earlier_server_s_are_removed(tmp_path: Path) -> None:
    """A start empties the folder; those of a run that is forgotten go with it."""
    room = artefacts(tmp_path, 9)
    await made(room, "run", "a")
    await made(room, "other", "a")
    await room.delete("run")
    assert found(tmp_path) == Counter({"other": 1})
    artefacts(tmp_path, 9)
    assert found(tmp_path) == Counter()


async def test_a_reader_fills_no_disk(tmp_path: Path) -> None:
    """Each event is asked for, with one byte a call: bounded room, none of the run's own, the same bytes."""
    backend, store = FakeBackend(), a_store(Store, tmp_path, 4000)
    async with running(store, backend) as runner:
        run_id = (await runner.start(spec())).run_id
        (await backend.taken(run_id)).tell(KernelReady(), *cell(0), *cell(1), DONE)
        run = await ended(runner, run_id)
        own = store.sizes()
        outputs = Outputs(store, ExportService([], 1.0), 100, 10**6, 10**6)
        row = await store.find(run_id)
        assert row is not None
        sequences = range(1, row.last_sequence + 1)

        async def whole(as_of: int) -> bytes:
            content, total = b"", 1
            while len(content) < total:
                page = await outputs.page(run, NOTEBOOK, len(content), 100, as_of)
                content, total = content + page.content, page.total_bytes
            return content

        before = [await whole(one) for one in sequences]
        assert await asyncio.gather(*map(whole, sequences)) == before
        for one in sequences:
            await outputs.page(run, NOTEBOOK, 0, 1, one)
        kept = [path for path in (tmp_path / "artefacts").rglob("*") if path.is_file()]
        # One is for all events between two that change it.
        assert len(kept) <= len(set(before))
        assert sum(path.stat().st_size for path in kept) <= 4000
        assert store.sizes() == own
