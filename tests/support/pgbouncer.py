"""A real PgBouncer, Debian's, in front of a PostgreSQL: each transaction gets another connection of a few."""

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

import psycopg

from tests.support.polling import pause
from tests.support.ports import free_port
from tests.support.postgres import HOST, PASSWORD, ROLE, Postgres, as_database_user, give

PROGRAM = "/usr/sbin/pgbouncer"
READY_SECONDS = 60.0
LINGER_SECONDS = 60.0
# To each database; fewer than one server has: each has the transactions of several clients, in turn.
CONFIGURATION = """\
[databases]
* = host={host} port={database_port}
[pgbouncer]
listen_addr = {host}
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = transaction
default_pool_size = {connections}
max_client_conn = 500
server_idle_timeout = 10
log_connections = 0
log_disconnections = 0
logfile = {log}
{more}
"""
CONNECTIONS = 6


class PgBouncer:
    """A pooler between `with` and its end, as the user nobody if root runs the tests: it refuses root.

    Args:
        postgres: What it connects to.
        settings: More of its settings, as `name = value`.

    Attributes:
        port: Where it listens on loopback.
    """

    def __init__(self, postgres: Postgres, *settings: str) -> None:
        self._postgres = postgres
        self._settings = settings
        self.port = free_port(HOST)

    def __enter__(self) -> Self:
        assert Path(PROGRAM).exists(), "PgBouncer is not installed: install the package pgbouncer."
        self._folder = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
        users, settings = self._folder / "users", self._folder / "pgbouncer.ini"
        self._log = self._folder / "log"
        users.write_text(f'"{ROLE}" "{PASSWORD}"\n')
        settings.write_text(
            CONFIGURATION.format(
                host=HOST,
                port=self.port,
                database_port=self._postgres.port,
                users=users,
                log=self._log,
                connections=CONNECTIONS,
                more="\n".join(self._settings),
            )
        )
        for path in (self._folder, users, settings):
            give(path)
        self._command = [*as_database_user("KILL"), PROGRAM, "--quiet", str(settings)]
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.kill()
        finally:
            shutil.rmtree(self._folder)

    def start(self) -> None:
        """Starts it, at the same port each time, and waits until it answers."""
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, start_new_session=True)
        self._wait()

    def kill(self) -> None:
        """Ends it: all connections through it break."""
        self._process.kill()
        self._process.wait(LINGER_SECONDS)

    def create_database(self) -> str:
        """Creates a database that belongs to the role of the servers under test; returns its name."""
        return self._postgres.create_database()

    def url(self, database: str) -> str:
        """The URL of a database through the pooler."""
        return self._postgres.url(database, port=self.port)

    def _wait(self) -> None:
        end = time.monotonic() + READY_SECONDS
        while True:
            try:
                with psycopg.connect(self.url("postgres")):
                    return
            except psycopg.OperationalError:
                assert self._process.poll() is None, f"PgBouncer ended: {self.log}"
                assert time.monotonic() < end, f"PgBouncer does not answer: {self.log}"
                pause()

    @property
    def log(self) -> str:
        """What it has logged."""
        return self._log.read_text() if self._log.exists() else ""
