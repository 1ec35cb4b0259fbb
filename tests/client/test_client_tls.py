"""Encrypted connections: who is let in, and what a caller is told who is not."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from notebook_runner import AsyncClient, Client, Unavailable
from tests.support.fake_server import ENDED, FakeServer, changed

Files = dict[str, Path]
TOKEN = "secret"  # noqa: S105 - opens no door


@dataclass(frozen=True)
class Authority:
    """Signs certificates, and has them as files."""

    folder: Path
    ca: trustme.CA

    def trusted(self) -> Files:
        """What a client is given to trust this authority."""
        self.ca.cert_pem.write_to_path(self.folder / "ca.pem")
        return {"tls_ca": self.folder / "ca.pem"}

    def known(self) -> Files:
        """What a client is given to be known as somebody whom this authority has signed."""
        issued = self.ca.issue_cert("client@runner.test")
        (self.folder / "client.pem").write_bytes(chain(issued))
        issued.private_key_pem.write_to_path(self.folder / "client.key")
        return {"tls_cert": self.folder / "client.pem", "tls_key": self.folder / "client.key"}

    def serve(self, name: str = "127.0.0.1", *, clients: bool = False) -> FakeServer:
        """A server under a name; with `clients` it wants a certificate of this authority from each."""
        issued = self.ca.issue_cert(name)
        pair = (issued.private_key_pem.bytes(), chain(issued))
        wanted = self.ca.cert_pem.bytes() if clients else None
        return FakeServer(grpc.ssl_server_credentials([pair], wanted, require_client_auth=clients))


def chain(issued: trustme.LeafCert) -> bytes:
    """A certificate with those that vouch for it."""
    return b"".join(blob.bytes() for blob in issued.cert_chain_pems)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority that has signed the servers."""
    return Authority(tmp_path_factory.mktemp("ours"), trustme.CA())


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another authority."""
    return Authority(tmp_path_factory.mktemp("theirs"), trustme.CA())


@pytest.fixture
def serve() -> Iterator[Callable[[FakeServer], FakeServer]]:
    """Has a server stopped when the test is over, and gives it one thing to say."""
    serving: list[FakeServer] = []

    def started(fake: FakeServer) -> FakeServer:
        fake.answers("Progress", changed(1, ENDED))
        serving.append(fake)
        return fake

    yield started
    for fake in serving:
        fake.stop()


def follow_blocking(target: str, **files: Any) -> int:
    """How many events a client that blocks sees, without a second attempt."""
    with Client(target, **files) as client:
        return len(list(client.progress("r", reconnect_timeout=0)))


def follow_awaited(target: str, **files: Any) -> int:
    """How many events a client of asyncio sees, without a second attempt."""

    async def scenario() -> int:
        async with AsyncClient(target, **files) as client:
            return len([event async for event in client.progress("r", reconnect_timeout=0)])

    return asyncio.run(scenario())


BOTH = pytest.mark.parametrize("follow", [follow_blocking, follow_awaited])
Follow = Callable[..., int]
Serve = Callable[[FakeServer], FakeServer]


@BOTH
def test_right_authority_and_token(ours: Authority, serve: Serve, follow: Follow) -> None:
    """A server that shows a certificate of the trusted authority is told the token."""
    server = serve(ours.serve())
    assert follow(server.target, **ours.trusted(), token=TOKEN) == 1
    assert server.metadata[0]["authorization"] == f"Bearer {TOKEN}"


@BOTH
def test_client_certificate(ours: Authority, serve: Serve, follow: Follow) -> None:
    """A server that wants to know its clients lets in one whose certificate it can check."""
    server = serve(ours.serve(clients=True))
    assert follow(server.target, **ours.trusted(), **ours.known()) == 1


def test_files_from_the_environment(ours: Authority, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing need be said in the code: where, whom to trust and who one is come from variables."""
    server = serve(ours.serve(clients=True))
    (ours.folder / "token").write_text(TOKEN)
    files = {**ours.trusted(), **ours.known(), "token_file": ours.folder / "token"}
    for name, path in files.items():
        monkeypatch.setenv(f"NOTEBOOK_RUNNER_{name.upper()}", str(path))
    monkeypatch.setenv("NOTEBOOK_RUNNER_TARGET", server.target)
    with Client() as client:
        assert len(list(client.progress("r", reconnect_timeout=0))) == 1
    assert server.metadata[0]["authorization"] == f"Bearer {TOKEN}"


@BOTH
def test_server_of_another_authority(
    ours: Authority, theirs: Authority, serve: Serve, follow: Follow
) -> None:
    """A server whose certificate cannot be checked is told nothing, and the caller is told why."""
    server = serve(ours.serve())
    with pytest.raises(Unavailable, match="not signed by a CA in tls_ca"):
        follow(server.target, **theirs.trusted(), token=TOKEN)
    assert not server.asked


@BOTH
def test_server_of_another_name(ours: Authority, serve: Serve, follow: Follow) -> None:
    """A certificate of the right authority for another name is not enough."""
    server = serve(ours.serve("elsewhere.test"))
    with pytest.raises(Unavailable, match="for another host name"):
        follow(server.target, **ours.trusted())
    assert not server.asked


@BOTH
@pytest.mark.parametrize("given", ["nothing", "of another authority"])
def test_client_that_the_server_does_not_know(
    ours: Authority, theirs: Authority, serve: Serve, follow: Follow, given: str
) -> None:
    """A server that cannot check who is there ends the connection, and the caller is told what it may be."""
    server = serve(ours.serve(clients=True))
    shown = {} if given == "nothing" else theirs.known()
    with pytest.raises(
        Unavailable, match=r"it may require TLS \(tls_ca\) or a client certificate \(tls_cert\)"
    ):
        follow(server.target, **ours.trusted(), **shown)
    assert not server.asked


@BOTH
def test_plain_client_of_an_encrypted_server(ours: Authority, serve: Serve, follow: Follow) -> None:
    """A client that was told of no authority says that the server may require TLS."""
    with pytest.raises(Unavailable, match=r"it may require TLS \(tls_ca\)"):
        follow(serve(ours.serve()).target)


@BOTH
def test_encrypted_client_of_a_plain_server(
    ours: Authority, serve: Serve, fake: FakeServer, follow: Follow
) -> None:
    """A client that wants encryption says that the server has none, and tells it nothing."""
    with pytest.raises(Unavailable, match="does not use TLS"):
        follow(serve(fake).target, **ours.trusted(), token=TOKEN)
    assert not fake.asked


@BOTH
def test_files_that_are_no_certificates(
    ours: Authority, theirs: Authority, tmp_path: Path, follow: Follow
) -> None:
    """What gRPC would only call a failure to connect is told by the file it is about."""
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    with pytest.raises(ValueError, match=r"tls_ca \(.*junk.pem\) contains no PEM certificates"):
        follow("127.0.0.1:1", tls_ca=junk)
    with pytest.raises(ValueError, match="do not contain a matching PEM certificate and key"):
        follow("127.0.0.1:1", tls_cert=ours.known()["tls_cert"], tls_key=junk)
    with pytest.raises(ValueError, match="do not contain a matching PEM certificate and key"):
        follow("127.0.0.1:1", tls_cert=ours.known()["tls_cert"], tls_key=theirs.known()["tls_key"])
