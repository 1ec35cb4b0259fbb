"""The server's pod of the base, as a cluster has it: with its history, and with tokens in a Secret."""

import subprocess
from pathlib import Path
from uuid import uuid4

from container.manifests import BASE, find, pod_of, rendered
from container.podman import Pod, free_port, ready, volume
from support.server import PROGRAM

from notebook_runner import Client


class Deployed:
    """The server's pod of the base, on a free port, with its history and a token.

    Args:
        folder: Where history and token are.
        image: The image.
        environment: More variables of the server.
    """

    def __init__(self, folder: Path, image: str, **environment: str) -> None:
        self._folder, self._image = folder, image
        self._name = f"nbr-{uuid4().hex[:8]}"
        self._environment = environment
        command = [str(PROGRAM), "--tokens-file", str(folder / "tokens"), "--new-token", "test:run"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        self.token: str = done.stdout.strip()
        self._history = volume(folder / "history")

    def play(self) -> Pod:
        """Starts the pod, and waits until it serves."""
        port = free_port()
        self.target = f"127.0.0.1:{port}"
        found = rendered(BASE)
        listen = {"NOTEBOOK_RUNNER_LISTEN": f"0.0.0.0:{port}", "NOTEBOOK_RUNNER_TARGET": self.target}
        self.pod = Pod(
            found,
            pod_of(find(found, "Deployment")),
            self._image,
            name=self._name,
            # The port of metrics is the machine's as well.
            environment={**listen, "NOTEBOOK_RUNNER_METRICS_LISTEN": "127.0.0.1:0", **self._environment},
            secrets={"notebook-runner-tokens": {"tokens": (self._folder / "tokens").read_text()}},
            claims={"notebook-runner-history": self._history},
        )
        self.pod.__enter__()
        ready(self.target)
        return self.pod

    def client(self) -> Client:
        """A client that has the token."""
        return Client(self.target, token=self.token)

    def remove(self) -> None:
        """Leaves nothing behind but the folder."""
        self.pod.remove()
