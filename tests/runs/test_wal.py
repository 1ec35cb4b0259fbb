"""A damaged write-ahead log: no transaction behind the damage is lost, and none is taken for a torn one.

`WAL_ROUNDS=1000 pytest tests/runs/test_wal.py` plays longer; WAL_SEED plays the same again.
"""

import os
import random
import secrets
import shutil
import sqlite3
import struct
from contextlib import closing
from pathlib import Path

import pytest

from notebook_runner_server.errors import DamagedRunError
from notebook_runner_server.runs import wal
from notebook_runner_server.runs.model import RunState
from tests.runs.stores import finish, insert, opened

pytestmark = [pytest.mark.integration, pytest.mark.state_folder("it damages SQLite's file")]

DATABASE = "notebook-runner.db"
RUNS = [f"run-{number}" for number in range(12)]
HEAD, FRAME, PAGE = 32, 24, 4096
ROUNDS = int(os.environ.get("WAL_ROUNDS", "40"))
SEED = int(os.environ.get("WAL_SEED", "0")) or secrets.randbits(32)


@pytest.fixture(scope="module")
async def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of a server that was killed after these runs had ended; the WAL has them all."""
    folder, copy = tmp_path_factory.mktemp("state") / "state", tmp_path_factory.mktemp("killed") / "state"
    async with opened(folder) as store:
        for run_id in RUNS:
            await finish(store, await insert(store, run_id, labels={"name": run_id * 40}), run_id)
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*-shm"))
    return copy


@pytest.fixture
def state(killed: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to be damaged."""
    return Path(shutil.copytree(killed, tmp_path / "state"))


def frames(state: Path) -> int:
    """The number of frames in the WAL."""
    return (wal.path_of(state / DATABASE).stat().st_size - HEAD) // (FRAME + PAGE)


def flip(state: Path, place: int, bit: int = 0) -> None:
    """Flips a bit of the WAL."""
    path = wal.path_of(state / DATABASE)
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


async def lost(state: Path) -> set[str]:
    """The runs that a start does not have as they were; each of them is damaged, or in quarantine."""
    found = set()
    async with opened(state) as store:
        for run_id in RUNS:
            try:
                record = await store.find(run_id)
            except DamagedRunError:
                found.add(run_id)
                continue
            if record is None:
                assert list(state.glob(f"damaged-*/runs/{run_id}")), f"{run_id} has gone without a trace"
                found.add(run_id)
            elif run_id != RUNS[-1]:
                assert record.run.state is RunState.KILLED, f"{run_id} is {record.run.state.name}"
    return found


@pytest.mark.parametrize("first", range(0, ROUNDS, 10))
async def test_no_run_returns_to_an_earlier_state(state: Path, tmp_path: Path, first: int) -> None:
    """Wherever a bit is flipped, a run whose end other transactions followed has ended, or is named."""
    for number in range(first, first + 10):
        chance = random.Random(f"{SEED} {number}")  # noqa: S311 - no secret
        copy = Path(shutil.copytree(state, tmp_path / "copy"))
        place = chance.randrange(wal.path_of(state / DATABASE).stat().st_size)
        flip(copy, place, chance.randrange(8))
        try:
            await lost(copy)
        except AssertionError as error:
            raise AssertionError(f"WAL_SEED={SEED}, round {number}, byte {place}: {error}") from error
        shutil.rmtree(copy)


async def test_one_damaged_row_is_one_lost_run(state: Path) -> None:
    """What follows in the log is intact, and so are the other rows of the page."""
    content = wal.path_of(state / DATABASE).read_bytes()
    label = (RUNS[5] * 40).encode()
    places = [place for place in range(len(content)) if content.startswith(label, place)]
    assert len(places) > 10
    for place in places:
        flip(state, place)
    assert await lost(state) == {RUNS[5]}


@pytest.mark.parametrize("place", range(HEAD))
async def test_a_damaged_header_loses_nothing(state: Path, place: int) -> None:
    """Without its header, SQLite would read nothing of the log."""
    flip(state, place)
    assert await lost(state) == set()


@pytest.mark.parametrize("place", range(FRAME))
async def test_a_damaged_head_of_a_frame_loses_no_later_frame(state: Path, place: int) -> None:
    """What is lost of the page itself, later frames have again."""
    flip(state, HEAD + (frames(state) // 3) * (FRAME + PAGE) + place)
    assert await lost(state) == set()


@pytest.mark.parametrize("size", [512, 4096])
async def test_a_lost_begin_loses_no_later_frame(state: Path, size: int) -> None:
    """A lost block has header and first frame, whose page was created before the runs."""
    path = wal.path_of(state / DATABASE)
    path.write_bytes(bytes(size) + path.read_bytes()[size:])
    assert await lost(state) == set()


async def test_a_damaged_database_does_not_hide_the_damaged_log(state: Path) -> None:
    """SQLite cannot read the database then, and would remove the log."""
    flip(state, HEAD + 3 * (FRAME + PAGE) + FRAME + 9)
    content = bytearray((state / DATABASE).read_bytes())
    content[:4] = b"xxxx"
    (state / DATABASE).write_bytes(content)
    log = wal.path_of(state / DATABASE).read_bytes()
    assert await lost(state) == set()
    (kept,) = state.glob(f"damaged-*/{DATABASE}-wal")
    assert kept.read_bytes() == log


def test_an_outdated_index_is_no_damage(state: Path) -> None:
    """Where SQLite may not write the wal-index, it has one in memory, and the file stays as it was."""
    path = wal.path_of(state / DATABASE)
    salt = path.read_bytes()[16:24]
    outdated = struct.pack("=16xI12x8s", 2, salt)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wal, "_wal_index", lambda _: outdated)
        assert not wal.loses_commits(state / DATABASE)


async def test_the_damaged_log_is_in_quarantine(state: Path) -> None:
    """As it was, for the operator."""
    flip(state, HEAD + FRAME + 9)
    content = wal.path_of(state / DATABASE).read_bytes()
    assert await lost(state) == set()
    (kept,) = state.glob(f"damaged-*/{DATABASE}-wal")
    assert kept.read_bytes() == content


@pytest.mark.parametrize("left", [1, FRAME, FRAME + 100, FRAME + PAGE - 1])
async def test_a_torn_last_transaction_is_no_damage(state: Path, left: int) -> None:
    """A power failure may tear what was not durable, which SQLite leaves out."""
    last = HEAD + (frames(state) - 1) * (FRAME + PAGE)
    path = wal.path_of(state / DATABASE)
    content = path.read_bytes()
    for torn in (content[: last + left], content[: last + left].ljust(len(content), b"\0")):
        path.write_bytes(torn)
        assert not wal.loses_commits(state / DATABASE)
    assert await lost(state) == set()
    assert list(state.glob("damaged-*")) == []


def failed_commit(folder: Path) -> tuple[bytes, bytes]:
    """Creates a database `both` without its log.

    Returns:
        Two logs for it, which begin alike: with a long last transaction, and with a short one.
    """
    before, after = folder / "before", folder / "after"
    with closing(sqlite3.connect(before, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE pages (content)")
        for path in (before, wal.path_of(before)):
            shutil.copyfile(path, str(path).replace("before", "after"))
        db.execute("INSERT INTO pages SELECT randomblob(3000) FROM json_each('[1, 2, 3, 4, 5, 6, 7, 8]')")
        long = wal.path_of(before).read_bytes()
    with closing(sqlite3.connect(after, isolation_level=None)) as db:
        db.execute("CREATE TABLE others (content)")
        short = wal.path_of(after).read_bytes()
        shutil.copyfile(after, folder / "both")
    assert len(short) < len(long)
    return long, short


@pytest.mark.parametrize("written", [FRAME + PAGE, FRAME, 12])
def test_what_a_failed_commit_left_is_no_damage(tmp_path: Path, written: int) -> None:
    """A transaction that failed when it was synced is overwritten in the log, perhaps in part."""
    long, short = failed_commit(tmp_path)
    last = len(short) - FRAME - PAGE
    log = short[: last + written] + long[last + written :]
    wal.path_of(tmp_path / "both").write_bytes(log)
    assert not wal.loses_commits(tmp_path / "both")


def test_a_log_that_is_read_as_a_whole_is_left_as_it_is(state: Path) -> None:
    """Repairing changes only a log of which SQLite would lose something."""
    path = wal.path_of(state / DATABASE)
    content = path.read_bytes()
    wal.repair(path)
    assert path.read_bytes() == content


async def test_the_log_of_an_empty_database_is_in_quarantine(state: Path) -> None:
    """SQLite would remove it."""
    content = wal.path_of(state / DATABASE).read_bytes()
    os.truncate(state / DATABASE, 0)
    assert await lost(state) == set(RUNS)
    (kept,) = state.glob(f"damaged-*/{DATABASE}-wal")
    assert kept.read_bytes() == content


def test_there_need_not_be_a_log(tmp_path: Path) -> None:
    """A server that was stopped leaves none, and an empty one has nothing to lose."""
    assert not wal.loses_commits(tmp_path / DATABASE)
    wal.path_of(tmp_path / DATABASE).write_bytes(b"")
    assert not wal.loses_commits(tmp_path / DATABASE)
    wal.repair(wal.path_of(tmp_path / DATABASE))
