"""Delete when the server dies, when the disk is full, and of runs whose record is damaged."""

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.faults.crashing_server import VARIABLE
from tests.support.calls import SECONDS, artefact, history, inline, perform
from tests.support.errors import refused
from tests.support.killable import FOLDERS, KillableServer
from tests.support.server import Server

DATABASE = "notebook-runner.db"
PROGRAM = [sys.executable, str(Path(__file__).with_name("crashing_server.py"))]
UNKNOWN = (grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND")
DAMAGED = (grpc.StatusCode.DATA_LOSS, "RUN_DAMAGED")
COLD = ("--warm-kernels", "none")
WRITES = "open(__import__('os').environ['NOTEBOOK_RUNNER_RUN_DIR'] + '/file', 'w').write('x')"


def delete(server: Server, run_id: str) -> pb.DeleteResponse:
    """Deletes a run."""
    return server.stub.Delete(pb.DeleteRequest(run_id=run_id), timeout=SECONDS)


def is_unknown(server: Server, run_id: str) -> bool:
    """Whether a run is found by no call."""
    assert refused(lambda: server.stub.Get(pb.GetRequest(run_id=run_id), timeout=SECONDS)).kind == UNKNOWN
    assert run_id not in history(server.stub)
    return not (server.state_dir / FOLDERS / run_id).exists()


def test_an_acknowledged_delete_survives_the_server(tmp_path: Path) -> None:
    """The server dies after its answer: the run is not there again, nor is anything of it."""
    state = tmp_path / "state"
    with KillableServer(state, *COLD) as server:
        gone, kept = (perform(server.stub, inline(WRITES)).run.run_id for _ in range(2))
        delete(server, gone)
        server.die()
    with KillableServer(state, *COLD) as server:
        assert is_unknown(server, gone)
        assert history(server.stub) == [kept]
        assert artefact(server.stub, kept, format="files")
    assert not list(state.glob("damaged-*"))


@pytest.mark.state_folder("it dies at a commit of SQLite")
@pytest.mark.parametrize("point", ["before-commit", "after-commit"])
def test_a_server_that_dies_while_it_deletes(tmp_path: Path, point: str) -> None:
    """Either the whole run is there afterwards, or nothing of it."""
    state, order = tmp_path / "state", tmp_path / "order"
    with KillableServer(state, *COLD, program=PROGRAM, environment={VARIABLE: str(order)}) as server:
        ended = perform(server.stub, inline(WRITES))
        run_id = ended.run.run_id
        notebook = artefact(server.stub, run_id)
        order.write_text(f"{point}:1")
        with pytest.raises(grpc.RpcError):
            delete(server, run_id)
        server.buried()
    with KillableServer(state, *COLD) as server:
        if point == "after-commit":
            assert is_unknown(server, run_id)
        else:
            assert history(server.stub) == [run_id]
            assert artefact(server.stub, run_id) == notebook
            assert artefact(server.stub, run_id, format="files")
            assert delete(server, run_id).run == ended.run
            assert is_unknown(server, run_id)
    assert not list(state.glob("damaged-*"))


@pytest.mark.state_folder("it damages SQLite's file")
@pytest.mark.process_pool("a state folder that is changed by the test has no runs on a cluster")
@pytest.mark.parametrize("column", ["run", "state", "parameters", "options", "last_sequence"])
def test_a_run_whose_record_is_damaged(tmp_path: Path, column: str) -> None:
    """An operator gets rid of it by the id that List names; the response has no run, which is not known."""
    with KillableServer(tmp_path, *COLD) as server:
        victim, other = (perform(server.stub, inline(WRITES, labels={"a": "b"})).run.run_id for _ in range(2))
        server.die()
    with closing(sqlite3.connect(tmp_path / DATABASE)) as db:
        value = (
            "last_sequence - 1"
            if column == "last_sequence"
            else f"replace({column}, substr({column}, 2, 1), '~')"
        )
        db.execute(f"UPDATE runs SET {column} = {value} WHERE run_id = ?", (victim,))  # noqa: S608 - the names above
        db.commit()
    with KillableServer(tmp_path, *COLD) as server:
        get = pb.GetRequest(run_id=victim)
        assert refused(lambda: server.stub.Get(get, timeout=SECONDS)).kind == DAMAGED
        assert list(server.stub.List(pb.ListRequest(), timeout=SECONDS).damaged_run_ids) == [victim]
        assert not delete(server, victim).HasField("run")
        assert is_unknown(server, victim)
        answer = server.stub.List(pb.ListRequest(labels={"a": "b"}), timeout=SECONDS)
        assert ([run.run_id for run in answer.runs], list(answer.damaged_run_ids)) == ([other], [])
        assert refused(lambda: delete(server, victim)).kind == UNKNOWN
        server.die()
    with KillableServer(tmp_path, *COLD) as server:
        assert history(server.stub) == [other]


@pytest.mark.state_folder("it damages the files of a state folder")
@pytest.mark.process_pool("a state folder that is changed by the test has no runs on a cluster")
def test_a_run_whose_events_and_segments_are_damaged(tmp_path: Path) -> None:
    """It is deleted like every other, with the run as its row has it."""
    with KillableServer(tmp_path, *COLD) as server:
        run = perform(server.stub, inline(WRITES)).run
        server.die()
    (tmp_path / FOLDERS / run.run_id / "segments").write_bytes(b"")
    with closing(sqlite3.connect(tmp_path / DATABASE)) as db:
        db.execute("UPDATE events SET event = 'x'")
        db.commit()
    with KillableServer(tmp_path, *COLD) as server:
        assert delete(server, run.run_id).run == run
        assert is_unknown(server, run.run_id)
