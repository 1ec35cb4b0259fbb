"""A server that stops in the middle of a transaction keeps others waiting only as long as its lease lasts."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psycopg
import pytest

from tests.support.calls import inline, perform, start, texts
from tests.support.database_server import DatabaseServer, until
from tests.support.postgres import Postgres
from tests.support.processes import stopped

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.process_pool("on a cluster runs outlive their server"),
]

# Short enough to wait for, and long enough for a server on a busy machine.
LEASE = 10.0
REQUEST = inline("print('goes on')", request_id="goes-on")


def _is_started(server: DatabaseServer) -> bool:
    """Whether the server could start the run: while it waits for locks, it tells callers to come back."""
    try:
        start(server.stub, REQUEST)
    except grpc.RpcError as error:
        if "NOT_READY" not in str(error.trailing_metadata()):
            raise
        return False
    return True


@contextmanager
def _locked(url: str, server_id: str, name: str) -> Iterator[None]:
    """Holds locks like a server that stops in the middle of a transaction, until the database ends it."""
    lost = psycopg.connect(url, application_name=name.format(server_id))
    try:
        lost.execute("SELECT 1 FROM history FOR NO KEY UPDATE")
        lost.execute("SELECT 1 FROM servers WHERE server_id = %s FOR UPDATE", [server_id])
        yield
        with pytest.raises(psycopg.errors.AdminShutdown):
            lost.execute("SELECT 1")
    finally:
        lost.close()


@pytest.mark.parametrize(
    "name",
    [
        "notebook-runner {} writes",
        "notebook-runner {} lease",
        "notebook-runner {} reads",
        # As PgBouncer writes it with `application_name_add_host`.
        "notebook-runner {} writes - 10.0.0.7:41234",
    ],
    ids=["writes", "lease", "reads", "pooled"],
)
def test_a_stopped_server_keeps_no_locks(postgres: Postgres, tmp_path: Path, name: str) -> None:
    """Any of its connections, also behind a pooler that adds to the name, has locks that all servers need."""
    url = postgres.url(postgres.create_database())
    with DatabaseServer(tmp_path / "first", url, lease=LEASE) as first:
        with psycopg.connect(url, autocommit=True) as db:
            rows = db.execute("SELECT server_id FROM servers").fetchall()
        [(server_id,)] = rows
        with (
            DatabaseServer(tmp_path / "second", url, lease=LEASE) as second,
            stopped(first.process.pid),
            _locked(url, server_id, name),
        ):
            until(lambda: _is_started(second), second.tail)
            assert texts(perform(second.stub, REQUEST).events) == "goes on\n"
        first.process.wait(60)
