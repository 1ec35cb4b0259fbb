"""The command that probes start: what it answers of a server in each of its states."""

from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner, Result

from notebook_runner.cli import main
from tests.support.calls import inline, reach, started
from tests.support.gate import Gate
from tests.support.server import Server

pytestmark = pytest.mark.e2e


def asked(target: str, *arguments: str, **environment: str) -> Result:
    """The command's end."""
    found: Result = CliRunner().invoke(main, ["--target", target, "health", *arguments], env=environment)
    return found


@pytest.mark.parametrize("service", ["", "liveness", "notebook_runner.v1.NotebookRunner"])
def test_a_busy_server_is_well(server: Server, gate: Gate, service: str) -> None:
    """A server that executes a run serves, whatever it is asked for."""
    with started(server.stub, inline(gate.source)) as run:
        reach(server.stub, run.run_id, "cell_started")
        found = asked(server.target, *([service] if service else []))
        gate.open()
    assert (found.stdout, found.exit_code) == ("SERVING\n", 0)


@pytest.mark.parametrize("service", ["nobody", "long" * 100])
def test_a_service_that_is_not_there(server: Server, service: str) -> None:
    """Who asks for a name that is none is told so, and it is no health."""
    found = asked(server.target, service)
    assert (found.stdout, found.exit_code) == ("", 2)


def test_nothing_is_there() -> None:
    """Without a server the exit code is the one of what cannot be reached."""
    found = asked("127.0.0.1:1", "--timeout", "60")
    assert (found.stdout, found.exit_code) == ("", 8)
    assert "Cannot reach 127.0.0.1:1: connection refused." in found.stderr


def test_the_variables_of_the_server_itself(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """With TLS that asks for certificates, a probe in the server's container needs but the authority."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "tls.key")
    for blob in issued.cert_chain_pems:
        blob.write_to_path(tmp_path / "tls.crt", append=True)
    files = {
        "NOTEBOOK_RUNNER_TLS_CERT": str(tmp_path / "tls.crt"),
        "NOTEBOOK_RUNNER_TLS_KEY": str(tmp_path / "tls.key"),
    }
    authorities = str(tmp_path / "ca.crt")
    server = make_server("--tls-client-ca", authorities, environment=files)
    found = asked(server.target, NOTEBOOK_RUNNER_TLS_CA=authorities, **files)
    assert (found.stdout, found.exit_code) == ("SERVING\n", 0)
    assert asked(server.target).exit_code == 8
