"""Parts of a cluster die at random moments: every run has one end, and is executed at most once.

`CHAOS_ROUNDS=200 pytest tests/cluster/test_cluster_chaos.py -s` plays longer; CHAOS_SEED plays the same.
"""

import os
import random
import secrets
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import grpc
import pytest
from typing_extensions import override

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.faults.harness import Chaos, Received
from tests.support.cluster import Cluster
from tests.support.killable import KillableServer, figure, worker_of
from tests.support.polling import pause
from tests.support.processes import stopped

pytestmark = pytest.mark.cluster_long

SEED = int(os.environ.get("CHAOS_SEED", "0")) or secrets.randbits(32)
ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "7"))
# Until the cluster is whole again.
WHOLE_SECONDS = 60.0
# What stands still for so long is not lost: --worker-timeout is more.
LONGEST_STOP = 2.0


@dataclass
class ClusterChaos(Chaos):
    """The same for servers on a cluster, whose parts die as well."""

    signals: ClassVar[Sequence[str]] = (*Chaos.signals, "dask worker", "nanny", "scheduler", "pause")

    cluster: Cluster | None = None

    @override
    def _strike(self, server: KillableServer, fault: str) -> None:
        assert self.cluster is not None
        if fault in Chaos.signals:
            return super()._strike(server, fault)
        if fault == "scheduler":
            self.cluster.kill_scheduler()
            return self.cluster.restart()
        try:
            name, worker = self.cluster.worker_of(worker_of(server))
        except LookupError:
            # No run goes on: then it is an idle one's turn.
            name, worker = self.cluster.any_worker()
        if fault == "pause":
            with stopped(worker):
                threading.Event().wait(self._random.uniform(0, LONGEST_STOP))
        elif fault == "nanny":
            self.cluster.kill_nanny(name)
            self.cluster.start_worker(name)
        else:
            os.kill(worker, signal.SIGKILL)
        return None

    @override
    def _failed(self, server: KillableServer, one: Received, error: grpc.RpcError) -> None:
        """Without a worker, a Start is told to come back."""
        if one.run_id or "NOT_READY" not in str(error.trailing_metadata()):
            super()._failed(server, one, error)

    @override
    def _answering(self) -> KillableServer:
        server, end = super()._answering(), time.monotonic() + WHOLE_SECONDS
        assert self.cluster is not None
        while self.stub(server).Info(pb.InfoRequest(), timeout=60).workers < len(self.cluster.workers):
            assert time.monotonic() < end, f"{server.tail()}\n{self.cluster.logs()}"
            pause()
        return server


@pytest.fixture(scope="module")
def chaos(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterChaos]:
    """One history for all rounds."""
    figure(f"CHAOS_SEED={SEED}")
    options = ("--queue", "4", "--worker-timeout", "6")
    folder = tmp_path_factory.mktemp("chaos")
    chaos = ClusterChaos(
        folder, SEED, options=options, environment=cluster.environment, has_retries=True, cluster=cluster
    )
    try:
        yield chaos
    finally:
        figure(chaos.summary() + "\n")
        chaos.close()


@pytest.mark.parametrize("first", range(0, ROUNDS, len(ClusterChaos.signals)))
def test_no_run_is_lost_or_executed_twice(chaos: ClusterChaos, first: int) -> None:
    """Each part of the cluster dies once, in any order, and no round ends with a broken promise."""
    kinds = random.Random(SEED + first).sample(ClusterChaos.signals, len(ClusterChaos.signals))  # noqa: S311 - no secret
    for kind in kinds:
        chaos.play(kind)
    assert chaos.violations == [], chaos.summary()
