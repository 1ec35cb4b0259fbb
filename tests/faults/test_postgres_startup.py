"""Databases that a server cannot use: it ends, says why, names no password, and has changed nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from psycopg import sql

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import inline, perform, texts
from tests.support.database_server import DatabaseServer
from tests.support.postgres import PASSWORD, Postgres
from tests.support.server import STORE, STORE_LISTEN
from tests.support.settings import served
from tests.support.unprivileged import UnprivilegedServer, unprivileged_home

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.process_pool("what executes runs is nothing to the database"),
]

WRONG = "wr/ong p@ss"
# As they are, and as they are in a URL.
SECRETS = (PASSWORD, "p%40ss%2Fword%3A1%25", WRONG, "wr%2Fong%20p%40ss")


NEWER = (
    "UPDATE alembic_version SET version_num = '9999'",
    "UPDATE history SET oldest_version = '9999'",
)


class Case(NamedTuple):
    """A database that cannot be used, and what a server says of it."""

    name: str
    url: Callable[[Postgres, str], str]
    said: tuple[str, ...]


def _changed(*statements: str) -> Callable[[Postgres, str], str]:
    """Makes a copy of a used database, and changes it."""

    def change(postgres: Postgres, used: str) -> str:
        name = postgres.create_database(used)
        with postgres.admin(name) as db:
            for statement in statements:
                db.execute(statement.format(name=name).encode())
        return postgres.url(name)

    return change


def _always(url: str) -> Callable[[Postgres, str], str]:
    return lambda *_: url


def _refusing(postgres: Postgres, _: str) -> str:
    """A port at which nobody listens."""
    return postgres.url("runs", port=1)


CASES = [
    Case("wrong password", lambda postgres, used: postgres.url(used, password=WRONG), ("password",)),
    Case("unknown database", lambda postgres, _: postgres.url("missing"), ("missing", "does not exist")),
    Case("nobody there", _refusing, ("127.0.0.1", "refused")),
    Case("a newer version", _changed(*NEWER), ("newer", "9999")),
    Case("no table", _changed("DROP TABLE events"), ("events",)),
    Case("no rights", _changed("REASSIGN OWNED BY runner TO postgres"), ("permission denied",)),
    Case("no URL", _always(f"postgresql://runner:{WRONG}@"), ("--store",)),
    Case("another scheme", _always(f"mysql://runner:{WRONG}@host/runs"), ("--store", "postgresql")),
]


@pytest.fixture(scope="module")
def used(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database that a server has used."""
    name = postgres.create_database()
    with DatabaseServer(tmp_path_factory.mktemp("state"), postgres.url(name)) as server:
        perform(server.stub, inline("1"))
    return name


def rows(postgres: Postgres, database: str) -> dict[str, list[tuple[object, ...]]]:
    """All that is in a database."""
    with postgres.admin(database) as db:
        found = db.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        return {
            name: sorted(db.execute(sql.SQL("TABLE {}").format(sql.Identifier(name))).fetchall(), key=repr)
            for (name,) in found
        }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_database_that_cannot_be_used(postgres: Postgres, used: str, tmp_path: Path, case: Case) -> None:
    """Exit code 1 or 2, one sentence that says what is wrong, no traceback, and no password anywhere."""
    url = case.url(postgres, used)
    name = url.rpartition("/")[2]
    is_there = "runs_" in name
    before = rows(postgres, name) if is_there else {}
    options = ("--listen", "127.0.0.1:0", "--state-dir", str(tmp_path / "state"))
    done = served(*options, **{STORE: url})
    said = done.stdout + done.stderr
    assert done.returncode in {1, 2}, said
    for text in case.said:
        assert text in said, said
    assert "Traceback" not in said
    assert not [secret for secret in SECRETS if secret in said]
    assert (rows(postgres, name) if is_there else {}) == before


READS = """
import os, pathlib
found = [f"{name}={value}" for name, value in os.environ.items()]
for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
    try:
        found.append(path.read_bytes().decode(errors="replace"))
    except OSError:
        pass
for path in (%r, %r):
    try:
        found.append(pathlib.Path(path).read_text())
    except OSError:
        found.append("denied")
print("\\n".join(found))
"""


def test_the_password_is_told_to_nobody(postgres: Postgres) -> None:
    """Neither the log, nor Info, nor the state folder, nor what a notebook finds has it."""
    with unprivileged_home() as home:
        service, passwords = home / "pg_service.conf", home / "pgpass"
        service.write_text(f"[other]\npassword={PASSWORD}\n")
        passwords.write_text(f"*:*:*:other:{PASSWORD}\n")
        variables = {
            STORE: postgres.url(postgres.create_database()),
            "PGSERVICEFILE": str(service),
            "PGPASSFILE": str(passwords),
        }
        with UnprivilegedServer(home, "--log-level", "debug", environment=variables) as server:
            ended = perform(server.stub, inline(READS % (str(service), str(passwords))))
            assert ended.run.state == pb.RUN_STATE_SUCCEEDED
            told = [texts(ended.events), str(server.stub.Info(pb.InfoRequest(), timeout=60))]
            told += [str(server.log), *server.noise]
            state = [path for path in server.state_dir.rglob("*") if path.is_file()]
            told += [path.read_bytes().decode(errors="replace") for path in state]
    assert not [secret for secret in SECRETS for text in told if secret in text]
    assert texts(ended.events).splitlines()[-2:] == ["denied"] * 2


@pytest.mark.parametrize(("flag", "variable"), [("--store", STORE), ("--store-listen", STORE_LISTEN)])
def test_a_password_on_the_command_line_is_refused(
    postgres: Postgres, tmp_path: Path, flag: str, variable: str
) -> None:
    """Other users would see it there; the error says where it may be."""
    urls = {STORE: "postgresql://runner@127.0.0.1/runs"} if flag != "--store" else {}
    folder = ("--state-dir", str(tmp_path / "state"), "--listen", "127.0.0.1:0")
    done = served(flag, postgres.url("runs"), *folder, **urls)
    assert done.returncode == 1
    assert all(name in done.stderr for name in (f"{flag} must", f"{variable},", "PGPASSFILE", "PGSERVICE"))
    assert not [secret for secret in SECRETS if secret in done.stdout + done.stderr]


def test_a_database_is_made_ready_once(postgres: Postgres, used: str, tmp_path: Path) -> None:
    """The next server on it changes no table, and has what was there."""
    before = rows(postgres, used)
    with DatabaseServer(tmp_path / "state", postgres.url(used)) as server:
        (run,) = server.stub.List(pb.ListRequest(), timeout=60).runs
    assert run.state == pb.RUN_STATE_SUCCEEDED
    after = rows(postgres, used)
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} <= {"servers"}
