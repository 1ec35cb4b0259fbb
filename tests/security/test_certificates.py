"""Certificates: no impostor is let in, and files that change under load end no call."""

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from click.testing import CliRunner
from support.calls import SECONDS, inline
from support.secure import ADDRESS, Pair, TlsFolder, issue, listed, new_token, roots, secure_channel
from support.server import Server

from notebook_runner import AsyncClient, Client, Unavailable
from notebook_runner.cli import main as command
from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc

NOW = datetime.now(UTC)
EXPIRED: Any = {"not_before": NOW - timedelta(days=2), "not_after": NOW - timedelta(days=1)}
NOT_YET: Any = {"not_before": NOW + timedelta(days=1), "not_after": NOW + timedelta(days=2)}
# A refused handshake shows within milliseconds; the channel tries again until the deadline.
REFUSED_SECONDS = 1.5

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


def refused(channel: grpc.Channel) -> bool:
    """Whether a connection is not made."""
    with channel, pytest.raises(grpc.RpcError) as caught:
        listed(channel, timeout=REFUSED_SECONDS)
    code = caught.value.code()
    return code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


def accepted(channel: grpc.Channel) -> bool:
    """Whether an ordinary call is answered."""
    with channel:
        return listed(channel) == []


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
        assert refused(secure_channel(plain_tls.target, roots(OURS)))
    finally:
        tls.put(issue(OURS))
    with Client(plain_tls.target, tls_ca=ca) as client:
        assert list(client.list()) == []


def test_without_tls(plain_tls: Server) -> None:
    """Who speaks in plain text is not answered."""
    assert refused(grpc.insecure_channel(plain_tls.target))


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
    assert refused(secure_channel(mutual.target, roots(OURS), pair))
    assert accepted(secure_channel(mutual.target, roots(OURS), issue(OURS, "ci")))


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
    assert refused(secure_channel(server.target, roots(OURS)))


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
        run = client.run(inline("1").notebook_content).run

    async def ids() -> list[str]:
        async with AsyncClient(target, **given) as awaiting:
            return [one.run_id async for one in awaiting.list()]

    assert asyncio.run(ids()) == [run.run_id]
    options = [f"--{name.replace('_', '-')}={file}" for name, file in given.items()]
    done = CliRunner().invoke(command, ["--target", target, *options, "list"])
    assert done.exit_code == 0, done.output
    assert run.run_id[:8] in done.output


class Load:
    """Ordinary calls that go on beside a change; each must be answered."""

    def __init__(self) -> None:
        self.answered = 0
        self.failures: list[BaseException] = []
        self._over = threading.Event()

    def each(self, call: Callable[[], object]) -> None:
        """Makes a call again and again until it is over."""
        while not self._over.is_set():
            try:
                call()
            except Exception as error:  # noqa: BLE001 - the test tells of it
                self.failures.append(error)
                return
            self.answered += 1

    def more(self, count: int = 20) -> None:
        """Waits until so many more calls are answered."""
        end, wanted = time.monotonic() + SECONDS, self.answered + count
        while self.answered < wanted and not self.failures:
            assert time.monotonic() < end
            self._over.wait(0.01)
        assert not self.failures

    @contextmanager
    def beside(self, *calls: Callable[[], object]) -> Iterator[None]:
        """Goes on while the block runs."""
        threads = [threading.Thread(target=self.each, args=[call]) for call in calls]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join(SECONDS)


def shown(server: Server, caller: Pair, folder: Path) -> bytes:
    """The certificate that a new connection is shown, whoever signed it."""
    (folder / "caller.pem").write_bytes(caller.cert + caller.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(folder / "caller.pem")
    context.set_alpn_protocols(["h2"])
    host, _, port = server.target.rpartition(":")
    with socket.create_connection((host, int(port)), SECONDS) as plain, context.wrap_socket(plain) as secured:
        return secured.getpeercert(binary_form=True) or b""


def test_rotated_under_load(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """Certificate, key and authorities of callers are replaced; no call fails and no stream ends."""
    files = TlsFolder(tmp_path, issue(OURS), roots(OURS))
    server = make_server(*files.options, "--heartbeat-interval", "0.1")
    trusted, callers = roots(OURS, THEIRS), {"new connections": issue(OURS, "ci")}
    kept = secure_channel(server.target, trusted, issue(OURS, "ci"))
    stub = rpc.NotebookRunnerStub(kept)
    load = Load()

    def connect() -> None:
        with secure_channel(server.target, trusted, callers["new connections"]) as channel:
            listed(channel)

    run = stub.Start(inline("import time; time.sleep(600)"), timeout=SECONDS).run
    stream = stub.Progress(pb.ProgressRequest(run_id=run.run_id), timeout=2 * SECONDS)
    with load.beside(lambda: listed(kept), connect, connect):
        load.more()
        second = issue(OURS)
        files.put(second, roots(OURS, THEIRS))
        load.more()
        assert shown(server, callers["new connections"], tmp_path) == ssl.PEM_cert_to_DER_cert(_first(second))
        callers["new connections"] = issue(THEIRS, "ci")
        load.more()
        third = issue(THEIRS)
        files.put(third, roots(THEIRS))
        load.more()
        assert shown(server, callers["new connections"], tmp_path) == ssl.PEM_cert_to_DER_cert(_first(third))
        assert refused(secure_channel(server.target, trusted, issue(OURS, "ci")))
    assert stub.Kill(pb.KillRequest(run_id=run.run_id), timeout=SECONDS).run.state == pb.RUN_STATE_KILLED
    assert list(stream)[-1].run_changed.state == pb.RUN_STATE_KILLED
    kept.close()
    assert [entry["event"] for entry in server.log].count("certificates reloaded") == 2


def _first(pair: Pair) -> str:
    end = "-----END CERTIFICATE-----\n"
    return pair.cert.decode().partition(end)[0] + end


def _broken(pair: Pair, other: Pair) -> dict[str, Pair]:
    return {
        "a certificate half written": Pair(pair.cert[: len(pair.cert) // 3], pair.key),
        "a key half written": Pair(pair.cert, pair.key[: len(pair.key) // 2]),
        "the key of another": Pair(pair.cert, other.key),
        "nothing": Pair(b"", b""),
        "no PEM": Pair(b"\0" * 100, b"\xff" * 100),
    }


def test_files_that_do_not_fit(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """Half written files, and a key that is another's, change nothing, and it is told."""
    files = TlsFolder(tmp_path, issue(OURS), roots(OURS))
    server = make_server(*files.options)
    caller = issue(OURS, "ci")
    for broken in _broken(issue(OURS), issue(OURS)).values():
        files.put(broken, roots(OURS))
        for _ in range(2):
            assert accepted(secure_channel(server.target, roots(OURS), caller))
    files.put(issue(OURS), b"-----BEGIN CERTIFICATE-----\n")
    assert accepted(secure_channel(server.target, roots(OURS), caller))
    (tmp_path / "now").unlink()
    assert accepted(secure_channel(server.target, roots(OURS), caller))
    files.put(issue(OURS), roots(OURS))
    assert accepted(secure_channel(server.target, roots(OURS), caller))
    told = [entry for entry in server.log if entry["event"].startswith("certificates not reloaded")]
    assert {entry["level"] for entry in told} == {"error"}
    assert 5 <= len(told) <= 7
    assert "PRIVATE" not in server.tail()
    assert server.said("certificates reloaded")


def test_files_that_cannot_be_used_at_start(tmp_path: Path) -> None:
    """The server does not serve without the TLS that it was told of, and says which file is at fault."""
    for name, pair in _broken(issue(OURS), issue(OURS)).items():
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        files = TlsFolder(folder, pair)
        with (
            pytest.raises(AssertionError, match="the server ended") as caught,
            Server(folder / "state", *files.options),
        ):
            pass
        assert "tls.key" in str(caught.value)
        assert "Traceback" not in str(caught.value)
