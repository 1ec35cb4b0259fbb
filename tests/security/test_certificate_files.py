"""Files of certificates that change under load, or are broken: no call fails, and the log tells."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc
from tests.support.calls import SECONDS, inline
from tests.support.secure import (
    Pair,
    TlsFolder,
    is_accepted,
    is_refused,
    issue,
    listed,
    roots,
    secure_channel,
)
from tests.support.server import Server

OURS, THEIRS = trustme.CA(), trustme.CA()


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
        assert is_refused(secure_channel(server.target, trusted, issue(OURS, "ci")))
    assert stub.Kill(pb.KillRequest(run_id=run.run_id), timeout=SECONDS).run.state == pb.RUN_STATE_KILLED
    assert list(stream)[-1].run_changed.state == pb.RUN_STATE_KILLED
    kept.close()
    assert len(server.logged("certificates_reloaded", count=2)) == 2


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


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    """Half written files, and a key that is another's, change nothing, and it is told."""
    files = TlsFolder(tmp_path, issue(OURS), roots(OURS))
    caller = issue(OURS, "ci")
    # The log is whole when the server has ended.
    with Server(tmp_path / "state", *files.options) as server:
        for broken in _broken(issue(OURS), issue(OURS)).values():
            files.put(broken, roots(OURS))
            for _ in range(2):
                assert is_accepted(secure_channel(server.target, roots(OURS), caller))
        files.put(issue(OURS), b"-----BEGIN CERTIFICATE-----\n")
        assert is_accepted(secure_channel(server.target, roots(OURS), caller))
        (tmp_path / "now").unlink()
        assert is_accepted(secure_channel(server.target, roots(OURS), caller))
        files.put(issue(OURS), roots(OURS))
        assert is_accepted(secure_channel(server.target, roots(OURS), caller))
    told = server.logged("certificates_not_reloaded", count=5)
    assert {entry["level"] for entry in told} == {"error"}
    assert 5 <= len(told) <= 7, told
    assert "PRIVATE" not in server.tail()
    server.logged("certificates_reloaded")


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
