"""A real PostgreSQL: a server of Debian's package on loopback, with a database for each server under test."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any, Protocol, Self
from urllib.parse import quote
from uuid import uuid4

import psycopg
from psycopg import sql

from tests.support.polling import pause
from tests.support.ports import free_port
from tests.support.processes import NOBODY, marked, outlived, parent

MARK_VARIABLE = "NBR_POSTGRES_MARK"
HOST = "127.0.0.1"
ADMIN = "postgres"
# The role of the servers under test: it owns its databases, and may do nothing else.
ROLE = "runner"
# Characters that a URL must escape.
PASSWORD = "p@ss/word:1%"  # noqa: S105 - of a server that only the tests reach
READY_SECONDS = 60.0
LINGER_SECONDS = 60.0
# Processes are killed here, never the machine: what they have written is there without fsync.
SETTINGS = (
    "fsync=off",
    "full_page_writes=off",
    "shared_buffers=32MB",
    "min_wal_size=4MB",
    "max_wal_size=64MB",
    "max_connections=200",
    "log_min_messages=warning",
)
ACCESS = """\
local all postgres trust
host all postgres 127.0.0.1/32 reject
host all all 127.0.0.1/32 scram-sha-256
"""


@cache
def programs() -> Path:
    """The folder with the programs of the server; Debian keeps them out of PATH.

    Raises:
        FileNotFoundError: PostgreSQL is not installed.
    """
    candidates = list(Path("/usr/lib/postgresql").glob("*/bin"))
    candidates.sort(key=lambda path: int(path.parent.name) if path.parent.name.isdecimal() else 0)
    if shutil.which("pg_config"):
        command = ["pg_config", "--bindir"]
        candidates.append(Path(subprocess.check_output(command, text=True).strip()))
    for folder in reversed(candidates):
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise FileNotFoundError("PostgreSQL is not installed: install the package postgresql.")


class Postgres:
    """A PostgreSQL server between `with` and its end, after which nothing of it may be left.

    PostgreSQL refuses to run as root, so root's tests run it as nobody.

    Args:
        settings: More of its settings, as `name=value`.
        folder: Where its files are; empty: a folder of its own, which is removed at the end.

    Attributes:
        port: Where it listens on loopback, the same after each restart.
        mark: What the environment of each of its processes carries.
    """

    def __init__(self, *settings: str, folder: Path | None = None) -> None:
        self._settings = (*SETTINGS, *settings)
        self._given = folder
        self.mark = uuid4().hex
        self.port = free_port(HOST)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        # Not in pytest's folder, which only root may enter.
        self._folder = self._given or Path(tempfile.mkdtemp(prefix="postgres-"))
        self._data = self._folder / "data"
        try:
            give(self._folder)
            self._create()
            self.start()
            with self.admin() as db:
                db.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(ROLE), PASSWORD))
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._process is not None:
                self.resume()
                self.stop()
            left = marked(self.mark)
            stayed = {pid: left[pid] for pid in outlived(left, LINGER_SECONDS)}
            assert not stayed, f"processes left behind: {stayed}"
        finally:
            self._remove()

    def _remove(self) -> None:
        for pid in marked(self.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
        if self._given is None:
            shutil.rmtree(self._folder)

    def _create(self) -> None:
        command = [str(programs() / "initdb"), "--pgdata", str(self._data), "--username", ADMIN]
        # Small segments of the WAL, for disks that are full soon.
        command += ["--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync", "--wal-segsize", "1"]
        done = subprocess.run(
            [*as_database_user(), *command],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (self._data / "pg_hba.conf").write_text(ACCESS)

    @property
    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "TZ": "UTC", MARK_VARIABLE: self.mark}

    @property
    def pid(self) -> int:
        """The process that it was started as, the parent of all others."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """The last lines of its log."""
        return "\n".join((self._folder / "log").read_text(errors="replace").splitlines()[-30:])

    def start(self) -> None:
        """Starts it, at the same port each time, and waits until it answers."""
        options = [*self._settings, f"port={self.port}", f"listen_addresses={HOST}"]
        options += [f"unix_socket_directories={self._folder}", "unix_socket_permissions=0700"]
        command = [str(programs() / "postgres"), "-D", str(self._data)]
        command += [part for option in options for part in ("-c", option)]
        log: IO[bytes]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*as_database_user(), *command],
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.wait()

    def wait(self) -> None:
        """Waits until it answers, also after it has restarted itself."""
        end = time.monotonic() + READY_SECONDS
        while True:
            try:
                with self.admin() as db:
                    db.execute("SELECT 1")
            except psycopg.OperationalError:
                assert self._process is not None
                assert self._process.poll() is None, f"PostgreSQL ended: {self.log}"
                assert time.monotonic() < end, f"PostgreSQL does not answer: {self.log}"
                pause()
            else:
                return

    @contextmanager
    def admin(self, database: str = ADMIN) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """A connection of the superuser, on which each statement is a transaction."""
        with psycopg.connect(
            host=str(self._folder), port=self.port, user=ADMIN, dbname=database, autocommit=True
        ) as db:
            yield db

    def create_database(self, template: str = "template1") -> str:
        """Creates a database that belongs to the role of the servers under test; returns its name."""
        name = f"runs_{uuid4().hex}"
        text = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {}")
        with self.admin() as db:
            db.execute(text.format(*map(sql.Identifier, (name, ROLE, template))))
        return name

    def url(
        self, database: str, *, password: str = PASSWORD, host: str = HOST, port: int = 0, options: str = ""
    ) -> str:
        """The URL of a database, as a server under test gets it; `host` and `port` are those of a proxy."""
        place = f"{host}:{port or self.port}/{database}"
        return f"postgresql://{ROLE}:{quote(password, safe='')}@{place}{options}"

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Ends it: fast with SIGINT; immediately with SIGQUIT, as in a crash."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(LINGER_SECONDS)
        self._process = None

    def kill(self) -> None:
        """Ends all of its processes with SIGKILL."""
        assert self._process is not None
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        # The next one refuses to start as long as any process uses the shared memory.
        stayed = outlived(marked(self.mark), LINGER_SECONDS)
        assert not stayed, f"outlived their server: {stayed}"

    def restart(self, how: signal.Signals) -> None:
        """Ends it with this signal (SIGKILL: all of its processes), and starts it again."""
        if how is signal.SIGKILL:
            self.kill()
        else:
            self.stop(how)
        self.start()

    def pause(self) -> None:
        """Stops all of its processes: connections stay open, and nothing is answered."""
        # The first one, which would start others, before those below it.
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Lets all of its processes go on."""
        for pid in reversed(self._pids()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps it from answering while the block goes on."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def _pids(self) -> list[int]:
        """The process that was started, and then those below it."""
        assert self._process is not None
        first = self._process.pid
        # Not by the mark: they write their titles over their environments.
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
        return [first, *(pid for pid in pids if parent(pid) == first)]


class DatabaseSource(Protocol):
    """A server of databases, or a way to it."""

    def create_database(self) -> str:
        """Creates a database that belongs to the role of the servers under test; returns its name."""

    def url(self, database: str) -> str:
        """The URL of a database."""


class Databases:
    """Gives each state folder a database of its own, the same each time.

    Args:
        postgres: The server of all of them.
    """

    def __init__(self, postgres: DatabaseSource) -> None:
        self._postgres = postgres
        self._names: dict[Path, str] = {}

    def url(self, folder: Path) -> str:
        """The URL of the database that belongs to a state folder."""
        if folder not in self._names:
            self._names[folder] = self._postgres.create_database()
        return self._postgres.url(self._names[folder])


def give(path: Path) -> None:
    """Makes a folder that of the user who runs PostgreSQL."""
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)


def as_database_user(end: str = "QUIT") -> list[str]:
    """What a command begins with: not root, which PostgreSQL refuses, with a signal when the tests end."""
    nobody = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if os.geteuid() == 0 else []
    return ["setpriv", "--pdeathsig", end, *nobody, "--"]
