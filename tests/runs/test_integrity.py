"""Damage that is found only when the server serves already."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from notebook_runner_server.runs import sqlite
from notebook_runner_server.runs.sqlite import IntegrityCheck, SqliteDatabase
from tests.runs.stores import insert, opened

pytestmark = [pytest.mark.integration, pytest.mark.state_folder("it damages SQLite's file")]

DATABASE = "notebook-runner.db"
PAGE = 4096


@pytest.fixture
async def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder with a history that a start has no time to look at."""
    # Not 0: the clock may stand still between two looks at it.
    monkeypatch.setattr(sqlite, "CHECK_SECONDS", -1.0)
    monkeypatch.setattr(sqlite, "CHECK_BYTES", 0)
    monkeypatch.setattr(sqlite, "_PROGRESS_STEPS", 1)
    async with opened(tmp_path) as store:
        for number in range(300):
            await insert(store, f"run-{number}", labels={"x" * 100: "y" * 100})
    return tmp_path


def damage(folder: Path) -> None:
    """Writes over a page in the middle, which nothing reads at a start."""
    path = folder / DATABASE
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // PAGE // 2 * PAGE)
        file.write(os.urandom(PAGE))


@contextmanager
def looked_at(folder: Path) -> Iterator[IntegrityCheck]:
    """A file that was opened, and not looked at to its end."""
    one = IntegrityCheck(folder / DATABASE)
    with closing(sqlite3.connect(folder / DATABASE)) as db:
        assert not one.check(db)
        yield one


async def starts(folder: Path) -> list[Path]:
    """Opens and closes the store; answers what was set aside."""
    async with opened(folder):
        pass
    return list(folder.glob("damaged-*"))


async def test_damage_that_is_found_late_is_set_aside_at_the_next_start(history: Path) -> None:
    """It is remembered, the next start sets the history aside, and the one after that finds nothing."""
    damage(history)
    with looked_at(history) as one:
        one.check_rest()
    (aside,) = await starts(history)
    assert (aside / DATABASE).exists()
    assert await starts(history) == [aside]


async def test_a_sound_history_stays(history: Path) -> None:
    """A look to the end that finds nothing leaves nothing behind."""
    with looked_at(history) as one:
        one.check_rest()
    assert await starts(history) == []


@pytest.mark.parametrize(("code", "aside"), [(sqlite3.SQLITE_CORRUPT, 1), (sqlite3.SQLITE_FULL, 0)])
async def test_what_cannot_be_read_is_damage_and_a_full_disk_is_not(
    history: Path, code: int, aside: int
) -> None:
    """Only an error that says that the file is damaged is remembered."""
    error = sqlite3.DatabaseError("why")
    error.sqlite_errorcode = code
    IntegrityCheck(history / DATABASE).record(error)
    assert len(await starts(history)) == aside


async def test_a_single_failed_read_is_no_damage(tmp_path: Path) -> None:
    """SQLite reports it as damage, and the second attempt reads what is there."""
    error = sqlite3.DatabaseError("why")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    errors = [error]

    def read(_: object) -> str:
        if errors:
            raise errors.pop()
        return "content"

    database = SqliteDatabase(tmp_path / DATABASE)
    await database.open(is_first=True)
    try:
        assert await database.read(read) == "content"
    finally:
        await database.close()
    assert await starts(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "is_damage"),
    [(sqlite3.SQLITE_PROTOCOL, False), (sqlite3.SQLITE_NOLFS, False), (sqlite3.SQLITE_CORRUPT, True)],
)
async def test_a_file_that_cannot_be_had_now_is_not_set_aside(
    history: Path, code: int, *, is_damage: bool
) -> None:
    """Locks that other processes hold, and files that this system cannot read, say nothing of the file."""
    error = sqlite3.OperationalError("why")
    error.sqlite_errorcode = code
    assert IntegrityCheck(history / DATABASE).is_damage(error) == is_damage
