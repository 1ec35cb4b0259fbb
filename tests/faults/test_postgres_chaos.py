"""The database and its server fail at random moments: what was acknowledged is found, and nothing is doubled.

`CHAOS_ROUNDS=500 pytest tests/faults/test_postgres_chaos.py -s` plays longer; CHAOS_SEED plays the same.
"""

import os
import secrets
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

import grpc
import pytest
from typing_extensions import override

from tests.faults.harness import Chaos, Received
from tests.support.database_server import REPLICA_TIMEOUT, serves, until
from tests.support.killable import KillableServer, figure
from tests.support.postgres import Postgres
from tests.support.postgres_proxy import PLAIN, PostgresProxy
from tests.support.server import STORE

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.process_pool("tests/cluster has its own"),
]

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "12"))
SEED = int(os.environ.get("CHAOS_SEED", "0")) or secrets.randbits(32)
BATCH = 4
# How long a database stands still, and how long it loses answers, at most; below a third of the lease.
LONGEST_FAULT = 1.0
LEASE = 10.0
LOSS = 0.4
RESTARTS = {
    "database stopped": signal.SIGINT,
    "database crashed": signal.SIGQUIT,
    "database killed": signal.SIGKILL,
}


@dataclass
class DatabaseChaos(Chaos):
    """The same for servers on a database, which fails as well, and so does the way to it."""

    signals: ClassVar[Sequence[str]] = (
        *Chaos.signals,
        *RESTARTS,
        *("database paused", "connections reset", "answers lost", "moved"),
    )

    database: Postgres | None = None
    proxy: PostgresProxy | None = None

    @override
    def _strike(self, server: KillableServer, fault: str) -> None:
        assert self.database is not None
        assert self.proxy is not None
        if fault in RESTARTS:
            self.database.restart(RESTARTS[fault])
        elif fault == "connections reset":
            self.proxy.reset()
        elif fault == "database paused":
            with self.database.paused():
                self._wait()
        elif fault == "answers lost":
            self.proxy.chance = LOSS
            self._wait()
            self.proxy.chance = 0.0
        elif fault == "moved":
            # The next server has another state folder, as on another machine.
            super()._strike(server, "server")
            self.machine += 1
        else:
            super()._strike(server, fault)

    def _wait(self) -> None:
        threading.Event().wait(self._random.uniform(0, LONGEST_FAULT))

    @override
    def _failed(self, server: KillableServer, one: Received, error: grpc.RpcError) -> None:
        """Without its database, a server tells callers to come back."""
        if "NOT_READY" not in str(error.trailing_metadata()):
            super()._failed(server, one, error)

    @override
    def _answering(self) -> KillableServer:
        server = super()._answering()
        until(lambda: serves(server), server.tail)
        return server


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseChaos]:
    """One history for all rounds."""
    figure(f"CHAOS_SEED={SEED}")
    with ExitStack() as stack:
        database = stack.enter_context(Postgres())
        proxy = stack.enter_context(PostgresProxy(database.port, SEED))
        url = database.url(database.create_database(), port=proxy.port, options=PLAIN)
        chaos = DatabaseChaos(
            tmp_path_factory.mktemp("chaos"),
            SEED,
            environment={STORE: url, REPLICA_TIMEOUT: str(LEASE)},
            has_retries=True,
            database=database,
            proxy=proxy,
        )
        try:
            yield chaos
        finally:
            figure(chaos.summary() + "\n")
            chaos.close()


@pytest.mark.parametrize("first", range(0, ROUNDS, BATCH))
def test_nothing_acknowledged_is_lost_whatever_fails(chaos: DatabaseChaos, first: int) -> None:
    """Server, worker, kernel and database fail, and no promise is broken."""
    for _ in range(first, min(first + BATCH, ROUNDS)):
        chaos.play()
    assert chaos.violations == [], chaos.summary()
