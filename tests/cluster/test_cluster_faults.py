"""Parts of a cluster that stand still, or are shared: no run hangs, is lost unsaid, or goes on unseen.

`FLOOD_LINES=200000 pytest tests/cluster/test_cluster_faults.py -s` prints 200 MB where it is 40 MB otherwise.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import executed, finish, inline, perform, reach, start, texts
from tests.support.cluster import Cluster
from tests.support.gate import Gate
from tests.support.killable import RUN_MARK, KillableServer, figure, gone, new_mark, remains
from tests.support.notebooks import printed
from tests.support.processes import memory, outlived, stopped

Serve = Callable[..., KillableServer]
TIMEOUT, LOST, SLACK = 6.0, 5.0, 60.0
"""Seconds: --worker-timeout of these tests, how much later the server says that one is lost, and how much a
busy machine may add."""
PATIENCE, LONG_PATIENCE = ("--worker-timeout", str(TIMEOUT)), ("--worker-timeout", "15")

FLOOD_LINES = int(os.environ.get("FLOOD_LINES", "40000"))
MIB = 1024 * 1024
FOR_EVER = """
import os, subprocess, time
with open({path!r}, "a") as file:
    file.write(f"{{os.getpid()}}\\n")
subprocess.Popen(["sleep", os.environ["NBR_RUN_MARK"]], env={{}}, start_new_session=True)
print(os.getpid(), flush=True)
time.sleep(100000)
"""


def kernel(server: KillableServer, run_id: str) -> int:
    """The process that a run has printed as its own."""
    return int(reach(server.stub, run_id, "cell_output").cell_output.stream.text)


def kill(server: KillableServer, run_id: str) -> tuple[pb.KillResponse, float]:
    """Kills a run; the answer, and the seconds that it took."""
    begin = time.monotonic()
    answer = server.stub.Kill(pb.KillRequest(run_id=run_id), timeout=60)
    return answer, time.monotonic() - begin


def until_state(server: KillableServer, run_id: str, state: int) -> None:
    """Waits until a run has come to a state."""
    stream = server.stub.Progress(pb.ProgressRequest(run_id=run_id), timeout=60)
    next(event for event in stream if event.run_changed.state >= state)
    stream.cancel()


def works(server: KillableServer) -> None:
    """A run succeeds."""
    assert perform(server.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED


@pytest.mark.cluster_long
def test_a_worker_that_stands_still_is_lost(cluster: Cluster, serve: Serve, tmp_path: Path) -> None:
    """CRASHED, lost, after the time-out; by then nothing of the run goes on, nor when the worker does."""
    server, mark, effects = serve(*PATIENCE), new_mark(), tmp_path / "effects"
    source = FOR_EVER.format(path=str(effects))
    run = start(server.stub, inline(source, environment={RUN_MARK: mark}))
    process = kernel(server, run.run_id)
    _, worker = cluster.worker_of(process)
    with stopped(worker):
        begin = time.monotonic()
        gone(mark, TIMEOUT + SLACK)
        assert outlived([process], 1) == []
        figure(f"the run of a worker that stands still is ended after {time.monotonic() - begin:.1f} s")
        ended = finish(server.stub, run.run_id)
        figure(f"the server says that it is lost after {time.monotonic() - begin:.1f} s")
        assert (ended.run.state, ended.run.failure.cause) == (
            pb.RUN_STATE_CRASHED,
            pb.FAILURE_CAUSE_WORKER_DIED,
        )
        assert "lost" in ended.run.failure.message
        works(server)
    for _ in range(3):
        works(server)
    assert finish(server.stub, run.run_id) == ended
    assert effects.read_text().split() == [str(process)]


def test_kill_needs_no_scheduler(cluster: Cluster, serve: Serve) -> None:
    """While the scheduler stands still, Kill ends what runs and what waits for a slot, and works later."""
    server, mark = serve(), new_mark()
    source = FOR_EVER.format(path="/dev/null")
    run = start(server.stub, inline(source, environment={RUN_MARK: mark}))
    kernel(server, run.run_id)
    assert cluster.scheduler is not None
    with stopped(cluster.scheduler.pid):
        waiting = start(server.stub, inline(source, environment={RUN_MARK: mark}))
        until_state(server, waiting.run_id, pb.RUN_STATE_STARTING)
        for one in (waiting, run):
            answer, seconds = kill(server, one.run_id)
            figure(f"Kill without a scheduler answers after {1000 * seconds:.0f} ms")
            assert answer.run.state == pb.RUN_STATE_KILLED
            assert remains(mark) == {} or one is waiting
    for _ in range(4):
        works(server)
    assert remains(mark) == {}


@pytest.mark.cluster_long
def test_a_server_that_stands_still_loses_nothing(cluster: Cluster, serve: Serve, gate: Gate) -> None:
    """The worker keeps a bounded amount, the run waits, and all of its text arrives, once and in order."""
    lines, width = FLOOD_LINES, 1000
    text = f"for number in range({lines}): print(f'{{number:0{width}}}')"
    server = serve(*PATIENCE, "--cell-output-limit", "0", "--run-output-limit", "0")
    run = start(server.stub, inline(f"import os; print(os.getpid(), flush=True)\n{gate.source}", text))
    _, worker = cluster.worker_of(kernel(server, run.run_id))
    before = memory(worker)
    gate.open()
    reach(server.stub, run.run_id, "cell_output", cell=1)
    with stopped(server.process.pid):
        # How long it stands still is what is tried here.
        threading.Event().wait(TIMEOUT / 2)
        after = memory(worker)
    ended = finish(server.stub, run.run_id)
    figure(f"the worker took {(after - before) / MIB:.0f} MiB more, of {lines * width / MIB:.0f} MiB of text")
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED
    expected = "".join(f"{number:0{width}}\n" for number in range(lines))
    assert texts(ended.events).partition("\n")[2] == expected
    assert printed(executed(server.stub, run.run_id), 1) == expected
    assert after - before < 30 * MIB


@pytest.fixture
def pair(cluster: Cluster, tmp_path: Path) -> Iterator[list[KillableServer]]:
    """Two servers that share the cluster."""
    options = (*LONG_PATIENCE, "--queue", "9")
    with ExitStack() as stack:
        yield [
            stack.enter_context(KillableServer(tmp_path / name, *options, environment=cluster.environment))
            for name in ("one", "other")
        ]


def test_two_servers_share_a_cluster(
    cluster: Cluster, pair: list[KillableServer], tmp_path: Path, gate: Gate
) -> None:
    """Each has its runs, waits for the other's slots, can kill what waits, and dies without the other."""
    one, other = pair
    runs = [start(one.stub, inline(gate.source, "1")) for _ in range(3)]
    for run in runs:
        reach(one.stub, run.run_id, "cell_started")
    waiting, killed = (start(other.stub, inline("print('ran')")) for _ in range(2))
    for run in (waiting, killed):
        until_state(other, run.run_id, pb.RUN_STATE_STARTING)
    # It waits for none of the slots, which are taken until the gate is opened.
    answer, _ = kill(other, killed.run_id)
    assert answer.run.state == pb.RUN_STATE_KILLED
    other.process.kill()
    other.process.wait()
    gate.open(3)
    assert {finish(one.stub, run.run_id).run.state for run in runs} == {pb.RUN_STATE_SUCCEEDED}
    options = (*LONG_PATIENCE, "--queue", "9")
    with KillableServer(tmp_path / "other", *options, environment=cluster.environment) as again:
        ended = finish(again.stub, waiting.run_id).run
        assert ended.state in {pb.RUN_STATE_INTERRUPTED, pb.RUN_STATE_SUCCEEDED}
        assert finish(again.stub, killed.run_id).run.state == pb.RUN_STATE_KILLED
        for server in (one, again):
            works(server)
