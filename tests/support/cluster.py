"""A real Dask cluster with TLS: a scheduler and workers with nannies, each a process of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self
from uuid import uuid4

import distributed
import trustme

from tests.support.killable import WORKER, children
from tests.support.ports import free_port
from tests.support.processes import marked, outlived, parent

PROGRAM = Path(sys.executable).with_name("dask")
EXECUTOR = "NOTEBOOK_RUNNER_EXECUTOR"
MARK_VARIABLE = "NBR_CLUSTER_MARK"
SLOT = ("--resources", "notebook=1")
READY_SECONDS = 60.0
LINGER_SECONDS = 60.0


class Cluster:
    """A scheduler and workers between `with` and its end, after which nothing of them may be left.

    Args:
        folder: For certificates, logs and the workers' files.
        workers: How many, with one slot each.
        host: Where all of them listen.
        tls: Whether they are reached over TLS.

    Attributes:
        folder: The same.
        workers: The nannies, by name.
        scheduler: The scheduler.
        mark: What the environment of every process of it carries.
    """

    def __init__(self, folder: Path, workers: int = 3, host: str = "127.0.0.1", *, tls: bool = True) -> None:
        self.folder = folder
        self._count = workers
        self._host = host
        self._protocol = "tls" if tls else "tcp"
        self.mark = uuid4().hex
        self._port = free_port(host)
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.scheduler: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> Mapping[str, str]:
        """What a server needs to be a client of it."""
        scheme = "dask+tls" if self._protocol == "tls" else "dask"
        return {EXECUTOR: f"{scheme}://{self._host}:{self._port}", **self._tls}

    def __enter__(self) -> Self:
        authority = trustme.CA()
        pair = authority.issue_cert(self._host)
        pair.private_key_and_cert_chain_pem.write_to_path(self.folder / "pair.pem")
        authority.cert_pem.write_to_path(self.folder / "ca.pem")
        roles = ("CLIENT", "SCHEDULER", "WORKER")
        prefix = "DASK_DISTRIBUTED__COMM__TLS__"
        files = {f"{prefix}{role}__{kind}": "pair.pem" for role in roles for kind in ("CERT", "KEY")}
        files[f"{prefix}CA_FILE"] = "ca.pem"
        self._tls = {name: str(self.folder / file) for name, file in files.items()}
        self.start_scheduler()
        for number in range(self._count):
            self.start_worker(f"worker-{number}")
        if self._count:
            self.wait(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for worker in self.workers.values():
                worker.send_signal(signal.SIGTERM)
            # They take long when their scheduler is gone first.
            outlived([worker.pid for worker in self.workers.values()], LINGER_SECONDS)
            if self.scheduler is not None:
                self.scheduler.send_signal(signal.SIGTERM)
            left = marked(self.mark)
            stayed = {pid: left[pid] for pid in outlived(left, LINGER_SECONDS)}
            assert not stayed, f"processes left behind: {stayed}"
        finally:
            for pid in marked(self.mark):
                os.kill(pid, signal.SIGKILL)
            for process in [*self.workers.values(), self.scheduler]:
                if process is not None:
                    process.wait()

    def wait(self, workers: int) -> None:
        """Waits until so many workers are there."""
        security = distributed.Security(
            require_encryption=self._protocol == "tls",
            tls_ca_file=str(self.folder / "ca.pem"),
            tls_client_cert=str(self.folder / "pair.pem"),
            tls_client_key=str(self.folder / "pair.pem"),
        )
        address = f"{self._protocol}://{self._host}:{self._port}"
        with distributed.Client(
            address, security=security, set_as_default=False, timeout=READY_SECONDS
        ) as client:
            client.wait_for_workers(workers, timeout=READY_SECONDS)

    def worker_of(self, pid: int) -> tuple[str, int]:
        """The worker that a process is below: its name, and its own process, which the nanny started."""
        nannies = {process.pid: name for name, process in self.workers.items()}
        while pid and parent(pid) not in nannies:
            pid = parent(pid)
        return nannies[parent(pid)], pid

    def any_worker(self) -> tuple[str, int]:
        """A worker: its name, and its own process."""
        for name, nanny in self.workers.items():
            for pid, arguments in children(nanny.pid).items():
                # Dask renames its processes if setproctitle is installed.
                if WORKER in arguments or arguments.startswith("dask worker"):
                    return name, pid
        raise LookupError("no nanny has a worker")

    def start_scheduler(self) -> None:
        """Starts the scheduler, at the same address each time."""
        options = ["--protocol", self._protocol, "--host", self._host, "--port", str(self._port)]
        options += ["--no-dashboard"]
        self.scheduler = self._start("scheduler", "scheduler", *options)

    def kill_scheduler(self) -> None:
        """Ends the scheduler with SIGKILL."""
        assert self.scheduler is not None
        self.scheduler.kill()
        self.scheduler.wait()

    def start_worker(self, name: str, *prefix: str, host: str = "", more: tuple[str, ...] = SLOT) -> None:
        """Starts a worker with its nanny and one slot for a notebook."""
        address = f"{self._protocol}://{self._host}:{self._port}"
        options = ["--nworkers", "1", "--nthreads", "1", *more, "--no-dashboard"]
        options += ["--host", host or self._host, "--memory-limit", "0", "--name", name]
        options += ["--local-directory", str(self.folder / name)]
        self.workers[name] = self._start(name, "worker", address, *options, prefix=prefix)

    def restart(self) -> None:
        """Starts the scheduler and the workers, which ended with it, again, as Kubernetes does.

        On a busy machine, a worker may connect to the new scheduler before it has missed the earlier one.
        """
        self.start_scheduler()
        for name, process in list(self.workers.items()):
            if outlived([process.pid], LINGER_SECONDS):
                self.kill_nanny(name)
            else:
                process.wait(READY_SECONDS)
            self.start_worker(name)

    def kill_nanny(self, name: str) -> None:
        """Ends a nanny with SIGKILL; its worker ends by itself."""
        nanny = self.workers.pop(name)
        below = children(nanny.pid)
        nanny.kill()
        nanny.wait()
        stayed = outlived(below, LINGER_SECONDS)
        assert not stayed, f"outlived their nanny: {[below[pid] for pid in stayed]}"

    def stop_worker(self, name: str) -> None:
        """Ends a worker as an operator does."""
        process = self.workers.pop(name)
        process.send_signal(signal.SIGTERM)
        process.wait(READY_SECONDS)

    def _start(
        self, name: str, kind: str, *options: str, prefix: tuple[str, ...] = ()
    ) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **self._tls, MARK_VARIABLE: self.mark}
        with (self.folder / f"{name}.log").open("ab") as log:
            command = [*prefix, str(PROGRAM), kind, *options]
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def logs(self) -> str:
        """The last lines of all logs."""
        return "\n".join(
            f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-30:])
            for path in sorted(self.folder.glob("*.log"))
        )
