"""The compose file: its values fit, and podman-compose starts a server from it that works and drains."""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import run
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import yaml

from notebook_runner import Client, Printed, StateChanged
from notebook_runner_server.app import STREAM_GRACE
from notebook_runner_server.config import ENVIRONMENT_PREFIX, Settings
from notebook_runner_server.execution.processes import KILL_DEADLINE
from notebook_runner_server.logs import LAST_SECONDS
from notebook_runner_server.observability.traces import FLUSH_SECONDS
from tests.container.podman import draining, inspected_container, ready
from tests.container.test_manifests_fit import REST, TIMES, bytes_of, number, seconds, seconds_of
from tests.container.test_pod import WRITES, performed, printed_by
from tests.container.test_pod_ends import waiting
from tests.support.pages import REPOSITORY
from tests.support.ports import free_port
from tests.support.server import PROGRAM

FILE = REPOSITORY / "compose.yaml"
SECONDS = 120.0
COMPOSE = str(Path(sys.executable).with_name("podman-compose"))
(SERVICE,) = yaml.safe_load(FILE.read_text())["services"].values()
GIVEN: dict[str, str] = SERVICE["environment"]


class Composed:
    """The compose file's service under podman-compose, on the machine's own network.

    Attributes:
        target: Where the server listens.
        token: The token of a caller.
        container: The container's name.
    """

    def __init__(self, folder: Path, image: str) -> None:
        self._project = f"nbr{uuid4().hex[:8]}"
        self.container = f"{self._project}_notebook-runner_1"
        self.target = f"127.0.0.1:{free_port()}"
        tokens = folder / "tokens"
        self._environment = {"TOKENS": str(tokens)}
        command = [str(PROGRAM), "--tokens-file", str(tokens), "--new-token", "test:run"]
        self.token = run(command, capture_output=True, text=True, timeout=SECONDS, check=True).stdout.strip()
        tokens.chmod(0o644)
        changes: dict[str, Any] = {
            "image": image,
            "network_mode": "host",
            "environment": {"NOTEBOOK_RUNNER_LISTEN": self.target},
        }
        self._changes = folder / "changes.yaml"
        self._changes.write_text(yaml.safe_dump({"services": {"notebook-runner": changes}}))

    def compose(self, *arguments: str) -> None:
        """Runs podman-compose, which has to succeed."""
        options = ["--project-name", self._project, "--file", str(FILE), "--file", str(self._changes)]
        done = run(
            [COMPOSE, *options, *arguments],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            env=self._environment | environment(),
        )
        assert done.returncode == 0, done.stdout + done.stderr


def environment() -> dict[str, str]:
    """The variables that podman needs."""
    return {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "CONTAINERS_CONF"}}


def test_the_database_is_the_servers() -> None:
    """The server's URL names the service, user, password and database that compose.postgres.yaml creates."""
    services = yaml.safe_load((REPOSITORY / "compose.postgres.yaml").read_text())["services"]
    server, database = services["notebook-runner"], services["database"]
    given = database["environment"]
    # A variable of compose, whose question mark would begin a query.
    password = given["POSTGRES_PASSWORD"]
    url = urlsplit(server["environment"]["NOTEBOOK_RUNNER_STORE"].replace(password, "password"))
    assert (url.scheme, url.hostname, url.path[1:]) == ("postgresql", "database", given["POSTGRES_DB"])
    assert (url.username, url.password) == (given["POSTGRES_USER"], "password")
    assert server["depends_on"] == {"database": {"condition": "service_healthy"}}
    # Nobody but the server reaches it.
    assert "ports" not in database


@pytest.fixture(scope="module")
def composed(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    """The service; the last test stops it."""
    made = Composed(tmp_path_factory.mktemp("compose"), image)
    try:
        made.compose("up", "--detach", "--no-build")
        ready(made.target)
        yield made
    finally:
        made.compose("down", "--volumes")


@pytest.fixture
def client(composed: Composed) -> Iterator[Client]:
    """A client that has a token."""
    with Client(composed.target, token=composed.token) as one:
        yield one


def test_variables_are_settings() -> None:
    """Each variable is one of the server's settings."""
    assert GIVEN.keys() <= {f"{ENVIRONMENT_PREFIX}_{name.upper()}" for name in Settings.__dataclass_fields__}


def test_values_fit() -> None:
    """As in the manifests: each limit has a default and a ceiling, and a stop waits for the drain."""
    for name in TIMES:
        limit, most = seconds_of(GIVEN, f"{name}_TIMEOUT"), seconds_of(GIVEN, f"MAX_{name}_TIMEOUT")
        assert 0 < limit <= most
    most = bytes_of(GIVEN, "MAX_MEMORY_LIMIT")
    assert most + REST <= number(SERVICE["mem_limit"].replace("g", "Gi"))
    assert number(GIVEN["NOTEBOOK_RUNNER_MAX_PROCESS_LIMIT"]) < SERVICE["pids_limit"]
    after = STREAM_GRACE + KILL_DEADLINE + FLUSH_SECONDS + 2 * LAST_SECONDS
    assert seconds(SERVICE["stop_grace_period"]) > Settings().drain_timeout + after


def test_only_this_machine_reaches_it() -> None:
    """Its port is published on the loopback address, and its callers need tokens, which are a secret."""
    assert SERVICE["ports"] == ["127.0.0.1:50051:50051"]
    assert GIVEN["NOTEBOOK_RUNNER_TOKENS_FILE"] == f"/run/secrets/{SERVICE['secrets'][0]}"


def test_the_container_is_closed(composed: Composed) -> None:
    """The engine got all restrictions of the file."""
    told = inspected_container(composed.container)
    host = told["HostConfig"]
    assert host["ReadonlyRootfs"] is True
    assert (host["Memory"], host["PidsLimit"]) == (number(SERVICE["mem_limit"].replace("g", "Gi")), 1024)
    assert told["EffectiveCaps"] in ([], None)
    assert "no-new-privileges" in " ".join(host["SecurityOpt"])
    assert told["Config"]["Healthcheck"]["Test"][-2:] == ["notebook-runner", "health"]


def test_it_runs_notebooks(client: Client) -> None:
    """A notebook runs, and writes nowhere but into its own folders."""
    ended = performed(client, WRITES)
    assert printed_by(client, ended) == "[]\n", ended.failure


def test_stop_drains(composed: Composed, client: Client) -> None:
    """An active run ends by itself within the grace period of the file."""
    with waiting(client) as (one, gate), ThreadPoolExecutor(1) as threads:
        events = one.progress()
        next(event for event in events if isinstance(event, Printed))
        stopped = threads.submit(composed.compose, "stop")
        draining(composed.target)
        gate.send(b"x")
        *_, last = events
        assert isinstance(last, StateChanged)
        assert last.run.ok, last
        stopped.result(SECONDS)
    assert inspected_container(composed.container)["State"]["ExitCode"] == 0
