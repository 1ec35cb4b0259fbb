"""What Kubernetes does before it stops a Dask worker's pod: the run there may finish, and no other comes.

Each test uses up one of three workers.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import finish, inline, perform, reach, start
from tests.support.cluster import Cluster
from tests.support.gate import Gate
from tests.support.killable import KillableServer

pytestmark = pytest.mark.cluster_long

SECONDS = 60.0
PROGRAM = (sys.executable, "-m", "notebook_runner_server.execution.cluster.drain")
SHOW = "import os; print(os.getpid(), flush=True)\n"
Serve = Callable[..., KillableServer]


def drains(program: subprocess.Popen[str]) -> str:
    """The addresses of the workers that take no further run, when it has come to that."""
    assert program.stdout is not None
    return program.stdout.readline().removeprefix("draining: ").strip()


@contextmanager
def draining(cluster: Cluster, name: str, seconds: float = SECONDS) -> Iterator[subprocess.Popen[str]]:
    """The program that drains a worker, with the variables that a worker's container has."""
    address = cluster.environment["NOTEBOOK_RUNNER_EXECUTOR"].removeprefix("dask+")
    told = {"DASK_SCHEDULER_ADDRESS": address, "DASK_WORKER_NAME": name}
    environment = {**os.environ, **cluster.environment, **told}
    command = [*PROGRAM, str(seconds)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as program:
        try:
            yield program
        finally:
            program.kill()


def worker_of(cluster: Cluster, server: KillableServer, run: pb.Run) -> str:
    """The name of the worker that has a run which has printed its process."""
    event = reach(server.stub, run.run_id, "cell_output")
    return cluster.worker_of(int(event.cell_output.stream.text))[0]


def test_a_drained_worker_finishes_its_run_and_gets_no_other(
    cluster: Cluster, serve: Serve, gate: Gate
) -> None:
    """The program waits for the run, and ends when there is nothing to do; further runs go elsewhere."""
    server = serve()
    run = start(server.stub, inline(SHOW + gate.source))
    drained = worker_of(cluster, server, run)
    with draining(cluster, drained) as program:
        assert drains(program)
        while server.stub.Info(pb.InfoRequest(), timeout=60).workers != 2:
            assert program.poll() is None
        assert perform(server.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED
        assert program.poll() is None
        gate.open()
        assert finish(server.stub, run.run_id).run.state == pb.RUN_STATE_SUCCEEDED
        assert program.wait(SECONDS) == 0
    others = [start(server.stub, inline(SHOW + gate.source)) for _ in range(2)]
    assert {worker_of(cluster, server, one) for one in others} == cluster.workers.keys() - {drained}
    gate.open(2)
    for one in others:
        assert finish(server.stub, one.run_id).run.state == pb.RUN_STATE_SUCCEEDED


def test_draining_has_an_end(cluster: Cluster, serve: Serve, gate: Gate) -> None:
    """After its time it gives up, so that the worker is ended in order; the run goes on until then."""
    server = serve()
    run = start(server.stub, inline(SHOW + gate.source))
    with draining(cluster, worker_of(cluster, server, run), 2) as program:
        assert drains(program)
        assert program.wait(SECONDS) != 0
    gate.open()
    assert finish(server.stub, run.run_id).run.state == pb.RUN_STATE_SUCCEEDED


def test_a_worker_that_dies_is_drained(cluster: Cluster, serve: Serve) -> None:
    """It waits for nobody who is gone: a worker that ends meanwhile, or one that never was."""
    server = serve()
    run = start(server.stub, inline(SHOW + "import time; time.sleep(1000)"))
    drained = worker_of(cluster, server, run)
    with draining(cluster, drained) as program, draining(cluster, "nobody") as other:
        assert drains(program)
        cluster.stop_worker(drained)
        ended = finish(server.stub, run.run_id).run
        assert (ended.state, ended.failure.cause) == (pb.RUN_STATE_CRASHED, pb.FAILURE_CAUSE_WORKER_DIED)
        assert (program.wait(SECONDS), other.wait(SECONDS)) == (0, 0)
