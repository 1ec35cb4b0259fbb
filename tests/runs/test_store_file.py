"""The store's folder: one server at a time, nothing lost by an abrupt end, no secret left behind."""

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from notebook_runner_server.runs.folder import RunFolder
from notebook_runner_server.runs.model import RunState
from notebook_runner_server.runs.store import StateFolderInUseError, Store
from tests.runs.samples import a_run, changed, some_options
from tests.runs.stores import a_store, append, content, finish, insert, opened

pytestmark = pytest.mark.state_folder("it is about the files of the state folder")

SECRET = "correct-horse-battery-staple"  # noqa: S105 - to be looked for
# Writes runs until it is killed, and says which are durable.
WRITER = """
import asyncio, sys
from pathlib import Path
from tests.runs.samples import a_run, changed, printed
from tests.runs.stores import append, insert, opened
from notebook_runner_server.runs.folder import RunFolder
from notebook_runner_server.runs.model import RunState

async def main():
    async with opened(Path(sys.argv[1])) as store:
        for number in range(10**6):
            position = await insert(store, f"run-{number}")
            run = a_run(RunState.RUNNING, run_id=f"run-{number}")
            await append(store, position, run, changed(2, run), printed(3))
            print(number, flush=True)

asyncio.run(main())
"""


def raw(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below the state folder."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def holding(folder: Path) -> list[str]:
    """The files that have the secret in them."""
    return sorted(name for name, data in raw(folder).items() if SECRET.encode() in data)


async def run_with_a_secret(folder: Path, store: Store, length: int) -> None:
    """A run that was given a secret in its environment, begins and ends."""
    position = await insert(store, "one", some_options(environment={"TOKEN": SECRET * length}))
    started = a_run(RunState.STARTING, run_id="one")
    await append(store, position, started, changed(2, started))
    assert holding(folder)
    await finish(store, position, "one", sequence=3)


@pytest.mark.parametrize("length", [1, 400], ids=["short", "longer than a page"])
async def test_environment_values_are_gone_when_the_run_has_ended(tmp_path: Path, length: int) -> None:
    """No file of a database that is in use has the value of a variable of a run that has ended."""
    async with opened(tmp_path) as store:
        await run_with_a_secret(tmp_path, store, length)
        row = await store.find("one")
        assert row is not None
        assert row.options.environment == {}
        assert holding(tmp_path) == []


async def test_environment_values_are_never_in_the_database(tmp_path: Path) -> None:
    """Neither its tables nor its log nor its free pages have them: they are in a file that goes whole."""
    async with opened(tmp_path) as store:
        position = await insert(store, "one", some_options(environment={"TOKEN": SECRET * 400}))
        started = a_run(RunState.STARTING, run_id="one")
        await append(store, position, started, changed(2, started))
        assert holding(tmp_path) == ["environment"]
        with sqlite3.connect(tmp_path / "notebook-runner.db") as db:
            assert db.execute("PRAGMA wal_checkpoint(FULL)").fetchone()[0] == 0
        db.close()
        assert holding(tmp_path) == ["environment"]
        path = store.folder("one").path / "environment"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_variables_that_go_while_they_are_looked_up_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends while somebody looks it up has no variables any more, and that is no fault."""
    folder = RunFolder(tmp_path)
    folder.create()
    # The file was there a moment ago.
    monkeypatch.setattr(Path, "exists", lambda _: True)
    assert folder.secrets() == ({}, "")


async def test_environment_values_of_a_deleted_run_are_gone(tmp_path: Path) -> None:
    """Also the row of a run that never ended leaves nothing when the store is closed."""
    async with opened(tmp_path) as store:
        await insert(store, "one", some_options(environment={"TOKEN": SECRET}))
        row = await store.find("one")
        assert row is not None
        await store.delete(row)
    assert holding(tmp_path) == []


async def test_environment_values_are_there_while_the_run_waits(tmp_path: Path) -> None:
    """A queued run keeps its variables over a restart: it is still to be executed."""
    async with opened(tmp_path) as store:
        await insert(store, "one", some_options(environment={"TOKEN": SECRET}))
    async with opened(tmp_path) as store:
        row = await store.find("one")
        assert row is not None
        assert store.options(row).environment == {"TOKEN": SECRET}


async def test_the_key_of_requests_stays(tmp_path: Path) -> None:
    """It is the same after a restart, the user's alone, and set aside when somebody has cut it short."""

    async def key() -> bytes:
        async with opened(tmp_path) as store:
            return store.request_key

    first = await key()
    assert await key() == first
    path = tmp_path / "request-key"
    assert (len(first), stat.S_IMODE(path.stat().st_mode)) == (32, 0o600)
    path.write_bytes(first[:5])
    assert len(await key()) == 32
    assert await key() == path.read_bytes() != first
    (aside,) = tmp_path.glob("damaged-*")
    assert (aside / "request-key").read_bytes() == first[:5]


async def test_a_second_store_is_refused_until_the_first_is_closed(tmp_path: Path) -> None:
    """One folder has one server, also within one process; afterwards it is free again."""
    second = a_store(Store, tmp_path)
    async with opened(tmp_path) as store:
        await insert(store, "one")
        with pytest.raises(StateFolderInUseError, match="another server uses"):
            await second.open()
        await second.close()
        assert await store.find("one") is not None
    async with opened(tmp_path) as store:
        assert await store.find("one") is not None


async def test_only_the_owner_can_look_into_the_folder(tmp_path: Path) -> None:
    """State folder and run folders are closed to other users: they hold code, results and variables."""
    async with opened(tmp_path / "state" / "below") as store:
        await insert(store, "one")
        folder = store.folder("one")
        for path in (tmp_path / "state" / "below", folder.path, folder.work):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700


async def test_nothing_durable_is_lost_by_an_abrupt_end(tmp_path: Path) -> None:
    """A process killed while it writes leaves everything that it was told is durable, and no lock."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as writer:
        assert writer.stdout is not None
        lines = [int(writer.stdout.readline()) for _ in range(20)]
        writer.send_signal(signal.SIGKILL)
        lines += [int(line) for line in writer.stdout.read().splitlines()]
        writer.wait()

    assert lines == list(range(len(lines)))
    async with opened(tmp_path) as store:
        for number in lines:
            row = await store.find(f"run-{number}")
            assert row is not None
            assert (row.run.state, row.last_sequence) == (RunState.RUNNING, 3)
            assert [event.sequence for event in await store.events(row.position, 0)] == [1, 2, 3]
            segments = await store.segments(row.position, 9)
            assert content(store, row.run.run_id, segments).endswith(b"first,secondtail")
        rows = await store.list(2**63 - 1, 10**6, [], {})
        # The one that was being written may be there, and no other.
        assert len(rows) - len(lines) in (0, 1)
        assert await insert(store, "new") > rows[0].position


async def test_many_writers_take_turns(tmp_path: Path) -> None:
    """Inserts and reads at the same time all succeed, and every run gets a position of its own."""
    async with opened(tmp_path) as store:
        positions = await asyncio.gather(*(insert(store, f"run-{number}") for number in range(50)))
        found = await asyncio.gather(*(store.find(f"run-{number}") for number in range(50)))
        assert [row.position for row in found if row] == positions
        assert sorted(set(positions)) == sorted(positions)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lock", "regular file"),
        ("reserve", "regular file"),
        ("request-key", "regular file"),
        ("scratch", "symbolic link"),
        ("exports", "symbolic link"),
    ],
)
async def test_what_is_in_the_place_of_another_is_set_aside(
    tmp_path: Path, name: str, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its owner makes it again; the log says what was expected."""
    (tmp_path / name).mkdir()
    async with opened(tmp_path):
        pass
    (aside,) = tmp_path.glob("damaged-*")
    assert (aside / name).is_dir()
    assert [vars(record)["why"] for record in caplog.records if record.levelname == "ERROR"] == [
        f"Expected a {expected}."
    ]
