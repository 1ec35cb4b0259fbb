"""A real server process on a free port, with its log and the proof of what it left behind."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, ClassVar, Self
from uuid import uuid4

import grpc

from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc
from tests.support.polling import pause
from tests.support.postgres import Databases
from tests.support.processes import limit, marked, outlived

PROGRAM = Path(sys.executable).with_name("notebook-runner-server")
# Nothing a kernel gets from the server may carry this prefix, so the mark reaches every process.
MARK_VARIABLE = "NBR_TEST_MARK"
STORE = "NOTEBOOK_RUNNER_STORE"
STORE_LISTEN = "NOTEBOOK_RUNNER_STORE_LISTEN"
# How long the next server waits for one that was killed; above what a busy machine delays a server.
LEASE = {"NOTEBOOK_RUNNER_REPLICA_TIMEOUT": "15"}
SERVICE = "/notebook_runner.v1.NotebookRunner/"
START_SECONDS = 60.0
STOP_SECONDS = 60.0
CALL_SECONDS = 60.0
# Helpers of the interpreter end by themselves when they see that the server is gone.
LINGER_SECONDS = 60.0


class Server:
    """Runs `notebook-runner-server` with these options between `with` and its end, in a folder.

    Leaving the block ends the server with SIGTERM and asserts that it exited with 0 and that no
    process is left that carries its mark.

    Attributes:
        executor: The variables that give every server another executor than its own processes.
        cluster_mark: What the environment of every process of that executor carries; empty: there is none.
        databases: Where every server without a store of its own has its history; None: in its state folder.
        warm_kernels: The variables that set the warm kernels of every server without options of its own.
        target: The address for gRPC.
        http: The address for HTTP; empty: the server serves none.
        machines: How many workers keep kernels for a run, whichever of them it gets.
        may_start: Whether the test that runs may start one.
    """

    executor: ClassVar[Mapping[str, str]] = {}
    cluster_mark: ClassVar[str] = ""
    databases: ClassVar[Databases | None] = None
    warm_kernels: ClassVar[Mapping[str, str]] = {}
    machines: ClassVar[int] = 1
    may_start: ClassVar[bool] = True

    def __init__(
        self,
        state_dir: Path,
        *options: str,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.state_dir = state_dir
        self.mark = uuid4().hex
        self.log: list[dict[str, Any]] = []
        self.noise: list[str] = []
        self.target = ""
        self.http = ""
        self._command = [str(PROGRAM), "--listen", "127.0.0.1:0", "--state-dir", str(state_dir)]
        self._command += ["--log-format", "json", *options]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("NOTEBOOK_RUNNER_")}
        # Notebooks of the tests meet them in files; what is denied otherwise, tests/security tries.
        opened = [str(one) for one in state_dir.parents if one.name.startswith("pytest-of-")]
        most = options[options.index("--workers") + 1] if "--workers" in options else "1"
        own = {
            **({**Server.executor, "NOTEBOOK_RUNNER_CLUSTER_RUNS": most} if Server.executor else {}),
            **Server.warm_kernels,
            MARK_VARIABLE: self.mark,
            "NOTEBOOK_RUNNER_KERNEL_ENVIRONMENT": "NBR_*",
            "NOTEBOOK_RUNNER_WRITABLE_FOLDERS": ",".join(opened),
        }
        if Server.databases is not None and "--store" not in options:
            own |= {STORE: Server.databases.url(state_dir), **LEASE}
        self._environment = {**inherited, **own, **(environment or {})}
        self._folder = folder
        self._told = threading.Event()

    @property
    def is_on_cluster(self) -> bool:
        """Whether its runs are executed on a cluster."""
        return "NOTEBOOK_RUNNER_EXECUTOR" in self._environment

    @property
    def runs_mark(self) -> str:
        """What the environment of every process carries that executes runs."""
        return Server.cluster_mark or self.mark

    def __enter__(self) -> Self:
        assert Server.may_start, "A unit or integration test starts no server: mark it as e2e."
        self.process = subprocess.Popen(
            self._command, cwd=self._folder, env=self._environment, stderr=subprocess.PIPE, text=True
        )
        self._mark_process()
        self._reader = threading.Thread(target=self._read_log, args=[self.process.stderr], daemon=True)
        self._reader.start()
        try:
            assert self._told.wait(START_SECONDS), f"no serving line: {self.tail()}"
            assert self.target, f"the server ended: {self.tail()}"
        except AssertionError:
            self._end_by_force()
            raise
        self.channel = grpc.insecure_channel(self.target)
        self.stub = rpc.NotebookRunnerStub(self.channel)
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
        self.stop()

    def _mark_process(self) -> None:
        """Marks it before it starts others: it and its workers hide what is in their environment."""
        most = resource.getrlimit(resource.RLIMIT_RSS)[1]
        resource.prlimit(self.process.pid, resource.RLIMIT_RSS, (limit(self.mark), most))

    def _read_log(self, stream: IO[str]) -> None:
        """Keeps every line of the log until the server and all its children have closed it."""
        with stream:
            for line in stream:
                self._keep(line)
        self._told.set()

    def _keep(self, line: str) -> None:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            self.noise.append(line)
            return
        self.log.append(entry)
        if entry.get("event") == "http_started":
            self.http = entry["address"]
        if entry.get("event") == "server_started":
            self.target = entry["address"]
            self._told.set()

    def raw(self, method: str, data: bytes, timeout: float = CALL_SECONDS) -> bytes:
        """Sends bytes as the request of a unary method; answers those that came back."""
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(SERVICE + method)
        return call(data, timeout=timeout)

    def raw_stream(self, method: str, data: bytes, timeout: float = CALL_SECONDS) -> Iterable[bytes]:
        """The same for a method that answers a stream."""
        call: grpc.UnaryStreamMultiCallable[bytes, bytes] = self.channel.unary_stream(SERVICE + method)
        return call(data, timeout=timeout)

    def logged(self, event: str, *texts: str, count: int = 1) -> list[dict[str, Any]]:
        """Waits for `count` lines of the log with this event and all these texts; returns all that match.

        A server writes its log on a thread of its own, after it has answered.
        """
        end = time.monotonic() + CALL_SECONDS
        while len(found := self._matching(event, texts)) < count:
            assert time.monotonic() < end, f"{count} lines {event} {texts}: {self.tail()}"
            pause()
        return found

    def _matching(self, event: str, texts: Iterable[str]) -> list[dict[str, Any]]:
        lines = [entry for entry in self.log if entry.get("event") == event]
        return [entry for entry in lines if all(text in str(entry) for text in texts)]

    def said(self, event: str) -> list[str]:
        """The lines of the log with this event, whole."""
        return [str(entry) for entry in self.log if entry.get("event") == event]

    def tail(self) -> str:
        """The last lines of the log, for a failed assertion."""
        return "\n".join([*(json.dumps(entry) for entry in self.log[-20:]), *self.noise[-20:]])

    def stop(self) -> None:
        """Ends the server as an operator does, and checks that nothing of it is left."""
        try:
            self.process.send_signal(signal.SIGTERM)
            code = self.process.wait(STOP_SECONDS)
            left = marked(self.mark)
            stayed = {pid: left[pid] for pid in outlived(left, LINGER_SECONDS)}
            assert code == 0, f"exit code {code}: {self.tail()}"
            assert not stayed, f"processes left behind: {stayed}"
        finally:
            self._end_by_force()

    def _end_by_force(self) -> None:
        """Leaves nothing running, also when a test has just shown that something would be."""
        self.process.kill()
        self.process.wait()
        for pid in marked(self.mark):
            # It may end by itself, as it is about to when its server is gone.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._reader.join(LINGER_SECONDS)
