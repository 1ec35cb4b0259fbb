"""Servers whose history is in PostgreSQL, and runs that say whether anything of them was lost."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from grpc_health.v1 import health_pb2, health_pb2_grpc

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.faults.history import Told
from tests.support.calls import inline, texts
from tests.support.killable import KillableServer
from tests.support.polling import pause
from tests.support.server import STORE, Server

REPLICA_TIMEOUT = "NOTEBOOK_RUNNER_REPLICA_TIMEOUT"
# A lease that no test outlasts: for tests in which the database is away, and nobody else wants its runs.
LONG_LEASE = 600.0
SECONDS = 60.0
COUNTING = """
import itertools, os, time
for number in itertools.count():
    print(number, flush=True)
    if os.path.exists({stop!r}):
        break
    time.sleep(0.01)
"""


class DatabaseServer(KillableServer):
    """A server with its history in PostgreSQL.

    Args:
        state_dir: Its state folder, which has no history.
        url: Its database.
        lease: How many seconds the next server waits for this one after its death.
        program: What is started in the place of the server's own command.
    """

    def __init__(
        self,
        state_dir: Path,
        url: str,
        *options: str,
        lease: float = LONG_LEASE,
        program: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        own = {STORE: url, REPLICA_TIMEOUT: str(lease), **(environment or {})}
        super().__init__(state_dir, "--queue", "8", *options, program=program, environment=own)


class CountingRun:
    """A request for a run that prints numbers until the test stops it.

    Args:
        folder: For the file that stops it.
        name: Its request id.
        setup: What it does first, in Python.

    Attributes:
        request: What starts it.
    """

    def __init__(self, folder: Path, name: str = "counting", setup: str = "") -> None:
        self._stop = folder / f"{name}-stop"
        source = COUNTING.format(stop=str(self._stop))
        self.request = inline(f"{setup}\nprint('first')", source, "print('last')", request_id=name)

    def stop(self) -> None:
        """Lets it end."""
        self._stop.touch()

    @staticmethod
    def check(told: Told) -> None:
        """Asserts that the run succeeded, and that a reader was told of each number once, in order."""
        assert told.events[-1].run_changed.state == pb.RUN_STATE_SUCCEEDED, told.events[-1]
        first, *numbers, last = texts(told.events).splitlines()
        assert (first, last) == ("first", "last")
        assert numbers == [str(number) for number in range(len(numbers))]
        sequences = [event.sequence for event in told.events]
        assert sequences == list(range(1, len(sequences) + 1))


def lines(told: Told) -> int:
    """How many lines a reader was told."""
    return texts(list(told.events)).count("\n")


def until(holds: Callable[[], bool], why: Callable[[], object]) -> None:
    """Waits until a condition holds."""
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, why()
        pause()


def until_more(told: Told, server: Server) -> None:
    """Waits until a reader was told ten more lines."""
    before = lines(told)
    until(lambda: lines(told) >= before + 10, server.tail)


def serves(server: Server) -> bool:
    """Whether the server says that it can start runs."""
    answer = health_pb2_grpc.HealthStub(server.channel).Check(
        health_pb2.HealthCheckRequest(), timeout=SECONDS
    )
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
