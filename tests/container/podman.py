"""Podman: images that are built, and pods that are started from manifests."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import grpc
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.container.manifests import Manifest, for_podman
from tests.support.pages import REPOSITORY

PODMAN = shutil.which("podman") or "podman"
BUILD_SECONDS = 600.0
SECONDS = 60.0
# Kubernetes gives a volume to the pod's group (fsGroup), not to its user.
GROUP = 65532
_AT_ONCE = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200)]


def podman(*arguments: str, timeout: float = SECONDS, code: int | None = 0, sent: str | None = None) -> str:
    """What podman prints; it ends with this code (None: with any)."""
    done = subprocess.run(
        [PODMAN, *arguments],
        input=sent,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        # When a container runs out of memory, its monitor leaves a file where it was started.
        cwd=tempfile.gettempdir(),
    )
    assert code is None or done.returncode == code, f"{arguments}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    printed: str = done.stdout
    return printed


def build(target: str, file: Path = REPOSITORY / "Dockerfile", folder: Path = REPOSITORY) -> str:
    """Builds a target and answers the image's name. What was built before comes from podman's cache."""
    image = f"localhost/notebook-runner-test:{target}"
    # Only Docker's own format has a health check; the base image may be one that no registry has.
    options = ["--format=docker", "--isolation=chroot", "--layers", f"--tag={image}"]
    if file == REPOSITORY / "Dockerfile":
        options.append(f"--target={target}")
    podman("build", *options, f"--file={file}", str(folder), timeout=BUILD_SECONDS)
    return image


def run(image: str, *command: str, code: int | None = 0) -> str:
    """What a program prints in a container that has nothing but the image, and may write nothing."""
    entry, *arguments = command
    options = ["--rm", "--network=none", "--read-only", "--no-healthcheck", f"--entrypoint={entry}"]
    return podman("run", *options, image, *arguments, code=code)


def inspected(image: str) -> dict[str, Any]:
    """What an image says of itself."""
    (found,) = json.loads(podman("image", "inspect", image))
    told: dict[str, Any] = found
    return told


def inspected_container(name: str) -> dict[str, Any]:
    """What podman knows of a container."""
    (found,) = json.loads(podman("container", "inspect", name))
    told: dict[str, Any] = found
    return told


@dataclass(frozen=True)
class Process:
    """A process in a container: the machine's number of it, its state, and its command."""

    pid: int
    state: str
    command: str


def status(pid: int) -> dict[str, list[str]]:
    """What Linux tells of a process; empty: it has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {key: value.split() for key, _, value in (line.partition(":") for line in lines)}


def volume(folder: Path) -> Path:
    """A folder with the owner and the mode that Kubernetes gives to a volume of a pod with an fsGroup."""
    folder.mkdir()
    os.chown(folder, 0, GROUP)
    folder.chmod(0o2775)
    return folder


def mounted(folder: Path, volume_: Manifest, secrets: Mapping[str, Mapping[str, str]]) -> Path:
    """A folder with the files of a Secret's volume, with the owner and the mode that the kubelet gives."""
    secret = volume_["secret"]
    files = secrets[secret["secretName"]]
    named = [(one["key"], one["path"]) for one in secret.get("items", [])] or [(key, key) for key in files]
    made = folder / str(volume_["name"])
    made.mkdir()
    for key, name in named:
        (made / name).write_text(files[key])
        os.chown(made / name, 0, GROUP)
        (made / name).chmod(secret["defaultMode"])
    return made


class Pod:
    """A pod of the manifests between `with` and its end.

    Args:
        found: The rendered manifests.
        pod: The one of them to start.
        image: The image.
        name: What all names begin with.
        environment: More variables.
        secrets: The files of the Secrets that it mounts, by the Secrets' names.
        claims: The folders of the volumes that it claims.
        exchanged: Texts in the container, and those in their place.
    """

    def __init__(
        self,
        found: list[Manifest],
        pod: Manifest,
        image: str,
        *,
        name: str = "",
        environment: Mapping[str, str],
        secrets: Mapping[str, Mapping[str, str]],
        claims: Mapping[str, Path] | None = None,
        exchanged: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name or f"nbr-{uuid4().hex[:8]}"
        (container,) = pod["spec"]["containers"]
        self.container = f"{self.name}-{container['name']}"
        self._secrets = Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        folders = {
            one["name"]: mounted(self._secrets, one, secrets)
            for one in pod["spec"]["volumes"]
            if "secret" in one
        }
        documents = for_podman(
            found, pod, self.name, image, environment, folders, claims or {}, exchanged or {}
        )
        self._manifest = yaml.safe_dump_all(documents)
        self._maps = [one["metadata"]["name"] for one in documents if one["kind"] == "ConfigMap"]

    def play(self) -> None:
        """Starts it."""
        podman("play", "kube", "-", sent=self._manifest)

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.callback(self.remove)
            self.play()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Leaves nothing of the pod but the folders of its claims."""
        podman("pod", "rm", "--force", "--time=0", self.name, code=None)
        podman("volume", "rm", "--force", *self._maps, code=None)
        shutil.rmtree(self._secrets, ignore_errors=True)

    def execute(self, *command: str, code: int | None = 0) -> str:
        """What a program prints in the container."""
        return podman("exec", self.container, *command, code=code)

    def wait(self) -> None:
        """Waits until the container has ended, and the pod with it."""
        # The pod's own container ends after its last one; while it ends, nothing of the pod can be started.
        infra = podman("pod", "inspect", "--format={{.InfraContainerID}}", self.name).strip()
        podman("wait", self.container, infra)

    def text(self) -> str:
        """All that the container has printed."""
        command = [PODMAN, "logs", self.container]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
        return str(done.stdout + done.stderr)

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines of it that are JSON."""
        return [json.loads(line) for line in self.text().splitlines() if line.startswith("{")]

    @property
    def state(self) -> dict[str, Any]:
        """The container's state, as podman tells it."""
        told: dict[str, Any] = inspected_container(self.container)["State"]
        return told

    def processes(self) -> list[Process]:
        """All processes in the container, from outside."""
        space = os.readlink(f"/proc/{self.state['Pid']}/ns/pid")
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(folder / "ns/pid") == space:
                    state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                    command = (folder / "cmdline").read_text().replace("\0", " ")
                    found.append(Process(int(folder.name), state, command))
            except OSError:
                continue  # it has just ended
        return sorted(found, key=lambda one: one.pid)


def ready(target: str, credentials: grpc.ChannelCredentials | None = None) -> None:
    """Waits until a server takes connections."""
    if credentials is None:
        channel = grpc.insecure_channel(target, _AT_ONCE)
    else:
        channel = grpc.secure_channel(target, credentials, _AT_ONCE)
    with channel:
        grpc.channel_ready_future(channel).result(SECONDS)


def draining(target: str) -> None:
    """Waits until a server drains; it is alive meanwhile."""
    with grpc.insecure_channel(target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        states = health.Watch(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        next(one for one in states if one.status == one.NOT_SERVING)
        alive = health.Check(health_pb2.HealthCheckRequest(service="liveness"), timeout=SECONDS)
        assert alive.status == alive.SERVING
