"""Certificates: no impostor is let in, neither as a server nor as a caller."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from click.testing import CliRunner

from notebook_runner import AsyncClient, Client, Unavailable
from notebook_runner.cli import main as command
from tests.support.calls import inline
from tests.support.secure import (
    ADDRESS,
    REFUSED_SECONDS,
    Pair,
    TlsFolder,
    is_accepted,
    is_refused,
    issue,
    listed,
    new_token,
    roots,
    secure_channel,
)
from tests.support.server import Server

NOW = datetime.now(UTC)
EXPIRED: Any = {"not_before": NOW - timedelta(days=2), "not_after": NOW - timedelta(days=1)}
NOT_YET: Any = {"not_before": NOW + timedelta(days=1), "not_after": NOW + timedelta(days=2)}

OURS, THEIRS = trustme.CA(), trustme.CA()


def lone(name: str = ADDRESS) -> Pair:
    """A certificate of an authority that nobody has heard of."""
    return issue(trustme.CA(), name)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFolder:
    """The files of `plain_tls`."""
    return TlsFolder(tmp_path_factory.mktemp("tls"), issue(OURS))


@pytest.fixture(scope="module")
def plain_tls(tmp_path_factory: pytest.TempPathFactory, tls: TlsFolder) -> Iterator[Server]:
    """A server with TLS that asks callers for nothing."""
    with Server(tmp_path_factory.mktemp("state"), *tls.options) as server:
        yield server


IMPOSTORS: dict[str, Callable[[], Pair]] = {
    "expired": lambda: issue(OURS, **EXPIRED),
    "not valid yet": lambda: issue(OURS, **NOT_YET),
    "for another name": lambda: issue(OURS, "example.org"),
    "for another address": lambda: issue(OURS, "127.0.0.2"),
    "of another authority": lambda: issue(THEIRS),
    "signed by nobody": lone,
}


@pytest.mark.parametrize("name", IMPOSTORS)
def test_a_server_that_is_an_impostor(plain_tls: Server, tls: TlsFolder, tmp_path: Path, name: str) -> None:
    """Both clients refuse it, and take the true certificate when it is there again."""
    ca = tmp_path / "ca.pem"
    ca.write_bytes(roots(OURS))
    tls.put(IMPOSTORS[name]())
    try:
        with (
            Client(plain_tls.target, tls_ca=ca, timeout=REFUSED_SECONDS) as client,
            pytest.raises(Unavailable),
        ):
            list(client.list())
        assert is_refused(secure_channel(plain_tls.target, roots(OURS)))
    finally:
        tls.put(issue(OURS))
    with Client(plain_tls.target, tls_ca=ca) as client:
        assert list(client.list()) == []


def test_without_tls(plain_tls: Server) -> None:
    """Who speaks in plain text is not answered."""
    assert is_refused(grpc.insecure_channel(plain_tls.target))


CALLERS: dict[str, Callable[[], Pair | None]] = {
    "none": lambda: None,
    "expired": lambda: issue(OURS, "ci", **EXPIRED),
    "not valid yet": lambda: issue(OURS, "ci", **NOT_YET),
    "of another authority": lambda: issue(THEIRS, "ci"),
    "signed by nobody": lambda: lone("ci"),
    "signed by a caller": lambda: _signed_by(issue(OURS, "ci")),
}


def _signed_by(pair: Pair) -> Pair:
    """A certificate that one who has only a certificate has signed with it."""
    return issue(trustme.CA.from_pem(pair.cert, pair.key), "root")


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that wants certificates of its callers."""
    files = TlsFolder(tmp_path_factory.mktemp("tls"), issue(OURS), roots(OURS))
    with Server(tmp_path_factory.mktemp("state"), *files.options) as server:
        yield server


@pytest.mark.parametrize("name", CALLERS)
def test_a_caller_that_is_an_impostor(mutual: Server, name: str) -> None:
    """Without a valid certificate of the right authority no call is answered, health neither."""
    pair = CALLERS[name]()
    assert is_refused(secure_channel(mutual.target, roots(OURS), pair))
    assert is_accepted(secure_channel(mutual.target, roots(OURS), issue(OURS, "ci")))


def test_certificates_and_tokens(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """Where both are asked for, both are needed."""
    token = new_token(tmp_path / "tokens")
    files = TlsFolder(tmp_path, issue(OURS), roots(OURS))
    server = make_server(*files.options, "--tokens-file", str(tmp_path / "tokens"))
    with secure_channel(server.target, roots(OURS), issue(OURS, "ci")) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            listed(channel)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert listed(channel, token) == []
    assert is_refused(secure_channel(server.target, roots(OURS)))


def test_the_clients_and_the_command(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """Certificates and a token file, each given as files, reach the server from all three clients."""
    token = new_token(tmp_path / "tokens")
    (tmp_path / "token").write_text(token + "\n")
    pair = issue(OURS, "ci")
    for name, content in {"ca": roots(OURS), "crt": pair.cert, "key": pair.key}.items():
        (tmp_path / name).write_bytes(content)
    files = TlsFolder(tmp_path, issue(OURS), roots(OURS))
    target = make_server(*files.options, "--tokens-file", str(tmp_path / "tokens")).target
    given: Any = {"token_file": "token", "tls_ca": "ca", "tls_cert": "crt", "tls_key": "key"}
    given = {name: tmp_path / file for name, file in given.items()}
    with Client(target, **given) as client:
        run = client.run(inline("1").notebook_content)

    async def ids() -> list[str]:
        async with AsyncClient(target, **given) as awaiting:
            return [one.id async for one in awaiting.list()]

    assert asyncio.run(ids()) == [run.id]
    options = [f"--{name.replace('_', '-')}={file}" for name, file in given.items()]
    done = CliRunner().invoke(command, ["--target", target, *options, "list"])
    assert done.exit_code == 0, done.output
    assert run.id[:8] in done.output
