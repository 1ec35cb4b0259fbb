"""Servers with different settings on one Dask cluster: each run has the settings of its own server."""

from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import finish, inline, perform, reach, started
from tests.support.cluster import Cluster
from tests.support.gate import Gate
from tests.support.killable import KillableServer
from tests.support.notebooks import notebook

Busy = tuple[KillableServer, KillableServer, pb.Run]


@pytest.fixture
def two_slots(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of one worker that executes two runs at a time."""
    with Cluster(tmp_path, workers=0) as cluster:
        cluster.start_worker("worker", more=("--nthreads", "2", "--resources", "notebook=2"))
        cluster.wait(1)
        yield cluster


def served(cluster: Cluster, folder: Path, *more: str) -> KillableServer:
    """A server with a state folder and a notebook root of its own, where a notebook imports its neighbour."""
    root = folder / "root"
    root.mkdir(parents=True)
    (root / "neighbour.py").write_text(f"NAME = {folder.name!r}\n")
    nbformat.write(notebook("import neighbour", "print(neighbour.NAME)"), root / "importing.ipynb")
    options = ("--worker-timeout", "30", "--notebook-root", str(root), *more)
    return KillableServer(folder / "state", *options, environment=cluster.environment)


@pytest.fixture
def busy(two_slots: Cluster, tmp_path: Path, gate: Gate) -> Iterator[Busy]:
    """Two servers with different settings, and a run of the second one that waits at the gate."""
    with (
        served(two_slots, tmp_path / "first") as first,
        served(two_slots, tmp_path / "second") as second,
        started(second.stub, inline(gate.source)) as held,
    ):
        reach(second.stub, held.run_id, "cell_started")
        yield first, second, held


def test_a_later_server_changes_no_setting_of_an_earlier_one(two_slots: Cluster, tmp_path: Path) -> None:
    """A notebook runs in the notebook root of its own server, whichever server came to the cluster last."""
    with served(two_slots, tmp_path / "first") as first, served(two_slots, tmp_path / "second") as second:
        for server in (first, second, first):
            ended = perform(server.stub, pb.StartRequest(notebook_path="importing.ipynb"))
            assert ended.run.state == pb.RUN_STATE_SUCCEEDED, ended.run.failure


def test_a_run_waits_for_those_with_other_settings(busy: Busy, gate: Gate) -> None:
    """A worker executes no run with the settings of another server: its run waits, and delays no other."""
    first, second, held = busy
    with started(first.stub, pb.StartRequest(notebook_path="importing.ipynb")) as waiting:
        assert perform(second.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED
        assert first.stub.Get(pb.GetRequest(run_id=waiting.run_id)).run.state == pb.RUN_STATE_STARTING
        gate.open()
        assert finish(second.stub, held.run_id).run.state == pb.RUN_STATE_SUCCEEDED
        ended = finish(first.stub, waiting.run_id)
        assert ended.run.state == pb.RUN_STATE_SUCCEEDED, ended.run.failure


def test_a_run_goes_where_its_settings_are(two_slots: Cluster, busy: Busy, gate: Gate) -> None:
    """A run is executed by a free worker while the other worker has other settings."""
    first, second, held = busy
    two_slots.start_worker("other")
    with started(first.stub, pb.StartRequest(notebook_path="importing.ipynb")) as run:
        assert finish(first.stub, run.run_id).run.state == pb.RUN_STATE_SUCCEEDED
    gate.open()
    assert finish(second.stub, held.run_id).run.state == pb.RUN_STATE_SUCCEEDED


def test_a_worker_that_cannot_have_the_settings_is_refused(
    two_slots: Cluster, tmp_path: Path, gate: Gate
) -> None:
    """That is found only when the other server's run has ended; the waiting run waits on."""
    with (
        served(two_slots, tmp_path / "first") as first,
        started(first.stub, inline(gate.source)) as held,
    ):
        reach(first.stub, held.run_id, "cell_started")
        with (
            served(two_slots, tmp_path / "second", "--warm-kernels", "missing=1") as second,
            started(second.stub, inline("1")) as waiting,
        ):
            gate.open()
            finish(first.stub, held.run_id)
            second.logged("dask_worker_refused", "unknown kernelspec 'missing'")
            assert second.stub.Get(pb.GetRequest(run_id=waiting.run_id)).run.state == pb.RUN_STATE_STARTING
