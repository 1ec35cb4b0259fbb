"""A real PgBouncer, Debian's, in front of a PostgreSQL: each transaction gets another connection of a few."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import psycopg

from tests.support.polling import pause
from tests.support.postgres import HOST, PASSWORD, ROLE, Postgres, give
from tests.support.processes import NOBODY

PROGRAM = "/usr/sbin/pgbouncer"
READY_SECONDS = 60.0
LINGER_SECONDS = 60.0
# Fewer connections than those of one server: each has the transactions of several clients, in turn.
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
max_client_conn = 200
log_connections = 0
log_disconnections = 0
logfile = {log}
"""
CONNECTIONS = 6


class PgBouncer:
    """A pooler between `with` and its end, as the user nobody if root runs the tests: it refuses root.

    Args:
        postgres: What it connects to.

    Attributes:
        port: Where it listens on loopback.
    """

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            self.port: int = probe.getsockname()[1]

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
            )
        )
        for path in (self._folder, users, settings):
            give(path)
        nobody = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if os.geteuid() == 0 else []
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *nobody, "--", PROGRAM, "--quiet", str(settings)],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(LINGER_SECONDS)
        finally:
            self._process.kill()
            shutil.rmtree(self._folder)

    def url(self, database: str, options: str = "") -> str:
        """The URL of a database through the pooler."""
        return self._postgres.url(database, port=self.port, options=options)

    def _wait(self) -> None:
        end = time.monotonic() + READY_SECONDS
        while True:
            try:
                with psycopg.connect(self.url("postgres")):
                    return
            except psycopg.OperationalError as error:
                log = self._log.read_text() if self._log.exists() else ""
                assert self._process.poll() is None, f"PgBouncer ended: {log}"
                assert time.monotonic() < end, f"{error}: {log}"
                pause()
