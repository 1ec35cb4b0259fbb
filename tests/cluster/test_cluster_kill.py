"""Kill of runs on a cluster, at every moment: it answers before anything ends by itself, and nothing is left.

`KILL_ROUNDS=20 pytest tests/cluster/test_cluster_kill.py -s` measures over more of them.
"""

import os
import random
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.faults.trees import TREES
from tests.support.calls import finish, inline, perform, reach, start, started
from tests.support.cluster import Cluster
from tests.support.gate import Gate
from tests.support.killable import RUN_MARK, KillableServer, figure, new_mark, remains

pytestmark = pytest.mark.cluster_long

ROUNDS = int(os.environ.get("KILL_ROUNDS", "1"))
SEED = int(os.environ.get("KILL_SEED", "0")) or secrets.randbits(32)
FOR_EVER = "print('here', flush=True)\nimport time; time.sleep(100000)"
# From before the lease to after the first cell's start, in seconds.
LATEST = 0.15


@pytest.fixture(scope="module")
def server(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KillableServer]:
    """A server on the cluster."""
    state = tmp_path_factory.mktemp("state")
    with KillableServer(state, "--queue", "999", environment=cluster.environment) as one:
        yield one


def killed(server: KillableServer, run_id: str, mark: str) -> float:
    """Kills a run, of which nothing may be left then; answers the seconds."""
    begin = time.monotonic()
    answer = server.stub.Kill(pb.KillRequest(run_id=run_id), timeout=60)
    seconds = time.monotonic() - begin
    assert answer.run.state == pb.RUN_STATE_KILLED
    assert remains(mark) == {}
    assert finish(server.stub, run_id).run == answer.run
    return seconds


def told(what: str, seconds: list[float]) -> None:
    """Says how long it took."""
    ordered = sorted(seconds)
    middle, late = ordered[len(ordered) // 2], ordered[int(0.99 * len(ordered))]
    figure(f"{len(seconds)} kills {what}: median {1000 * middle:.0f} ms, p99 {1000 * late:.0f} ms")


@pytest.mark.parametrize("group", ["all but the storm", "fork storm"])
def test_kill_of_trees(server: KillableServer, gate: Gate, group: str) -> None:
    """Every kind of tree is gone when Kill answers."""
    names = [name for name in TREES if (name == "fork storm") == (group == "fork storm")]
    taken = []
    for name in names * ROUNDS:
        mark = new_mark()
        environment = {RUN_MARK: mark, "NBR_GATE": str(gate.path)}
        with started(server.stub, inline(TREES[name][0], environment=environment)) as run:
            reach(server.stub, run.run_id, "cell_output")
            if "NBR_GATE" in TREES[name][0]:
                gate.open()
            taken.append(killed(server, run.run_id, mark))
    told(f"of running runs, {group}", taken)


def test_kill_of_queued_runs(server: KillableServer, gate: Gate) -> None:
    """Those that wait for a slot are gone at once, and those that have one go on."""
    with ExitStack() as stack:
        runs = [stack.enter_context(started(server.stub, inline(gate.source))) for _ in range(3)]
        for run in runs:
            reach(server.stub, run.run_id, "cell_started")
        waiting = [start(server.stub, inline(FOR_EVER)) for _ in range(10 * ROUNDS)]
        taken = [killed(server, run.run_id, "never") for run in waiting]
        # No slot was free until now: no Kill waited for one.
        gate.open(3)
        assert {finish(server.stub, run.run_id).run.state for run in runs} == {pb.RUN_STATE_SUCCEEDED}
    told("of queued runs", taken)


def test_kill_right_after_start(server: KillableServer) -> None:
    """Before the lease, between lease and job, while the kernel starts: one state, nothing left."""
    moments = random.Random(SEED)  # noqa: S311 - no secret
    figure(f"KILL_SEED={SEED}")
    taken = []
    for _ in range(20 * ROUNDS):
        mark = new_mark()
        run = start(server.stub, inline(FOR_EVER, environment={RUN_MARK: mark}))
        # The moment is what is tried here.
        threading.Event().wait(moments.choice([0.0, moments.uniform(0, LATEST)]))
        taken.append(killed(server, run.run_id, mark))
    told("right after Start", taken)
    # Every slot is free again.
    for _ in range(4):
        assert perform(server.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED
