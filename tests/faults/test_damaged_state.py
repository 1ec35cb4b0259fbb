"""Damaged state folders: what is whole is served as before, what is damaged is named, and nothing is removed.

`DAMAGE_ROUNDS=500 pytest tests/faults/test_damaged_state.py` plays longer; DAMAGE_SEED plays the same again.
"""

import functools
import os
import random
import secrets
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc
from tests.support.calls import SECONDS, artefact, finish, inline, perform, reach, start
from tests.support.errors import refusal_of, refused
from tests.support.gate import Gate
from tests.support.killable import FOLDERS, KillableServer, figure
from tests.support.server import Server
from tests.support.unprivileged import UnprivilegedServer, unprivileged_home

pytestmark = [
    pytest.mark.process_pool("the runs of a server that is killed go on elsewhere"),
    pytest.mark.state_folder("it damages the files of a state folder"),
]

ROUNDS = int(os.environ.get("DAMAGE_ROUNDS", "20"))
SEED = int(os.environ.get("DAMAGE_SEED", "0")) or secrets.randbits(32)
BATCH = 10
DATABASE = "notebook-runner.db"
DAMAGED = (grpc.StatusCode.DATA_LOSS, "RUN_DAMAGED")
COLD = ("--warm-kernels", "none", "--queue", "3")
# What a run that has ended need not have: it can be made again, or is removed at the end.
PASSING = {"artefacts", "environment", "output-uri", "begun"}
WAITS = "__import__('threading').Event().wait()"
WRITES = "open(__import__('os').environ['NOTEBOOK_RUNNER_RUN_DIR'] + '/file', 'w').write({!r})"


@dataclass
class Known:
    """A state folder as a killed server left it, and what was told of each of its runs."""

    state: Path
    runs: dict[str, pb.Run] = field(default_factory=dict)
    events: dict[str, list[pb.ProgressResponse]] = field(default_factory=dict)
    notebooks: dict[str, bytes] = field(default_factory=dict)
    queued: str = ""


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Known]:
    """Runs that have ended, some only in the database's log; one goes on, and one waits."""
    one = Known(tmp_path_factory.mktemp("state") / "state")
    gate = Gate(tmp_path_factory.mktemp("gate"))
    for first in (0, 4):
        with KillableServer(one.state, *COLD) as server:
            for number in range(first, first + 4):
                cells = f"print('{number}' * 50)", WRITES.format("x" * number), "1 / 0" if number % 2 else "2"
                ended = perform(server.stub, inline(*cells, labels={"n": str(number)}))
                one.runs[ended.run.run_id] = ended.run
                one.events[ended.run.run_id] = ended.events
                one.notebooks[ended.run.run_id] = artefact(server.stub, ended.run.run_id)
            if first:
                running = start(server.stub, inline(gate.source))
                reach(server.stub, running.run_id, "cell_started")
                one.queued = start(server.stub, inline("1", environment={"NBR_A": "b"})).run_id
                server.die()
    yield one
    gate.close()


def contents(state: Path) -> dict[tuple[str, str], bytes]:
    """What is in each file of each run, wherever below the state folder the run's folder is."""
    found: dict[tuple[str, str], bytes] = {}
    for parent, folders, names in os.walk(state):
        folders[:] = [name for name in folders if name not in PASSING]
        parts = Path(parent).parts
        if FOLDERS not in parts:
            continue
        place = len(parts) - 1 - parts[::-1].index(FOLDERS)
        for name in set(names) - PASSING:
            run_id, *below = [*parts[place + 1 :], name]
            found[run_id, "/".join(below)] = Path(parent, name).read_bytes()
    return found


def _flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 1, 30])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def _cut(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(path.stat().st_size))


def _empty(path: Path, _: random.Random) -> None:
    os.truncate(path, 0)


def _remove(path: Path, _: random.Random) -> None:
    path.unlink()


def _garbage(path: Path, chance: random.Random) -> None:
    path.write_bytes(chance.randbytes(path.stat().st_size or 100))


def _folder(path: Path, _: random.Random) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").write_text("x")


DAMAGES: list[Callable[[Path, random.Random], None]] = [
    _flip,
    _flip,
    _cut,
    _empty,
    _remove,
    _garbage,
    _folder,
]


def damage(state: Path, chance: random.Random) -> tuple[Path, str]:
    """Damages one file of a state folder; answers which, and how."""
    files = sorted(path for path in state.rglob("*") if path.is_file() or path.is_symlink())
    chosen = chance.choice([DATABASE, f"{DATABASE}-wal", ""])
    path = state / chosen if chosen else chance.choice(files)
    how = chance.choice(DAMAGES)
    if path.is_symlink() or not path.stat().st_size:
        how = chance.choice([_remove, _folder])
    how(path, chance)
    return path, how.__name__


def _kill(stub: rpc.NotebookRunnerStub, run_id: str) -> pb.KillResponse:
    return stub.Kill(pb.KillRequest(run_id=run_id), timeout=SECONDS)


def served(server: Server, known: Known) -> set[str]:
    """Looks at each run that is listed: as it was, or damaged; answers those that are whole."""
    answer = server.stub.List(pb.ListRequest(page_size=1000), timeout=SECONDS)
    whole = set()
    for run in answer.runs:
        if run.run_id not in known.runs:
            continue
        try:
            told = finish(server.stub, run.run_id)
            notebook = artefact(server.stub, run.run_id)
        except grpc.RpcError as error:
            if refusal_of(error).kind != DAMAGED:
                raise AssertionError(f"{run.run_id}: {error}") from error
            continue
        if run.state == pb.RUN_STATE_INTERRUPTED:
            # The history lost its end, and what it kept is a beginning of what was told.
            seen = [event for event in told.events if event in known.events[run.run_id]]
            assert seen == known.events[run.run_id][: len(seen)]
            continue
        assert told.events == known.events[run.run_id]
        assert run == known.runs[run.run_id]
        assert notebook == known.notebooks[run.run_id]
        whole.add(run.run_id)
    for run_id in answer.damaged_run_ids:
        for call in (finish, artefact, _kill):
            code = refused(functools.partial(call, server.stub, run_id)).code
            assert code in {grpc.StatusCode.DATA_LOSS, grpc.StatusCode.NOT_FOUND}
    return whole


@pytest.mark.parametrize("first", range(0, ROUNDS, BATCH))
def test_a_damaged_state_folder_is_served_as_far_as_it_is_whole(
    known: Known, tmp_path: Path, first: int
) -> None:
    """Any one file is damaged: the server starts, serves the others' runs, and no file of a run is gone."""
    for number in range(first, min(first + BATCH, ROUNDS)):
        chance = random.Random(f"{SEED} {number}")  # noqa: S311 - no secret
        state = tmp_path / f"state-{number}"
        shutil.copytree(known.state, state, symlinks=True)
        before = contents(state)
        path, how = damage(state, chance)
        about = f"DAMAGE_SEED={SEED}, round {number}: {how} {path.relative_to(state)}"
        try:
            with KillableServer(state, *COLD) as server:
                whole = served(server, known)
                assert perform(server.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED
                kept = contents(state)
                hurt = path.relative_to(state).parts[1] if FOLDERS in path.parts else ""
                # A run whose end the history has lost ends again: that is appended.
                lost = {one for one, data in before.items() if not kept.get(one, b"").startswith(data)}
                lost -= {(hurt, "/".join(path.relative_to(state).parts[2:]))}
                assert not {one for one in lost if one[0] in known.runs}, "files of runs are gone"
                if not path.name.startswith(DATABASE):
                    assert whole >= set(known.runs) - {hurt}
        except (AssertionError, grpc.RpcError) as error:
            raise AssertionError(f"{about}: {error}") from error
        shutil.rmtree(state)
    figure(f"DAMAGE_SEED={SEED}")


def copied(known: Known, tmp_path: Path) -> Path:
    """A copy of the state folder."""
    return Path(shutil.copytree(known.state, tmp_path / "state", symlinks=True))


def _missing(path: Path) -> None:
    path.unlink()


def _half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("how", [_missing, _half, _flipped])
def test_runs_that_the_history_has_lost_are_set_aside(
    known: Known, tmp_path: Path, how: Callable[[Path], None]
) -> None:
    """A log of the database that is cut, flipped or gone: the folders of its runs are kept, and named."""
    state = copied(known, tmp_path)
    how(state / f"{DATABASE}-wal")
    with KillableServer(state, *COLD) as server:
        served(server, known)
        listed = {run.run_id for run in server.stub.List(pb.ListRequest(), timeout=SECONDS).runs}
        lost = set(known.runs) - listed
        for run_id in lost:
            (aside,) = state.glob(f"damaged-*/{FOLDERS}/{run_id}")
            assert (aside / "segments").is_file()
            assert (aside / "work" / "file").is_file()
            server.logged("damaged_file_moved", str(aside))
    assert lost or how is _flipped


def test_a_run_is_not_executed_again_when_the_history_has_lost_its_beginning(tmp_path: Path) -> None:
    """It waits according to what is left of the history: it becomes INTERRUPTED, because a worker had it."""
    state, marks = tmp_path / "state", tmp_path / "marks"
    with KillableServer(state, *COLD) as server:
        request = inline(f"open({str(marks)!r}, 'a').write('x')")
        run = perform(server.stub, request).run
        server.die()
    with closing(sqlite3.connect(state / DATABASE)) as db:
        first = db.execute("SELECT event FROM events WHERE sequence = 1").fetchone()[0]
        text = db.execute("SELECT run FROM runs").fetchone()[0]
        assert "queued" in first
        db.execute("DELETE FROM events WHERE sequence > 1")
        db.execute(
            "UPDATE runs SET state = 'queued', run = ?, last_sequence = 1, expire_time = NULL,"
            " checksum = NULL",
            (text.replace('"succeeded"', '"queued"'),),
        )
        db.commit()
    with KillableServer(state, *COLD) as server:
        assert finish(server.stub, run.run_id).run.state == pb.RUN_STATE_INTERRUPTED
    assert marks.read_text() == "x"


@pytest.mark.parametrize("column", ["run", "state", "parameters", "options", "last_sequence"])
def test_one_damaged_row_is_one_damaged_run(known: Known, tmp_path: Path, column: str) -> None:
    """List goes on and names it; its own calls answer DATA_LOSS, and the others are as before."""
    state = copied(known, tmp_path)
    victim = list(known.runs)[1]
    with closing(sqlite3.connect(state / DATABASE)) as db:
        text = f"UPDATE runs SET {column} = replace({column}, substr({column}, 2, 1), '~') WHERE run_id = ?"  # noqa: S608 - the names above
        if column == "last_sequence":
            text = "UPDATE runs SET last_sequence = last_sequence - 1 WHERE run_id = ?"
        assert db.execute(text, (victim,)).rowcount == 1
        db.commit()
    with KillableServer(state, *COLD) as server:
        assert served(server, known) == set(known.runs) - {victim}
        answer = server.stub.List(pb.ListRequest(), timeout=SECONDS)
        assert list(answer.damaged_run_ids) == [victim]
        request = pb.ProgressRequest(run_id=victim)
        assert refused(lambda: list(server.stub.Progress(request, timeout=SECONDS))).kind == DAMAGED
        server.logged("run_damaged", victim)


def test_damaged_events_are_damage_of_one_run(known: Known, tmp_path: Path) -> None:
    """An event that is not as it was written is not told: that stream answers DATA_LOSS."""
    state = copied(known, tmp_path)
    victim = list(known.runs)[2]
    with closing(sqlite3.connect(state / DATABASE)) as db:
        text = (
            "UPDATE events SET event = replace(event, '2222', '2322') WHERE position ="
            " (SELECT position FROM runs WHERE run_id = ?)"
        )
        db.execute(text, (victim,))
        db.commit()
    with KillableServer(state, *COLD) as server:
        assert served(server, known) == set(known.runs) - {victim}
        assert served(server, known) == set(known.runs) - {victim}
        assert [entry["run_id"] for entry in server.logged("run_damaged")] == [victim]


@pytest.mark.parametrize("damage", [_half, _flipped])
def test_damaged_segments_are_damage_of_one_run(
    known: Known, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """A notebook that is not as it was written is not answered: its Output answers DATA_LOSS."""
    state = copied(known, tmp_path)
    victim = list(known.runs)[2]
    damage(state / FOLDERS / victim / "segments")
    with KillableServer(state, *COLD) as server:
        whole = served(server, known)
        assert whole >= set(known.runs) - {victim}
        named = server.logged("run_damaged", count=victim not in whole)
        assert [entry["run_id"] for entry in named] == [victim] * (victim not in whole)


def _torn(path: Path) -> None:
    path.write_text('{"NBR_A": ')


def _other(path: Path) -> None:
    path.write_text(path.read_text().replace("b", "c"))


@pytest.mark.parametrize("how", [_torn, _other])
def test_damaged_variables_of_a_run_are_its_own_damage(
    known: Known, tmp_path: Path, how: Callable[[Path], None]
) -> None:
    """The server starts; the run that waited ends without being executed, and says why."""
    state = copied(known, tmp_path)
    how(state / FOLDERS / known.queued / "environment")
    with KillableServer(state, *COLD) as server:
        assert served(server, known) == set(known.runs)
        run = finish(server.stub, known.queued).run
        assert (run.state, run.failure.cause) == (pb.RUN_STATE_CRASHED, pb.FAILURE_CAUSE_STORAGE_FAILED)
        assert "environment" in run.failure.message
        (line,) = server.logged("run_damaged", known.queued)
        assert line["why"] == run.failure.message
        assert [entry for entry in server.log if "exception" in entry] == []


def test_runs_of_a_torn_database_are_served_from_a_new_one(known: Known, tmp_path: Path) -> None:
    """A page in the middle is garbage: the file is set aside, and each run that is whole is in a new one."""
    state = copied(known, tmp_path)
    with closing(sqlite3.connect(state / DATABASE)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        page_size = db.execute("PRAGMA page_size").fetchone()[0]
        # An index can be made again.
        root = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'runs_by_state'").fetchone()[0]
    with (state / DATABASE).open("r+b") as file:
        file.seek((root - 1) * page_size)
        file.write(os.urandom(page_size))
    with KillableServer(state, *COLD) as server:
        assert served(server, known) == set(known.runs)
        run = finish(server.stub, known.queued).run
        assert run.state == pb.RUN_STATE_SUCCEEDED
    (aside,) = state.glob("damaged-*")
    assert (aside / DATABASE).is_file()


def test_modes_that_a_notebook_has_changed_are_restored() -> None:
    """A notebook has the user of the server, and so may change the mode of what it cannot read."""
    with unprivileged_home() as home:
        with UnprivilegedServer(home, *COLD) as server:
            run = perform(server.stub, inline("print('kept')")).run
            notebook = artefact(server.stub, run.run_id)
            queue = (
                start(server.stub, inline(WAITS)),
                start(server.stub, inline("1", environment={"NBR_A": "b"})),
            )
            reach(server.stub, queue[0].run_id, "cell_started")
            server.die()
        state = server.state_dir
        outside = home / "outside"
        outside.write_text("x")
        (state / "link").symlink_to(outside)
        server.give(home)
        names = {path.name for path in state.iterdir()}
        assert {DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", "lock", "request-key", "runs"} <= names
        for path in sorted([outside, state, *state.rglob("*")], reverse=True):
            if not path.is_symlink():
                path.chmod(0)
        with UnprivilegedServer(home, *COLD) as server:
            assert artefact(server.stub, run.run_id) == notebook
            assert finish(server.stub, queue[1].run_id).run.state == pb.RUN_STATE_SUCCEEDED
            assert perform(server.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED
            server.logged("modes_restored")
        assert outside.stat().st_mode & 0o777 == 0
