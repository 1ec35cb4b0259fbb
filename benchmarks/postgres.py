"""Start several servers on one PostgreSQL for the benchmark, and look at what they ask of it."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import grpc

from benchmarks import server
from benchmarks.cluster import wait_for_workers
from benchmarks.server import Server
from benchmarks.service import Service
from benchmarks.speed import processor_seconds
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc
from tests.support.postgres import Postgres

SETTINGS = ("fsync=on", "full_page_writes=on", "shared_buffers=128MB", "max_wal_size=1GB")
"""PostgreSQL's defaults, in place of those of the tests, which make nothing durable."""


class Replica:
    """A server on the database, and the client of its callers.

    Attributes:
        process: The server.
        service: Executes notebooks on it.
    """

    def __init__(self, process: Server) -> None:
        self.process = process
        self._channel = grpc.insecure_channel(process.address)
        self.service = Service(rpc.NotebookRunnerStub(self._channel))

    def stop(self) -> None:
        """Stop the server in order."""
        self._channel.close()
        self.process.stop()


class Replicas:
    """Servers that share a database, each with one worker and a state folder of its own.

    Args:
        postgres: The server of the database.
        folder: For the state folders.
        options: Options of each server.

    Attributes:
        all: The servers that were started and not killed.
    """

    def __init__(self, postgres: Postgres, folder: Path, *options: str) -> None:
        self._postgres = postgres
        self._folder = folder
        self._numbers = count()
        self._database = postgres.create_database()
        self._options = ("--queue", "100", *options)
        self._environment = {"NOTEBOOK_RUNNER_STORE": postgres.url(self._database)}
        self.all: list[Replica] = []

    def grow(self, replicas: int) -> None:
        """Start servers until there are that many, and wait until each knows the workers of all."""
        while len(self.all) < replicas:
            state = self._folder / f"replica-{next(self._numbers)}"
            started = server.start(state, *self._options, environment=self._environment)
            self.all.append(Replica(started))
        for one in self.all:
            wait_for_workers(one.service, replicas)
            # The first runs would wait for kernels.
            one.process.wait_for("warm_kernel_ready")

    def kill(self, replica: Replica) -> None:
        """Kill a server with SIGKILL."""
        replica.process.process.kill()
        replica.process.process.wait()
        self.all.remove(replica)

    def executing(self, run_id: str) -> Replica:
        """Return the server that has claimed a run.

        Raises:
            RuntimeError: None has.
        """
        text = "SELECT name FROM servers JOIN claims USING (server_id) JOIN runs USING (position)"
        with self._postgres.admin(self._database) as db:
            row = db.execute(f"{text} WHERE run_id = %s", [run_id]).fetchone()
        for one in self.all:
            # A server's name begins with "process PID".
            if row is not None and row[0].split()[1] == str(one.process.pid):
                return one
        raise RuntimeError(f"no server executes {run_id}")

    def other(self, replica: Replica) -> Replica:
        """Return a server that is not this one."""
        return next(one for one in self.all if one is not replica)

    def stop(self) -> None:
        """Stop all servers."""
        for one in self.all:
            one.stop()

    def cost(self, work: Callable[[], float]) -> "Cost":
        """Measure what the servers and PostgreSQL do while a function works.

        Args:
            work: Works, and returns how long that took in seconds.
        """
        before, seconds_before = self._look(), self._seconds()
        taken = work()
        after, seconds_after = self._look(), self._seconds()
        servers, postgres = (
            _difference(then, now) / taken for then, now in zip(seconds_before, seconds_after, strict=True)
        )
        commits, rollbacks, sessions = (now - then for then, now in zip(before, after, strict=True))
        return Cost(taken, servers / len(self.all), postgres, commits, rollbacks, sessions)

    def _look(self) -> Sequence[int]:
        """Return how many commits, rollbacks and connections the database has had."""
        text = "SELECT xact_commit, xact_rollback, sessions FROM pg_stat_database WHERE datname = %s"
        with self._postgres.admin() as db:
            return db.execute(text, [self._database]).fetchall()[0]

    def _seconds(self) -> tuple[dict[int, float], dict[int, float]]:
        """Return the processor time of the servers, without workers, and of each process of PostgreSQL."""
        servers = {one.process.pid: processor_seconds(one.process.pid) for one in self.all}
        found = {}
        # Not `tree`: connections come and go, also in between.
        children = Path(f"/proc/{self._postgres.pid}/task/{self._postgres.pid}/children").read_text()
        for pid in (self._postgres.pid, *map(int, children.split())):
            with contextlib.suppress(OSError):
                found[pid] = processor_seconds(pid)
        return servers, found


def _difference(before: dict[int, float], after: dict[int, float]) -> float:
    """Return the processor time between two looks, without that of processes that ended in between."""
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items())


@dataclass(frozen=True)
class Cost:
    """What servers and database did in some time.

    Attributes:
        seconds: The time.
        server: The mean share of one processor of a server, without its workers.
        postgres: The share of one processor of all processes of PostgreSQL.
        commits: Transactions that were committed; a statement that only reads is one.
        rollbacks: Transactions that were not.
        sessions: Connections that were made.
    """

    seconds: float
    server: float
    postgres: float
    commits: int
    rollbacks: int
    sessions: int


@contextmanager
def database() -> Iterator[Postgres]:
    """Start a PostgreSQL that makes every commit durable, yield it, and stop it."""
    with Postgres(*SETTINGS) as postgres:
        yield postgres


@contextmanager
def replicated(postgres: Postgres, replicas: int, *options: str) -> Iterator[Replicas]:
    """Start servers on a new database, yield them, and stop them."""
    with tempfile.TemporaryDirectory(prefix="bench-replicas-") as folder:
        found = Replicas(postgres, Path(folder), *options)
        try:
            found.grow(replicas)
            yield found
        finally:
            found.stop()
