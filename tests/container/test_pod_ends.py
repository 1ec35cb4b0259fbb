"""How the server's pod ends and comes back: drained, killed, or on another machine with the same volume."""

import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from notebook_runner import Client, Printed, Run, RunState, StateChanged
from tests.container.deployed import Deployed
from tests.container.podman import SECONDS, draining, podman, ready
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
def waiting(client: Client) -> Iterator[tuple[Run, socket.socket]]:
    """A run that goes on until something is sent to it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(SECONDS)
        source = GATE.format(port=listener.getsockname()[1])
        run = client.start(inline(source).notebook_content)
        gate, _ = listener.accept()
        with gate:
            yield run, gate


def test_stop_drains(deploy: Callable[..., Deployed]) -> None:
    """SIGTERM reaches the server through the init: the run goes on to its end, and then all ends with 0."""
    deployed = deploy()
    with deployed.client() as client, waiting(client) as (run, gate), ThreadPoolExecutor(1) as threads:
        events = run.progress()
        next(event for event in events if isinstance(event, Printed))
        stopped = threads.submit(podman, "stop", f"--time={DRAIN_SECONDS}", deployed.pod.container)
        draining(deployed.target)
        gate.send(b"x")
        *_, last = events
        assert isinstance(last, StateChanged)
        assert last.run.ok, last
        stopped.result(SECONDS)
    assert deployed.pod.state["ExitCode"] == 0
    assert [line["event"] for line in deployed.pod.log][-1] == "server_stopped"


def test_a_killed_pod_finds_its_history(deploy: Callable[..., Deployed]) -> None:
    """SIGKILL loses nothing that was told of: neither for the container started again, nor for a new pod."""
    deployed = deploy()
    with deployed.client() as client:
        kept = client.run(inline("6 * 7").notebook_content)
        with waiting(client) as (lost, _):
            podman("kill", f"--signal={signal.SIGKILL.name}", deployed.pod.container)
            deployed.pod.wait()
    podman("start", deployed.pod.container)
    ready(deployed.target)
    expect(deployed, kept, lost)
    deployed.pod.remove()
    deployed.play()
    expect(deployed, kept, lost)


def expect(deployed: Deployed, kept: Run, lost: Run) -> None:
    """One run succeeded and its result is there; the other was interrupted, and what it printed is kept."""
    with deployed.client() as client:
        states = {run.id: run.state for run in client.runs()}
        assert states == {kept.id: RunState.SUCCEEDED, lost.id: RunState.INTERRUPTED}
        assert b"42" in client.output(kept.id)
        assert b"begun" in client.output(lost.id)
