"""Start Dask clusters for the benchmark: a scheduler and workers with nannies, with TLS."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import trustme
from distributed import Client, Security

PROGRAM = Path(sys.executable).with_name("dask")
HOST = "127.0.0.1"


class Cluster:
    """A scheduler, and workers that can be added.

    Args:
        folder: Holds certificates, logs and the workers' files.

    Attributes:
        executor: The value for a server's `--executor`.
        environment: The variables that every process of the cluster, and every client, needs.
        scheduler: The scheduler's process.
        nannies: The nannies' processes, each the parent of its worker.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port = probe.getsockname()[1]
        self._address = f"tls://{HOST}:{port}"
        self.executor = f"dask+{self._address}"
        self.environment: Mapping[str, str] = {**os.environ, **_certificates(folder)}
        options = ["--protocol", "tls", "--host", HOST, "--port", str(port), "--no-dashboard"]
        self.scheduler = self._start("scheduler", *options)
        self.nannies: list[subprocess.Popen[bytes]] = []

    def grow(self, workers: int) -> None:
        """Start workers with one slot each, until the cluster has that many."""
        options = ["--nworkers", "1", "--nthreads", "1", "--resources", "notebook=1", "--no-dashboard"]
        options += ["--host", HOST, "--memory-limit", "0"]
        while len(self.nannies) < workers:
            place = self._folder / f"worker-{len(self.nannies)}"
            self.nannies.append(
                self._start("worker", self._address, *options, "--local-directory", str(place))
            )

    def count(self) -> int:
        """Return the number of workers that the scheduler knows."""
        files = {kind: str(self._folder / "pair.pem") for kind in ("tls_client_cert", "tls_client_key")}
        security = Security(require_encryption=True, tls_ca_file=str(self._folder / "ca.pem"), **files)
        with Client(self._address, security=security, set_as_default=False) as client:
            return len(client.scheduler_info(n_workers=-1)["workers"])

    @contextmanager
    def crowded(self, workers: int) -> Iterator[None]:
        """Add workers without slots, all in one process, within the context."""
        wanted = self.count() + workers
        command = [sys.executable, "-m", "benchmarks.bystanders", self._address, str(workers)]
        with subprocess.Popen(command, env=self.environment, stderr=subprocess.DEVNULL) as crowd:
            while self.count() < wanted:
                time.sleep(0.5)
            yield
            crowd.terminate()

    def stop(self) -> None:
        """Stop all processes in order."""
        for process in (*self.nannies, self.scheduler):
            process.send_signal(signal.SIGTERM)
        for process in (*self.nannies, self.scheduler):
            process.wait()

    def _start(self, kind: str, *options: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{kind}.log").open("ab") as log:
            command = [str(PROGRAM), kind, *options]
            return subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)


def _certificates(folder: Path) -> dict[str, str]:
    """Return the variables by which Dask finds the shared certificate and its authority."""
    authority = trustme.CA()
    authority.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(folder / "pair.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    files = {
        f"{role}__{kind}": "pair.pem"
        for role in ("CLIENT", "SCHEDULER", "WORKER")
        for kind in ("CERT", "KEY")
    }
    files["CA_FILE"] = "ca.pem"
    return {f"DASK_DISTRIBUTED__COMM__TLS__{name}": str(folder / file) for name, file in files.items()}


@contextmanager
def clustered(workers: int) -> Iterator[Cluster]:
    """Start a cluster, yield it, and stop it."""
    with tempfile.TemporaryDirectory(prefix="bench-dask-") as folder:
        cluster = Cluster(Path(folder))
        try:
            cluster.grow(workers)
            yield cluster
        finally:
            cluster.stop()
