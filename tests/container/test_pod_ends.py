"""How the server's pod ends and comes back: drained, killed, or on another machine with the same volume."""

import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from notebook_runner import Client
from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.container.deployed import Deployed
from tests.container.podman import SECONDS, podman, ready
from tests.support.calls import inline

DRAIN_SECONDS = 300
# A gate of which the container knows no more than an address.
GATE = """
import socket
print("begun", flush=True)
with socket.create_connection(("127.0.0.1", {port})) as gate:
    gate.recv(1)
print("ended")
"""


@contextmanager
def waiting(client: Client) -> Iterator[tuple[pb.Run, socket.socket]]:
    """A run that goes on until something is sent to it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(SECONDS)
        source = GATE.format(port=listener.getsockname()[1])
        run = client.start(inline(source).notebook_content)
        gate, _ = listener.accept()
        with gate:
            yield run, gate


def follow(client: Client, run: pb.Run) -> pb.Run:
    """The run, when it has ended."""
    *_, last = client.progress(run.run_id)
    return last.run_changed


def test_stop_drains(deploy: Callable[..., Deployed]) -> None:
    """SIGTERM reaches the server through the init: the run goes on to its end, and then all ends with 0."""
    deployed = deploy()
    with deployed.client() as client, waiting(client) as (run, gate), ThreadPoolExecutor(1) as threads:
        events = client.progress(run.run_id)
        next(event for event in events if event.HasField("cell_output"))
        stopped = threads.submit(podman, "stop", f"--time={DRAIN_SECONDS}", deployed.pod.container)
        with grpc.insecure_channel(deployed.target) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            states = health.Watch(health_pb2.HealthCheckRequest(), timeout=SECONDS)
            next(one for one in states if one.status == one.NOT_SERVING)
            alive = health.Check(health_pb2.HealthCheckRequest(service="liveness"), timeout=SECONDS)
            assert alive.status == alive.SERVING
        gate.send(b"x")
        *_, last = events
        assert last.run_changed.state == pb.RUN_STATE_SUCCEEDED, last
        stopped.result(SECONDS)
    assert deployed.pod.state["ExitCode"] == 0
    assert [line["event"] for line in deployed.pod.log][-1] == "server_stopped"


def test_a_killed_pod_finds_its_history(deploy: Callable[..., Deployed]) -> None:
    """SIGKILL loses nothing that was told of: neither for the container started again, nor for a new pod."""
    deployed = deploy()
    with deployed.client() as client:
        kept = follow(client, client.start(inline("6 * 7").notebook_content))
        with waiting(client) as (lost, _):
            podman("kill", f"--signal={signal.SIGKILL.name}", deployed.pod.container)
            deployed.pod.wait()
    podman("start", deployed.pod.container)
    ready(deployed.target)
    expect(deployed, kept, lost)
    deployed.pod.remove()
    deployed.play()
    expect(deployed, kept, lost)


def expect(deployed: Deployed, kept: pb.Run, lost: pb.Run) -> None:
    """One run succeeded and its result is there; the other was interrupted, and what it printed is kept."""
    with deployed.client() as client:
        states = {run.run_id: run.state for run in client.list()}
        assert states == {kept.run_id: pb.RUN_STATE_SUCCEEDED, lost.run_id: pb.RUN_STATE_INTERRUPTED}
        assert b"42" in client.output(kept.run_id)
        assert b"begun" in client.output(lost.run_id)
