"""What stays in the history of a request that can be repeated: nothing that a guess can be held against."""

import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import grpc

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import perform, start
from tests.support.errors import refused
from tests.support.notebooks import content
from tests.support.server import Server

NOTEBOOK = content("1")


def request(pin: str) -> pb.StartRequest:
    """A request with a value that ten thousand guesses find."""
    return pb.StartRequest(notebook_content=NOTEBOOK, request_id="once", environment={"PIN": pin})


def digest(state_dir: Path) -> str:
    """What SQLite has of the request, when its run has ended."""
    with closing(sqlite3.connect(f"file:{state_dir / 'notebook-runner.db'}?mode=ro", uri=True)) as db:
        ((found, state),) = db.execute("SELECT request_digest, state FROM runs").fetchall()
    assert state == "succeeded"
    return str(found)


def test_the_history_alone_confirms_no_guess(tmp_path: Path) -> None:
    """The same request has another digest in another history: to compute one takes more than a guess."""
    found = []
    for name in ("one", "other"):
        with Server(tmp_path / name) as server:
            assert perform(server.stub, request("4711")).run.state == pb.RUN_STATE_SUCCEEDED
        found.append(digest(tmp_path / name))
        key = tmp_path / name / "request-key"
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert key.read_bytes() not in (tmp_path / name / "notebook-runner.db").read_bytes()
    assert found[0] != found[1]


def test_a_request_is_known_again_after_a_restart(tmp_path: Path) -> None:
    """The same one answers its run, which has ended; one with another value is refused."""
    with Server(tmp_path) as first:
        ended = perform(first.stub, request("4711")).run
    with Server(tmp_path) as second:
        assert start(second.stub, request("4711")).run_id == ended.run_id
        refusal = refused(lambda: start(second.stub, request("4712")))
    assert refusal.kind == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
