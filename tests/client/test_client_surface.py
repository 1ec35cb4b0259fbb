"""What the package shows: names, signatures, what it imports, and how it takes its settings."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from notebook_runner import AsyncClient, AsyncRun, Client, Run, RunSnapshot, StartOptions
from notebook_runner._connection import DEFAULT_TARGET, Connection
from notebook_runner._requests import start_request

FOREIGN = {"click", "rich", "nbformat", "nbclient", "nbconvert", "jupyter_client", "notebook_runner_server"}
FOREIGN |= {
    "IPython",
    "ipykernel",
    "traitlets",
    "numpy",
    "pydantic",
    "mcp",
    "mcp_types",
    "uvicorn",
    "airflow",
}
# What is imported beside the standard library, and beside what grpcio finds of its own.
OWN = {"notebook_runner", "google"}
METHODS = {"start", "run", "get", "wait", "progress", "output", "save_output", "notebook", "kill", "delete"}
METHODS |= {"runs", "list", "watch", "info", "close", "target"}
# Attributes of a run that read the notebook: methods where they have to be awaited.
READ = {"text", "outputs", "images", "tables"}


def imported_by(statement: str, *, whole: bool = False) -> set[str]:
    """The top-level modules, or the whole names of all, that a fresh interpreter has after a statement."""
    program = f"{statement}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    names: list[str] = json.loads(answer.stdout)
    return set(names) if whole else {name.partition(".")[0] for name in names}


def test_import_needs_only_grpc_and_protobuf() -> None:
    """Importing the client, and making one, needs no package of the command line nor of the server."""
    imported = imported_by("import notebook_runner; notebook_runner.Client(); notebook_runner.AsyncClient()")
    assert not imported & FOREIGN
    by_grpc = imported_by("import grpc")
    installed = {path.name.removesuffix(".py") for path in Path(grpc.__file__).parents[1].iterdir()}
    assert (imported - by_grpc) & installed <= OWN


def test_import_adds_little_to_grpc() -> None:
    """The client brings in few modules of its own, and few of the standard library, beside those of gRPC."""
    counts = [len(imported_by(f"import {names}", whole=True)) for names in ("grpc", "grpc, notebook_runner")]
    assert counts[1] - counts[0] < 120


def test_integrations_are_for_their_hosts() -> None:
    """Neither the client nor its command imports what papermill and others load."""
    imported = imported_by("import notebook_runner.cli; notebook_runner.Client()", whole=True)
    assert not {name for name in imported if name.startswith("notebook_runner.integrations")}


def test_command_needs_nothing_of_the_server() -> None:
    """The command line brings in click, and rich only when it shows something."""
    assert imported_by("import notebook_runner.cli") & FOREIGN == {"click"}


def test_both_clients_have_the_same_names() -> None:
    """What one client can do, the other can, by the same name and with the same arguments."""
    for kind in (Client, AsyncClient):
        assert {name for name in vars(kind) if not name.startswith("_")} == METHODS
    for name in [*METHODS - {"target"}, "__init__"]:
        blocking, awaited = (inspect.signature(getattr(kind, name)) for kind in (Client, AsyncClient))
        assert blocking.parameters == awaited.parameters


def test_both_runs_have_the_same_names() -> None:
    """What a run of one client can do, that of the other can, with the arguments of the client's method."""
    names = [{name for name in vars(kind) if not name.startswith("_")} for kind in (Run, AsyncRun)]
    assert names[0] == names[1] > READ
    for name in names[0] - READ:
        blocking, awaited = (inspect.signature(getattr(kind, name)) for kind in (Run, AsyncRun))
        assert blocking.parameters == awaited.parameters
        of_client = dict(inspect.signature(getattr(Client, name, getattr(Run, name))).parameters)
        of_client.pop("run_id", None)
        assert dict(blocking.parameters) == of_client
    assert not names[0] & {name for name in vars(RunSnapshot) if not name.startswith("_")}


def test_every_option_of_a_start_reaches_the_request() -> None:
    """No option can be given that changes nothing."""
    values = {"str": "x", "bool": True, "int": 5, "Seconds": 5, "Mapping[str, str]": {"a": "b"}}
    values |= {
        "Retry | int": 2,
        "Mapping[str, Any]": {"a": 1},
        "Iterable[str | os.PathLike[str]]": [__file__],
    }
    plain = start_request(None, {"request_id": "0"})
    for name, kind in inspect.get_annotations(StartOptions).items():
        options: StartOptions = {"request_id": "0", name: values[kind.__forward_arg__]}  # type: ignore[misc] # the names are its own
        assert start_request(None, options) != plain, name


def test_settings_come_from_the_environment(tmp_path: Path) -> None:
    """Every setting has its variable, and an argument goes before it."""
    environ = {
        f"NOTEBOOK_RUNNER_{name}": f"/{name}"
        for name in ("TARGET", "TOKEN_FILE", "TLS_CA", "TLS_CERT", "TLS_KEY")
    }
    assert Connection.resolve(environ=environ) == Connection(
        "/TARGET", None, Path("/TOKEN_FILE"), Path("/TLS_CA"), Path("/TLS_CERT"), Path("/TLS_KEY")
    )
    given = Connection.resolve("other:1", token="t", tls_ca=tmp_path, environ=environ)  # noqa: S106 - no secret
    assert (given.target, given.token, given.token_file, given.tls_ca) == ("other:1", "t", None, tmp_path)


def test_empty_settings_are_none() -> None:
    """A variable that is set to nothing is not set."""
    assert Connection.resolve("", environ={"NOTEBOOK_RUNNER_TLS_CA": ""}) == Connection(DEFAULT_TARGET)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_client_says_where_it_leads(kind: type[Client | AsyncClient]) -> None:
    """A client shows its target, and no secret."""
    assert repr(kind("a:1", token="secret")) == f"{kind.__name__}('a:1')"  # noqa: S106 - the one it looks for


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("target", ["http://localhost:50051", "HTTPS://runner.example/x"])
def test_target_that_is_a_url(kind: type[Client | AsyncClient], target: str) -> None:
    """What gRPC would take for the name of a host is refused, with what to write instead."""
    with pytest.raises(ValueError, match=rf"'{target}' is a URL. Use HOST:PORT.") as caught:
        kind(target)
    assert ("tls_ca" in str(caught.value)) is target.startswith("HTTPS")
    kind("dns:///localhost:50051")


def test_certificate_without_key() -> None:
    """Half a pair is refused."""
    with pytest.raises(ValueError, match="tls_cert and tls_key"):
        Client(tls_cert="x")


def test_two_tokens(tmp_path: Path) -> None:
    """A token and a file with one contradict each other."""
    with pytest.raises(ValueError, match="not both"):
        Client(token="x", token_file=tmp_path)  # noqa: S106 - no secret


@pytest.mark.parametrize("token", ["", "two\nlines", "größe"])
def test_token_that_cannot_be_sent(token: str) -> None:
    """A token that no header carries is refused when the client is made, and not shown."""
    with pytest.raises(ValueError, match="printable ASCII"):
        Client(token=token)
    assert "secret" not in repr(Connection("t", token="secret"))  # noqa: S106 - the one it looks for


@pytest.mark.parametrize("setting", ["token_file", "tls_ca"])
def test_missing_file(tmp_path: Path, setting: str) -> None:
    """A file that is not there is an error of the file system."""
    with pytest.raises(FileNotFoundError):
        Client(**{setting: tmp_path / "none"})  # type: ignore[arg-type] # one of the two


@pytest.mark.parametrize(
    ("target", "several"),
    [
        ("127.0.0.1:50051", False),
        ("[::1]:50051", False),
        ("localhost:50051", False),
        ("unix:/run/socket", False),
        ("unix:///run/socket", False),
        ("ipv4:10.0.0.1:50051", False),
        ("ipv4:10.0.0.1:50051,10.0.0.2:50051", True),
        ("ipv6:[fd00::1]:50051,[fd00::2]:50051", True),
        ("dns:///127.0.0.1:50051", False),
        ("dns:///notebook-runner-headless:50051", True),
        ("dns://10.0.0.10/notebook-runner-headless:50051", True),
        ("dns:notebook-runner-headless:50051", True),
        ("notebook-runner.example.com:50051", True),
        ("notebook-runner", True),
    ],
)
def test_targets_with_several_addresses(target: str, several: bool) -> None:
    """Calls are spread over the servers behind a name or a list, and nothing changes for one address."""
    assert Connection(target).has_several_addresses is several
