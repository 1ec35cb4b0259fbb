"""A worker that can carry out no order, for it is stopped: the server ends it, and all that is below it."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.odd_server import STUCK
from support.calls import duration, finish, inline, perform, reach, start
from support.mortal import RUN_MARK, MortalServer, gone, new_mark, worker_of

from notebook_runner.v1 import notebook_runner_pb2 as pb

PROGRAM = [sys.executable, str(Path(__file__).with_name("odd_server.py"))]
# The server's own patience is 20 s, and a test shall not wait for it.
PATIENCE = "1"
FOR_EVER = (
    "import subprocess, time\nsubprocess.Popen(['sleep', '1000'], start_new_session=True)\ntime.sleep(1000)"
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MortalServer]:
    """A server with little patience."""
    with MortalServer(tmp_path / "state", program=PROGRAM, environment={STUCK: PATIENCE}) as server:
        yield server


def _with_a_stopped_worker(server: MortalServer) -> tuple[str, str]:
    """A run whose worker was stopped, and what marks its processes."""
    mark = new_mark()
    run = start(server.stub, inline(FOR_EVER, environment={RUN_MARK: mark}))
    reach(server.stub, run.run_id, "cell_started")
    os.kill(worker_of(server), signal.SIGSTOP)
    return run.run_id, mark


def test_kill_ends_a_run_whose_worker_is_stopped(server: MortalServer) -> None:
    """Kill answers with the run KILLED, nothing of it is left, and the next run works."""
    run_id, mark = _with_a_stopped_worker(server)
    answer = server.stub.Kill(pb.KillRequest(run_id=run_id), timeout=30)
    assert answer.run.state == pb.RUN_STATE_KILLED
    gone(mark, 0.0)
    assert perform(server.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED


def test_a_kill_without_grace_does_not_wait_for_one_with_grace(server: MortalServer) -> None:
    """The second Kill ends the run although the first one would have waited an hour."""
    run_id, mark = _with_a_stopped_worker(server)
    first = pb.KillRequest(run_id=run_id, grace_period=duration(3600))
    waiting = threading.Thread(target=server.stub.Kill, args=[first], kwargs={"timeout": 60})
    waiting.start()
    for event in server.stub.Progress(pb.ProgressRequest(run_id=run_id), timeout=30):
        if event.run_changed.state == pb.RUN_STATE_KILLING:
            break
    answer = server.stub.Kill(pb.KillRequest(run_id=run_id), timeout=30)
    waiting.join(30)
    assert not waiting.is_alive()
    assert answer.run.state == pb.RUN_STATE_KILLED
    gone(mark, 0.0)
    assert finish(server.stub, run_id).run == answer.run
