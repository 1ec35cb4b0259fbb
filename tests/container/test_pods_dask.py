"""Server, scheduler and workers as the overlay starts them: a pod each, and they find each other."""

import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import nbformat
import pytest

from notebook_runner import Client, FailureCause, Run, RunState
from tests.container.deployed import Deployed, certificate
from tests.container.manifests import FOLDER, container_of, find, pod_of, rendered
from tests.container.podman import SECONDS, Pod, podman, status
from tests.container.test_pod import CAPABILITIES
from tests.support.polling import pause
from tests.support.ports import free_port

OVERLAY = FOLDER / "overlays/dask"
NAME = "notebook-runner-dask"
WORKERS = ("worker-a", "worker-b")
NOTEBOOK = "waits.ipynb"
# It goes on until something is sent to it. What it has started tells in which container it is.
WAITS = """
import socket, subprocess
try:
    print(len(open("/run/notebook-runner/dask/tls.key").read()))
except OSError:
    print("denied")
started = subprocess.Popen(["sleep", str(port)])
with socket.create_connection(("127.0.0.1", port)) as gate:
    gate.recv(1)
"""


class Cluster:
    """The pods of the overlay, with a certificate as cert-manager would make it.

    Attributes:
        server: The server's pod.
        workers: The pods of the workers, by name.
        scheduler: The port of the scheduler.
        health: The ports of HTTP, the scheduler's and the workers'.
    """

    def __init__(self, folder: Path, image: str, undo: ExitStack) -> None:
        self._image, self._undo, self._found = image, undo, rendered(OVERLAY)
        find(self._found, "ConfigMap", "notebook-runner-notebooks")["data"][NOTEBOOK] = notebook()
        self._secrets = {f"{NAME}-tls": certificate(NAME)}
        self.scheduler, self.health = free_port(), list[int]()
        self._service = {f"{NAME}:8786": f"localhost:{self.scheduler}"}
        self._pod("scheduler", {"=8786": f"={self.scheduler}"}, {})
        self.workers = {name: self._worker(name) for name in WORKERS}
        self.server = Deployed(folder, image, self._found, secrets=self._secrets, exchanged=self._service)
        undo.callback(self.server.remove)
        self.server.play()

    def _worker(self, name: str) -> Pod:
        ports = {f"={port}": f"={free_port()}" for port in (8788, 8789)}
        return self._pod("worker", ports, {"DASK_WORKER_NAME": name})

    def _pod(self, role: str, ports: Mapping[str, str], environment: Mapping[str, str]) -> Pod:
        self.health.append(free_port())
        made = Pod(
            self._found,
            pod_of(find(self._found, "Deployment", f"{NAME}-{role}")),
            self._image,
            environment=environment,
            secrets=self._secrets,
            exchanged={**self._service, **ports, ":8787": f":{self.health[-1]}"},
        )
        return self._undo.enter_context(made)

    def wait(self, client: Client, workers: int) -> None:
        """Waits until the server has so many workers."""
        end = time.monotonic() + SECONDS
        while client.info().workers != workers:
            assert time.monotonic() < end, [pod.text() for pod in self.workers.values()]
            pause()


@pytest.fixture(scope="module")
def cluster(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A scheduler, two workers and a server; the tests use them up in their order."""
    with ExitStack() as undo:
        yield Cluster(tmp_path_factory.mktemp("cluster"), image, undo)


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    """A client of the server."""
    with cluster.server.client() as one:
        yield one


def notebook() -> str:
    """A notebook that waits, as an operator would put it into the ConfigMap."""
    parameters = nbformat.v4.new_code_cell("port = 0", metadata={"tags": ["parameters"]})
    cells = [parameters, nbformat.v4.new_code_cell(WAITS)]
    text: str = nbformat.writes(nbformat.v4.new_notebook(cells=cells))
    return text


@contextmanager
def waiting(client: Client) -> Iterator[tuple[Run, socket.socket]]:
    """A run that goes on until something is sent to it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(SECONDS)
        run = client.start(server_path=NOTEBOOK, parameters={"port": listener.getsockname()[1]})
        gate, _ = listener.accept()
        with gate:
            yield run, gate


def place(cluster: Cluster, gate: socket.socket) -> str:
    """The worker in whose container a run is; empty: it is gone."""
    started = f"sleep {gate.getsockname()[1]} "
    return "".join(
        name
        for name, pod in cluster.workers.items()
        if any(one.command == started for one in pod.processes())
    )


def test_runs_go_to_the_workers(cluster: Cluster, client: Client) -> None:
    """One goes on in each worker's pod; Kill ends one with all that it has started, the other goes on."""
    cluster.wait(client, len(WORKERS))
    with waiting(client) as (one, let_go), waiting(client) as (other, gate):
        assert {place(cluster, let_go), place(cluster, gate)} == set(WORKERS)
        assert other.kill().run.state is RunState.KILLED
        assert place(cluster, gate) == ""
        let_go.send(b"x")
        assert one.wait().ok
    # It could not read the worker's key.
    assert b'"denied\\n"' in one.output()


def test_what_the_processes_may_do(cluster: Cluster) -> None:
    """As in the server's pod: no process has root's number, a capability, or a way to get one."""
    processes = [one for pod in cluster.workers.values() for one in pod.processes()]
    found = {process: told for process in processes if (told := status(process.pid))}
    assert found
    for process, told in found.items():
        assert set(told["Uid"]) == set(told["Gid"]) == {"65532"}, process
        assert {int(told[f"Cap{one}"][0], 16) for one in CAPABILITIES} == {0}, process
        assert (told["NoNewPrivs"], told["Seccomp"]) == (["1"], ["2"]), process


def test_who_has_no_certificate_is_told_nothing(cluster: Cluster) -> None:
    """The scheduler hangs up on a caller without one; by HTTP all say that they are well, and no more."""
    assert refused(cluster.scheduler)
    for port in cluster.health:
        assert page(port, "health") == (200, b"ok")
        for path in ("", "status", "metrics", "info/main/workers.html", "api/v1/retire_workers"):
            assert page(port, path)[0] == 404


def refused(port: int) -> bool:
    """Whether a caller who trusts everybody and has no certificate hears nothing."""
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection(("127.0.0.1", port), SECONDS) as plain,
            nobody.wrap_socket(plain) as caller,
        ):
            return caller.recv(1) == b""
    except (ssl.SSLError, ConnectionError):
        return True


def page(port: int, path: str) -> tuple[int, bytes]:
    """The code and the text of a page."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=SECONDS) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_a_pod_that_is_stopped_finishes_its_run(cluster: Cluster, client: Client) -> None:
    """The hook of the manifests waits for the run, then SIGTERM ends the pod; the other takes the next."""
    container = container_of(find(rendered(OVERLAY), "Deployment", f"{NAME}-worker"))
    hook = container["lifecycle"]["preStop"]["exec"]["command"]
    with waiting(client) as (run, gate), ThreadPoolExecutor(1) as threads:
        name = place(cluster, gate)
        stopping = threads.submit(cluster.workers[name].execute, *hook)
        assert client.start().wait().ok
        assert not stopping.done()
        gate.send(b"x")
        assert run.wait().ok
        stopping.result(SECONDS)
    stopped = cluster.workers.pop(name)
    podman("stop", f"--time={SECONDS:.0f}", stopped.container)
    assert stopped.state["ExitCode"] == 0
    cluster.wait(client, len(cluster.workers))


def test_a_pod_that_is_killed_is_the_end_of_its_run(cluster: Cluster, client: Client) -> None:
    """The run is CRASHED, for its worker died; what is left of it has ended with the container."""
    with waiting(client) as (run, gate):
        podman("kill", "--signal=KILL", cluster.workers[place(cluster, gate)].container)
        ended = run.wait()
    assert ended.state is RunState.CRASHED
    assert ended.cause is FailureCause.WORKER_DIED, ended.failure
