"""A damaged history: the new one has what is whole of it, and nothing is moved before it is there."""

import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from notebook_runner_server.runs.store import Store
from tests.runs.stores import a_store, finish, insert, opened

pytestmark = [pytest.mark.integration, pytest.mark.state_folder("it damages SQLite's file")]

DATABASE = "notebook-runner.db"
LIMIT = 64 * 1024


async def histories(folder: Path, number: int) -> None:
    """A state folder with so many runs, whose history the next start finds to be damaged."""
    async with opened(folder) as store:
        for one in range(number):
            position = await insert(store, f"run-{one}", labels={"x" * 100: "y" * 100})
            await finish(store, position, f"run-{one}")
    (folder / f"{DATABASE}-damaged").write_text("found by a test")


async def known(folder: Path) -> list[str]:
    """The runs that a start has."""
    async with opened(folder) as store:
        return sorted([row.run_id for row in await store.list(10**6, 1000, [], {})])


@contextmanager
def small_files() -> Iterator[None]:
    """No file can be written beyond a limit, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_text_that_no_database_takes_is_damage_of_its_run(tmp_path: Path) -> None:
    """Version 1 wrote no checksums: bytes that are no UTF-8 may be read, and cannot be written again."""
    await histories(tmp_path, 3)
    with closing(sqlite3.connect(tmp_path / DATABASE)) as db:
        db.execute(
            "UPDATE runs SET start_checksum = NULL, checksum = NULL,"
            " parameters = CAST(X'7b2261223a2022ff227d' AS TEXT) WHERE run_id = 'run-1'"
        )
        db.commit()
    assert await known(tmp_path) == ["run-0", "run-2"]
    (aside,) = tmp_path.glob("damaged-*")
    assert (aside / "runs" / "run-1").is_dir()
    assert await known(tmp_path) == ["run-0", "run-2"]


async def test_a_schema_that_is_no_text_is_damage(tmp_path: Path) -> None:
    """SQLite quotes it in its message, which Python cannot decode: the start makes a new history."""
    await histories(tmp_path, 1)
    (tmp_path / f"{DATABASE}-damaged").unlink()
    file = tmp_path / DATABASE
    content = file.read_bytes()
    assert content.count(b"CREATE TABLE labels") == 1
    file.write_bytes(content.replace(b"CREATE TABLE labels", b"CREATE TABL\x8a labels"))
    assert await known(tmp_path) == []
    assert len(list(tmp_path.glob("damaged-*"))) == 1


async def test_a_full_disk_refuses_the_start_and_nothing_is_moved(tmp_path: Path) -> None:
    """Each run is there when there is room again."""
    await histories(tmp_path, 300)
    store = a_store(Store, tmp_path)
    with small_files(), pytest.raises(OSError, match=r"File too large|cannot be rebuilt"):
        await store.open()
    await store.close()
    assert list(tmp_path.glob("damaged-*")) == []
    assert len(await known(tmp_path)) == 300
    (aside,) = tmp_path.glob("damaged-*")
    assert (aside / DATABASE).is_file()
    assert not (tmp_path / "rebuilding").exists()


@pytest.mark.parametrize("place", [60, 68], ids=["version", "application_id"])
@pytest.mark.parametrize("bit", range(32))
async def test_a_damaged_version_is_no_newer_history(tmp_path: Path, place: int, bit: int) -> None:
    """Whichever of its bits was flipped, the start rebuilds the history, and has all runs."""
    await histories(tmp_path, 2)
    (tmp_path / f"{DATABASE}-damaged").unlink()
    with (tmp_path / DATABASE).open("r+b") as file:
        file.seek(place)
        value = int.from_bytes(file.read(4)) ^ 1 << bit
        file.seek(place)
        file.write(value.to_bytes(4))
    assert await known(tmp_path) == ["run-0", "run-1"]


@pytest.mark.parametrize("version", [0, 1, 2, 2**27 + 3])
async def test_a_damaged_version_of_an_earlier_history(tmp_path: Path, version: int) -> None:
    """It has no application id; the tables show what it is."""
    await histories(tmp_path, 2)
    (tmp_path / f"{DATABASE}-damaged").unlink()
    with closing(sqlite3.connect(tmp_path / DATABASE)) as db:
        db.execute("PRAGMA application_id = 0")
        db.execute(f"PRAGMA user_version = {version}")
    assert await known(tmp_path) == ["run-0", "run-1"]
