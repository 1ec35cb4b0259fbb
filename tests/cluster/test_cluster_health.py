"""What a server says of a cluster that is not there, or has workers that cannot execute notebooks."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import finish, inline, perform, reach, started, texts
from tests.support.cluster import SLOT, Cluster
from tests.support.errors import refused
from tests.support.gate import Gate
from tests.support.polling import pause
from tests.support.server import Server

SECONDS = 60.0
NOT_READY = (grpc.StatusCode.UNAVAILABLE, "NOT_READY")
# What a worker executes before it meets the server.
OLD = "from notebook_runner_server.execution.cluster import messages\nmessages.VERSION = '0.0.1'\n"
BARE = "import sys\nsys.modules['notebook_runner_server'] = None\n"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One worker, which each test leaves well."""
    with Cluster(tmp_path_factory.mktemp("cluster"), workers=1) as running:
        yield running


@pytest.fixture
def serve(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers on the cluster, with variables that win over its own."""
    with ExitStack() as servers:

        def one(*options: str, **variables: str) -> Server:
            environment = {**cluster.environment, "NOTEBOOK_RUNNER_CLUSTER_RUNS": "0", **variables}
            state = tmp_path / f"state-{time.monotonic_ns()}"
            return servers.enter_context(Server(state, *options, environment=environment))

        yield one


def told(server: Server) -> pb.InfoResponse:
    """What the server says of itself."""
    return server.stub.Info(pb.InfoRequest(), timeout=60)


def until(server: Server, holds: Callable[[pb.InfoResponse], bool]) -> pb.InfoResponse:
    """Waits until this holds for what the server says of itself."""
    end = time.monotonic() + SECONDS
    while not holds(info := told(server)):
        assert time.monotonic() < end, f"{info}\n{server.tail()}"
        pause()
    return info


def start_of(server: Server, **fields: str) -> Callable[[], object]:
    """A Start of a small notebook."""
    return lambda: server.stub.Start(inline("1", **fields), timeout=60)


def test_a_server_is_there_before_its_cluster(cluster: Cluster, serve: Callable[..., Server]) -> None:
    """It answers all calls but Start, and that one when a worker is there, whose kernels it then knows."""
    cluster.kill_scheduler()
    server = serve()
    health = health_pb2_grpc.HealthStub(server.channel)
    assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
    assert (told(server).workers, len(told(server).kernels)) == (0, 0)
    assert list(server.stub.List(pb.ListRequest(), timeout=60).runs) == []
    for name in ("", "python3", "no-such-kernel"):
        refusal = refused(start_of(server, kernel_name=name))
        assert refusal.kind == NOT_READY
        assert 0 < refusal.retry_seconds < 10
    server.logged(
        "dask_scheduler_unreachable",
        cluster.environment["NOTEBOOK_RUNNER_EXECUTOR"].rpartition("/")[2],
    )

    cluster.restart()
    info = until(server, lambda info: info.workers == 1)
    assert [one.language for one in info.kernels if one.name == "python3"] == ["python"]
    assert refused(start_of(server, kernel_name="no-such-kernel")).reason == "UNKNOWN_KERNEL"
    assert perform(server.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED


def test_kept_kernels_are_told_as_they_are_now(serve: Callable[..., Server]) -> None:
    """A worker's two kernels are counted whenever that changes, as on one machine."""
    server = serve("--warm-kernels", "python3=2")

    def python(info: pb.InfoResponse) -> pb.KernelInfo:
        return next((one for one in info.kernels if one.name == "python3"), pb.KernelInfo())

    until(server, lambda info: (python(info).warm_ready, python(info).warm_wanted) == (2, 2))


@pytest.mark.parametrize(
    ("start", "options", "why"),
    [
        ("", (), ""),
        (OLD, SLOT, "version 0.0.1 differs"),
        (BARE, SLOT, "notebook_runner_server"),
    ],
    ids=["without the resource", "of another version", "without the package"],
)
def test_a_worker_that_is_not_fit_gets_no_runs(
    cluster: Cluster,
    serve: Callable[..., Server],
    tmp_path: Path,
    gate: Gate,
    start: str,
    options: tuple[str, ...],
    why: str,
) -> None:
    """The log says why, the server has the slots of the others, and they execute all runs."""
    preload = tmp_path / "preload.py"
    preload.write_text(start)
    cluster.start_worker("unfit", more=(*options, "--preload", str(preload)))
    cluster.wait(2)
    server = serve("--queue", "3")
    try:
        until(server, lambda info: info.workers == 1)
        if why:
            server.logged("dask_worker_refused", why)
        source = f"import os; print(os.getpid(), flush=True)\n{gate.source}"
        with ExitStack() as stack:
            runs = [stack.enter_context(started(server.stub, inline(source))) for _ in range(3)]
            reach(server.stub, runs[0].run_id, "cell_started")
            assert (told(server).workers, told(server).runs_queued) == (1, 2)
            gate.open(3)
            pids = [texts(finish(server.stub, run.run_id).events) for run in runs]
        assert len(pids) == 3
    finally:
        cluster.stop_worker("unfit")


@pytest.mark.cluster_long
def test_settings_that_no_worker_can_meet(serve: Callable[..., Server]) -> None:
    """The log says which, nothing starts, and the next server's settings are taken."""
    server = serve("--warm-kernels", "missing=1")
    server.logged("dask_worker_refused", "unknown kernelspec 'missing'")
    assert refused(start_of(server)).kind == NOT_READY
    server.stop()
    server = serve()
    until(server, lambda info: info.workers == 1)
    assert perform(server.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED


def test_a_cluster_that_does_not_trust_the_server(
    cluster: Cluster, serve: Callable[..., Server], tmp_path: Path
) -> None:
    """The log says so, nothing starts, and a certificate that it trusts is taken when it is there."""
    pair = tmp_path / "pair.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pair)
    names = [f"DASK_DISTRIBUTED__COMM__TLS__CLIENT__{kind}" for kind in ("CERT", "KEY")]
    server = serve(**dict.fromkeys(names, str(pair)))
    server.logged("dask_scheduler_unreachable", "certificates of the same CA")
    assert refused(start_of(server)).kind == NOT_READY
    shutil.copyfile(cluster.environment[names[0]], pair)
    until(server, lambda info: info.workers == 1)
    assert perform(server.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED


@pytest.mark.cluster_long
def test_a_cluster_without_tls(tmp_path: Path) -> None:
    """It is reached as dask://HOST:PORT, and executes runs."""
    folder = tmp_path / "plain"
    folder.mkdir()
    with (
        Cluster(folder, workers=1, tls=False) as plain,
        Server(tmp_path / "state", environment=plain.environment) as server,
    ):
        assert plain.environment["NOTEBOOK_RUNNER_EXECUTOR"].startswith("dask://")
        until(server, lambda info: info.workers == 1)
        assert perform(server.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED
