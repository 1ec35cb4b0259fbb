"""Server, scheduler and workers as the overlay starts them: a pod each, and they find each other."""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from container.deployed import Deployed, certificate
from container.manifests import FOLDER, find, pod_of, rendered
from container.podman import SECONDS, Pod, free_port
from support.calls import inline

from notebook_runner import Client
from notebook_runner.v1 import notebook_runner_pb2 as pb

OVERLAY = FOLDER / "overlays/dask"
NAME = "notebook-runner-dask"
WORKERS = ("worker-a", "worker-b")
# The length of the sleep tells which run it is.
LONG = "import subprocess\nprint('begun', flush=True)\nsubprocess.run(['sleep', '{length}'])"


class Cluster:
    """The pods of the overlay, with a certificate as cert-manager would make it.

    Attributes:
        server: The server's pod.
        workers: The pods of the workers, by name.
        scheduler: The port of the scheduler.
        health: The ports of HTTP, the scheduler's and the workers'.
    """

    def __init__(self, folder: Path, image: str, undo: ExitStack) -> None:
        self._image, self._undo = image, undo
        self._secrets = {f"{NAME}-tls": certificate(NAME)}
        self.scheduler = free_port()
        self.health: list[int] = []
        self._pod("scheduler", {"=8786": f"={self.scheduler}"}, {})
        self.workers = {
            name: self._pod(
                "worker",
                {"=8788": f"={free_port()}", "=8789": f"={free_port()}"},
                {"DASK_WORKER_NAME": name},
            )
            for name in WORKERS
        }
        exchanged = self._address
        self.server = Deployed(folder, image, OVERLAY, secrets=self._secrets, exchanged=exchanged)
        undo.callback(self.server.remove)
        self.server.play()

    @property
    def _address(self) -> Mapping[str, str]:
        return {f"{NAME}:8786": f"localhost:{self.scheduler}"}

    def _pod(self, role: str, ports: Mapping[str, str], environment: Mapping[str, str]) -> Pod:
        found, health = rendered(OVERLAY), free_port()
        self.health.append(health)
        made = Pod(
            found,
            pod_of(find(found, "Deployment", f"{NAME}-{role}")),
            self._image,
            environment=environment,
            secrets=self._secrets,
            exchanged={**self._address, **ports, ":8787": f":{health}"},
        )
        return self._undo.enter_context(made)

    def logs(self) -> str:
        """What all have printed."""
        return "\n".join(pod.text()[-3000:] for pod in [self.server.pod, *self.workers.values()])


@pytest.fixture(scope="module")
def cluster(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A scheduler, two workers and a server."""
    with ExitStack() as undo:
        yield Cluster(tmp_path_factory.mktemp("cluster"), image, undo)


def slots(cluster: Cluster, client: Client, count: int) -> None:
    """Waits until the server has so many workers."""
    end = time.monotonic() + SECONDS
    while client.info().workers != count:
        assert time.monotonic() < end, cluster.logs()


def started(client: Client, length: int) -> pb.Run:
    """A run that sleeps, when its cell has begun."""
    run = client.start(inline(LONG.format(length=length)).notebook_content)
    next(event for event in client.progress(run.run_id) if event.HasField("cell_output"))
    return run


def place(cluster: Cluster, length: int) -> str:
    """The worker in whose container a run sleeps; empty: none."""
    return "".join(
        name
        for name, pod in cluster.workers.items()
        if any(one.command == f"sleep {length} " for one in pod.processes())
    )


def test_runs_go_to_the_workers(cluster: Cluster) -> None:
    """Two at once, one in each worker's pod; Kill leaves nothing there, and the other goes on."""
    with cluster.server.client() as client:
        slots(cluster, client, len(WORKERS))
        runs = {length: started(client, length) for length in (1001, 1002)}
        places = {length: place(cluster, length) for length in runs}
        assert set(places.values()) == set(WORKERS)
        for length, run in runs.items():
            assert client.kill(run.run_id).run.state == pb.RUN_STATE_KILLED
            assert place(cluster, length) == ""
        # The notebook of the ConfigMap.
        ended = client.wait(client.start().run_id)
        assert ended.state == pb.RUN_STATE_SUCCEEDED, ended
        assert b"hello world" in client.output(ended.run_id)
