"""A real nginx with the settings of the component `ingress`: streams, large requests and long calls pass."""

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc
from tests.container.manifests import FOLDER, rendered
from tests.container.nginx import Nginx
from tests.support.calls import SECONDS, finish, inline, reach, start
from tests.support.gate import Gate
from tests.support.http_client import HttpCaller
from tests.support.notebooks import content
from tests.support.server import Server

# Above nginx's default, which is 1 MiB.
LARGE = f"text = '{'x' * 2**21}'\nprint(len(text))"
STUBBORN = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("begun", flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with HTTP."""
    options = ("--http-listen", "127.0.0.1:0")
    with Server(tmp_path_factory.mktemp("state"), *options) as running:
        yield running


@pytest.fixture
def serve(server: Server, tmp_path: Path) -> Iterator[Callable[..., Nginx]]:
    """Starts nginx in front of a server, with changed annotations or with none."""
    found = [one for one in rendered(FOLDER / "overlays/ingress") if one["kind"] == "Ingress"]
    started: list[Nginx] = []

    def make(other: Server | None = None, **changed: str) -> Nginx:
        named = {name.replace("_", "-"): value for name, value in changed.items()}
        chosen = other or server
        backends = {"grpc": chosen.target, "http": chosen.http}
        started.append(Nginx(tmp_path, found, backends, named).__enter__())
        return started[-1]

    yield make
    for one in started:
        one.__exit__()


@pytest.fixture
def nginx(serve: Callable[..., Nginx]) -> Nginx:
    """As the manifests have it."""
    return serve()


def connected(nginx: Nginx) -> grpc.Channel:
    """A channel through nginx, over TLS."""
    return grpc.secure_channel(nginx.target, grpc.ssl_channel_credentials(nginx.ca.read_bytes()))


def caller(nginx: Nginx) -> HttpCaller:
    """A caller over HTTP through nginx, over TLS."""
    return HttpCaller(nginx.target, ssl.create_default_context(cafile=nginx.ca))


def killed(stub: rpc.NotebookRunnerStub, run_id: str, seconds: int = 3) -> pb.KillResponse:
    """The answer to a Kill that takes some seconds."""
    return stub.Kill(pb.KillRequest(run_id=run_id, grace_period=Duration(seconds=seconds)), timeout=SECONDS)


def test_grpc_through_nginx(nginx: Nginx, gate: Gate) -> None:
    """A large Start passes, events arrive while the run is active, and other services have their paths."""
    with connected(nginx) as channel:
        stub = rpc.NotebookRunnerStub(channel)
        run = start(stub, inline(f"{LARGE}\n{gate.source}"))
        reach(stub, run.run_id, "cell_output")
        gate.open()
        assert finish(stub, run.run_id).run.state == pb.RUN_STATE_SUCCEEDED
        request = health_pb2.HealthCheckRequest(service="readiness")
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=SECONDS)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("buffering", ["off", "on"])
def test_http_through_nginx(serve: Callable[..., Nginx], gate: Gate, buffering: str) -> None:
    """A large notebook passes, and events arrive when they happen, even if nginx buffers the rest."""
    http = caller(serve(proxy_buffering=buffering))
    run = http.call("POST", "/v1/runs", content(f"{LARGE}\n{gate.source}")).json["run"]
    events = http.events(f"/v1/runs/{run['runId']}/progress")
    assert any(event.WhichOneof("event") == "cell_output" for _, event in events)
    gate.open()
    *_, (_, last) = events
    assert last.run_changed.state == pb.RUN_STATE_SUCCEEDED
    for path in ("/openapi.json", "/docs", "/", "/start", f"/runs/{run['runId']}", "/page/main.js"):
        assert http.get(path).status == 200, path
    assert http.get("/readyz").status == 404


def test_a_call_that_takes_long(nginx: Nginx) -> None:
    """A Kill is answered after its grace period."""
    with connected(nginx) as channel:
        stub = rpc.NotebookRunnerStub(channel)
        run = start(stub, inline(STUBBORN))
        reach(stub, run.run_id, "cell_output")
        assert killed(stub, run.run_id).run.state == pb.RUN_STATE_KILLED


def test_the_time_out_is_about_silence(
    serve: Callable[..., Nginx], make_server: Callable[..., Server]
) -> None:
    """Heartbeats keep a stream open beyond nginx's time-out; a silent Kill is cut, and done nevertheless."""
    server = make_server("--http-listen", "127.0.0.1:0", "--heartbeat-interval", "0.2")
    with connected(serve(server, proxy_read_timeout="4")) as channel:
        stub = rpc.NotebookRunnerStub(channel)
        run = start(stub, inline(STUBBORN))
        reach(stub, run.run_id, "cell_output")
        stream = stub.Progress(pb.ProgressRequest(run_id=run.run_id), timeout=SECONDS)
        beats = (event for event in stream if event.WhichOneof("event") == "heartbeat")
        # Six seconds, at least.
        for _ in range(30):
            next(beats)
        with pytest.raises(grpc.RpcError) as cut:
            killed(stub, run.run_id, seconds=10)
        assert cut.value.code() is grpc.StatusCode.UNAVAILABLE
    assert finish(server.stub, run.run_id).run.state == pb.RUN_STATE_KILLED
