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


@pytest.fixture
def two_slots(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of one worker that executes two runs at a time."""
    with Cluster(tmp_path, workers=0) as cluster:
        cluster.start_worker("worker", more=("--nthreads", "2", "--resources", "notebook=2"))
        cluster.wait(1)
        yield cluster


def served(cluster: Cluster, folder: Path) -> KillableServer:
    """A server with a state folder and a notebook root of its own, where a notebook imports its neighbour."""
    root = folder / "root"
    root.mkdir(parents=True)
    (root / "neighbour.py").write_text(f"NAME = {folder.name!r}\n")
    nbformat.write(notebook("import neighbour", "print(neighbour.NAME)"), root / "importing.ipynb")
    options = ("--worker-timeout", "30", "--notebook-root", str(root))
    return KillableServer(folder / "state", *options, environment=cluster.environment)


def test_a_later_server_changes_no_setting_of_an_earlier_one(two_slots: Cluster, tmp_path: Path) -> None:
    """A notebook runs in the notebook root of its own server, whichever server came to the cluster last."""
    with served(two_slots, tmp_path / "first") as first, served(two_slots, tmp_path / "second") as second:
        for server in (first, second, first):
            ended = perform(server.stub, pb.StartRequest(notebook_path="importing.ipynb"))
            assert ended.run.state == pb.RUN_STATE_SUCCEEDED, ended.run.failure


def test_a_run_waits_for_those_with_other_settings(two_slots: Cluster, tmp_path: Path, gate: Gate) -> None:
    """A worker executes no run with the settings of another server: its run waits until theirs have ended."""
    with (
        served(two_slots, tmp_path / "first") as first,
        served(two_slots, tmp_path / "second") as second,
        started(second.stub, inline(gate.source)) as held,
    ):
        reach(second.stub, held.run_id, "cell_started")
        with (
            started(first.stub, pb.StartRequest(notebook_path="importing.ipynb")) as waiting,
            # A later run of the other server does not overtake it.
            started(second.stub, inline("1")) as later,
        ):
            gate.open()
            for server, run in ((second, held), (first, waiting), (second, later)):
                ended = finish(server.stub, run.run_id)
                assert ended.run.state == pb.RUN_STATE_SUCCEEDED, ended.run.failure
