"""What is durable in the database before it is in the files of segments: a power failure loses none of it."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from notebook_runner_server.errors import StorageFullError
from notebook_runner_server.execution.segments import HEAD
from notebook_runner_server.runs.folder import RunFolder
from notebook_runner_server.runs.model import RunState, Segment, WriteBatch
from notebook_runner_server.runs.store import SMALL_BYTES, Store
from tests.runs.samples import a_run, changed, some_options
from tests.runs.stores import SEGMENTS, content, insert, opened

DATABASE = "notebook-runner.db"
SIZE = sum(map(len, SEGMENTS.values()))
LARGE = b"x" * (SMALL_BYTES + 1)
RUN = a_run(RunState.RUNNING, run_id="one")


async def write(store: Store, position: int, sequence: int, start: int, data: bytes) -> int:
    """Replaces the first segment; returns where the next one goes."""
    written = WriteBatch(start, [data], [Segment(0, sequence, start, len(data))])
    await store.append(position, RUN, [changed(sequence, RUN)], written, None)
    return start + len(data)


def after_a_power_failure(state: Path, copy: Path, lose: Callable[[RunFolder], None]) -> Path:
    """A copy of a state folder whose store is open, in which the file system has lost some of a run."""
    shutil.copytree(state, copy)
    lose(RunFolder(copy / "runs" / "one"))
    return copy


def unsynced(state: Path) -> list[tuple[int, int]]:
    """Where the database has data of files, and how much."""
    with closing(sqlite3.connect(state / DATABASE)) as db:
        return db.execute("SELECT start, LENGTH(data) FROM unsynced ORDER BY start").fetchall()


def _folder(folder: RunFolder) -> None:
    shutil.rmtree(folder.path)


def _file(folder: RunFolder) -> None:
    (folder.path / "segments").unlink()


def _bytes(folder: RunFolder) -> None:
    (folder.path / "segments").write_bytes(b"")


def _zeros(folder: RunFolder) -> None:
    size = (folder.path / "segments").stat().st_size
    (folder.path / "segments").write_bytes(bytes(size))


@pytest.mark.parametrize("lose", [_folder, _file, _bytes, _zeros])
async def test_a_power_failure_loses_no_small_segment(
    tmp_path: Path, lose: Callable[[RunFolder], None]
) -> None:
    """The notebook of an acknowledged Start and the ended cells are there, whatever is left of the file."""
    async with opened(tmp_path / "a") as store:
        position = await insert(store, "one")
        end = await write(store, position, 2, SIZE, b"FIRST")
        await write(store, position, 3, end, b"again")
        copy = after_a_power_failure(tmp_path / "a", tmp_path / "b", lose)
    # Also if the server fails once more before it has synced the file.
    for again in (copy, tmp_path / "c"):
        async with opened(again) as store:
            for as_of, first in ((0, b"first"), (2, b"FIRST"), (3, b"again")):
                segments = await store.segments(position, as_of)
                assert content(store, "one", segments) == HEAD + first + b",secondtail"
            if again is copy:
                after_a_power_failure(copy, tmp_path / "c", lose)


async def test_what_is_synced_leaves_the_database(tmp_path: Path) -> None:
    """A sweep syncs what the one before it has seen, and a stop everything; a damaged file stays one then."""
    async with opened(tmp_path) as store:
        position = await insert(store, "one")
        await store.sync_files()
        end = await write(store, position, 2, SIZE, b"FIRST")
        assert unsynced(tmp_path) == [(0, SIZE), (SIZE, 5)]
        await store.sync_files()
        assert unsynced(tmp_path) == [(SIZE, 5)]
        await write(store, position, 3, end, b"again")
    assert unsynced(tmp_path) == []
    _zeros(RunFolder(tmp_path / "runs" / "one"))
    async with opened(tmp_path) as store:
        assert bytes(4) in content(store, "one", await store.segments(position, 0))


async def test_only_what_is_synced_leaves_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File and folder are synced first; if that fails, the data stays: a second try proves nothing."""
    steps: list[str] = []
    fails = ["two"]

    def record(name: str) -> Callable[[RunFolder], None]:
        def sync(folder: RunFolder) -> None:
            if folder.path.name in fails:
                raise OSError("input/output error")
            steps.append(f"{name} {folder.path.name}, {len(unsynced(tmp_path))} in the database")

        return sync

    monkeypatch.setattr(RunFolder, "sync_segments", record("file"))
    monkeypatch.setattr(RunFolder, "sync", record("folder"))
    async with opened(tmp_path) as store:
        await insert(store, "one")
        await insert(store, "two")
        await store.sync_files(all_of_them=True)
        assert steps == ["file one, 2 in the database", "folder one, 2 in the database"]
        fails.clear()
        await store.sync_files(all_of_them=True)
        assert unsynced(tmp_path) == [(0, SIZE)]
        with pytest.raises(StorageFullError, match="earlier attempt"):
            await store.append(2, a_run(RunState.RUNNING, run_id="two"), [], WriteBatch(SIZE, [LARGE]), None)
    assert len(steps) == 2
    async with opened(tmp_path) as store:
        await store.sync_files(all_of_them=True)
    assert steps[2:] == ["file two, 1 in the database", "folder two, 1 in the database"]
    assert unsynced(tmp_path) == []


async def test_large_segments_and_runs_with_secrets_are_synced_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are never in the database: the file is durable before the transaction, with its folder."""
    steps: list[str] = []
    monkeypatch.setattr(RunFolder, "sync_segments", lambda _: steps.append("file"))
    monkeypatch.setattr(RunFolder, "sync", lambda _: steps.append("folder"))
    async with opened(tmp_path) as store:
        await insert(store, "secret", some_options(environment={"TOKEN": "a"}))
        assert (steps, unsynced(tmp_path)) == (["file", "folder"], [])
        position = await insert(store, "one")
        assert (steps[2:], unsynced(tmp_path)) == ([], [(0, SIZE)])
        end = await write(store, position, 2, SIZE, LARGE)
        assert (steps[2:], unsynced(tmp_path)) == (["file", "folder"], [])
        await write(store, position, 3, end, LARGE)
        assert (steps[4:], unsynced(tmp_path)) == (["file"], [])


@pytest.mark.parametrize("size", [6, len(LARGE)])
async def test_what_is_written_again_replaces_what_was_there(tmp_path: Path, size: int) -> None:
    """When a run goes back in its file, because a batch is recorded again, nothing of before comes back."""
    async with opened(tmp_path / "a") as store:
        position = await insert(store, "one")
        end = await write(store, position, 2, SIZE, b"abcdef")
        await write(store, position, 3, end, b"ghi")
        await write(store, position, 4, SIZE + 2, b"x" * size)
        copy = after_a_power_failure(tmp_path / "a", tmp_path / "b", lambda _: None)
    async with opened(copy) as store:
        written = store.folder("one").read(Segment(0, 4, SIZE + 2, size))
        assert written == b"x" * size


async def test_a_damaged_copy_is_not_written(tmp_path: Path) -> None:
    """Data in the database that is not as it was written changes no file."""
    async with opened(tmp_path / "a") as store:
        position = await insert(store, "one")
        copy = after_a_power_failure(tmp_path / "a", tmp_path / "b", lambda _: None)
    with closing(sqlite3.connect(copy / DATABASE)) as db:
        db.execute("UPDATE unsynced SET data = 'x' || SUBSTR(data, 2)")
        db.commit()
    async with opened(copy) as store:
        segments = await store.segments(position, 0)
        assert content(store, "one", segments) == HEAD + b"first,secondtail"


async def test_a_deleted_run_leaves_the_database_whole(tmp_path: Path) -> None:
    """Its data goes with it."""
    async with opened(tmp_path) as store:
        await insert(store, "one")
        row = await store.find("one")
        assert row is not None
        await store.delete(row)
        assert unsynced(tmp_path) == []


async def test_a_history_of_version_3_is_upgraded(tmp_path: Path) -> None:
    """Version 3 had all data in the files."""
    async with opened(tmp_path) as store:
        position = await insert(store, "one")
    with closing(sqlite3.connect(tmp_path / DATABASE)) as db:
        db.executescript("DROP TABLE unsynced; PRAGMA user_version = 3;")
    async with opened(tmp_path) as store:
        segments = await store.segments(position, 0)
        assert content(store, "one", segments) == HEAD + b"first,secondtail"
        await write(store, position, 2, SIZE, b"FIRST")
        assert unsynced(tmp_path) == [(SIZE, 5)]


async def test_a_damaged_database_is_rebuilt_with_what_is_not_in_the_files(tmp_path: Path) -> None:
    """An intact run keeps its data, also if the file has lost it."""
    async with opened(tmp_path / "a") as store:
        position = await insert(store, "one")
        copy = after_a_power_failure(tmp_path / "a", tmp_path / "b", _zeros)
    (copy / f"{DATABASE}-damaged").write_text("found by the server before")
    async with opened(copy) as store:
        segments = await store.segments(position, 0)
        assert content(store, "one", segments) == HEAD + b"first,secondtail"
