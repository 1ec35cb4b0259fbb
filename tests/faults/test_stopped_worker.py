"""A worker that can carry out no order, for it is stopped: the server ends it, and all that is below it."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.faults.odd_server import STUCK
from tests.support.calls import SECONDS, duration, executed, finish, follow, inline, perform, reach, start
from tests.support.killable import RUN_MARK, KillableServer, figure, gone, new_mark, remains, worker_of
from tests.support.notebooks import printed
from tests.support.processes import is_alive

pytestmark = pytest.mark.process_pool("the patience with a worker is the Dask worker's own there, 20 s")

PROGRAM = [sys.executable, str(Path(__file__).with_name("odd_server.py"))]
# The server's own patience (STUCK_SECONDS in execution/pool.py) is 20 s, and a test shall not wait for it.
PATIENCE = 1.0
# A grace period that no test waits for: a Kill that did would miss its deadline.
LONG_GRACE = 10 * SECONDS
FOR_EVER = (
    "import os, subprocess, time\nmark = os.environ['NBR_RUN_MARK']\n"
    "subprocess.Popen(['sleep', mark])\n"
    "subprocess.Popen(['sleep', mark], start_new_session=True, env={})\n"
    "print('here', flush=True)\ntime.sleep(1000)"
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[KillableServer]:
    """A server with little patience."""
    told = {STUCK: str(PATIENCE)}
    with KillableServer(
        tmp_path / "state", "--queue", "2", "--drain-timeout", "0.5", program=PROGRAM, environment=told
    ) as server:
        yield server


def _with_a_stopped_worker(server: KillableServer) -> tuple[str, str]:
    """A run whose worker was stopped, and what marks its processes."""
    mark = new_mark()
    run = start(server.stub, inline("print('done')", FOR_EVER, environment={RUN_MARK: mark}))
    reach(server.stub, run.run_id, "cell_output", cell=1)
    # Two children; a kernel that was kept warm has the mark of no run.
    assert len(remains(mark)) >= 2
    os.kill(worker_of(server), signal.SIGSTOP)
    return run.run_id, mark


def _is_killing(server: KillableServer, run_id: str) -> None:
    """Waits until an order to end the run was given."""
    with closing(follow(server.stub, run_id)) as events:
        next(event for event in events if event.run_changed.state == pb.RUN_STATE_KILLING)


def _ended(server: KillableServer, run_id: str, mark: str, kill: Callable[[], pb.KillResponse]) -> None:
    """A Kill without grace ends the run wholly, what it had is kept, and the next run works."""
    begin = time.monotonic()
    answer = kill()
    seconds = time.monotonic() - begin
    left = remains(mark)
    figure(f"Kill of a run whose worker is stopped: {seconds:.2f} s, {answer.processes_ended} processes")
    assert left == {}
    assert answer.run.state == pb.RUN_STATE_KILLED
    assert answer.run.failure.cause == pb.FAILURE_CAUSE_KILL_REQUESTED
    assert answer.processes_ended >= 3
    assert finish(server.stub, run_id).run == answer.run
    node = executed(server.stub, run_id)
    # The end of the line is a message of its own, which the worker may not have had when it was stopped.
    assert (printed(node, 0), printed(node, 1).rstrip()) == ("done\n", "here")
    assert perform(server.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED


def test_kill_ends_a_run_whose_worker_is_stopped(server: KillableServer) -> None:
    """Kill answers with the run KILLED, nothing of it is left, and the next run works."""
    run_id, mark = _with_a_stopped_worker(server)
    request = pb.KillRequest(run_id=run_id)
    _ended(server, run_id, mark, lambda: server.stub.Kill(request, timeout=60))


def test_a_kill_without_grace_does_not_wait_for_one_with_grace(server: KillableServer) -> None:
    """The second Kill ends the run although the first one would wait longer; both answer the same."""
    run_id, mark = _with_a_stopped_worker(server)
    first = pb.KillRequest(run_id=run_id, grace_period=duration(LONG_GRACE))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.stub.Kill, first, timeout=2 * SECONDS)
        _is_killing(server, run_id)
        second = pb.KillRequest(run_id=run_id)
        _ended(server, run_id, mark, lambda: server.stub.Kill(second, timeout=60))
        assert waiting.result(SECONDS).run == finish(server.stub, run_id).run


def test_a_worker_that_is_stopped_before_its_run(server: KillableServer) -> None:
    """A run that a stopped worker was given is ended by Kill, and the one behind it is executed."""
    stopped = worker_of(server)
    os.kill(stopped, signal.SIGSTOP)
    runs = [start(server.stub, inline("1")).run_id, start(server.stub, inline("2")).run_id]
    while True:
        answer = server.stub.Kill(pb.KillRequest(run_id=runs.pop(0)), timeout=SECONDS)
        assert answer.run.state == pb.RUN_STATE_KILLED
        if not is_alive(stopped):
            break
        # This Kill came before the worker had the run. It is given the next one.
        runs.append(start(server.stub, inline("3")).run_id)
    assert finish(server.stub, runs[0]).run.state == pb.RUN_STATE_SUCCEEDED


def test_a_server_ends_although_its_busy_worker_is_stopped(server: KillableServer) -> None:
    """SIGTERM ends the server, which leaves nothing behind."""
    _, mark = _with_a_stopped_worker(server)
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(60)
    gone(server.mark)
    gone(mark, 0.0)
