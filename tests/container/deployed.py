"""The server's pod, as a cluster has it: with its history, and with tokens and certificates in Secrets."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import grpc
import trustme

from notebook_runner import Client
from tests.container.manifests import BASE, Manifest, find, pod_of, rendered
from tests.container.podman import Pod, ready, volume
from tests.support.ports import free_port
from tests.support.server import PROGRAM


def certificate(*names: str) -> dict[str, str]:
    """What cert-manager puts into a Secret: a certificate, its key, and their authority."""
    authority = trustme.CA()
    issued = authority.issue_cert(*names)
    files = {
        "tls.crt": b"".join(blob.bytes() for blob in issued.cert_chain_pems),
        "tls.key": issued.private_key_pem.bytes(),
        "ca.crt": authority.cert_pem.bytes(),
    }
    return {name: content.decode() for name, content in files.items()}


class Deployed:
    """The server's pod, on a free port.

    Args:
        folder: Where history and tokens are.
        image: The image.
        manifests: What an overlay brings; None: the base.
        tls: The files of the certificate's Secret; None: without TLS.
        secrets: The files of more Secrets, by their names.
        exchanged: Texts in the container, and those in their place.

    Attributes:
        image: The same.
        secrets: The files of all Secrets, by their names.
    """

    def __init__(
        self,
        folder: Path,
        image: str,
        manifests: list[Manifest] | None = None,
        tls: Mapping[str, str] | None = None,
        secrets: Mapping[str, Mapping[str, str]] | None = None,
        exchanged: Mapping[str, str] | None = None,
    ) -> None:
        self.image, self._tls, self._exchanged = image, tls, exchanged
        self._found = manifests or rendered(BASE)
        self._name = f"nbr-{uuid4().hex[:8]}"
        tokens = folder / "tokens"
        command = [str(PROGRAM), "--tokens-file", str(tokens), "--new-token", "test:run"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        self.token: str = done.stdout.strip()
        self.secrets = {"notebook-runner-tokens": {"tokens": tokens.read_text()}, **(secrets or {})}
        self._authority: Path | None = None
        if tls:
            self.secrets["notebook-runner-tls"] = dict(tls)
            self._authority = folder / "ca.crt"
            self._authority.write_text(tls["ca.crt"])
        self._history = volume(folder / "history")

    def play(self) -> None:
        """Starts the pod, and waits until it serves."""
        port = free_port()
        self.target = f"localhost:{port}"
        self.pod = Pod(
            self._found,
            pod_of(find(self._found, "Deployment")),
            self.image,
            name=self._name,
            environment={
                "NOTEBOOK_RUNNER_LISTEN": f"0.0.0.0:{port}",
                "NOTEBOOK_RUNNER_TARGET": self.target,
                # The port of metrics is the machine's as well.
                "NOTEBOOK_RUNNER_METRICS_LISTEN": "127.0.0.1:0",
            },
            secrets=self.secrets,
            claims={"notebook-runner-history": self._history},
            exchanged=self._exchanged,
        )
        self.pod.play()
        roots = self._tls["ca.crt"].encode() if self._tls else None
        ready(self.target, grpc.ssl_channel_credentials(roots) if roots else None)

    def client(self) -> Client:
        """A client that has the token, and trusts the authority."""
        return Client(self.target, token=self.token, tls_ca=self._authority)

    def remove(self) -> None:
        """Leaves nothing behind but the folder."""
        self.pod.remove()
