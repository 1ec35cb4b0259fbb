"""The doctor against everything that can be wrong between a client and its server."""

import json
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from google.protobuf.any_pb2 import Any as Packed
from google.rpc import error_details_pb2, status_pb2
from typing_extensions import override

from notebook_runner.cli import _doctor, main
from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.server import Server
from tests.support.warm import settled

pytestmark = pytest.mark.e2e

KERNEL = pb.KernelInfo(name="python3", language="python", is_default=True, warm_ready=1, warm_wanted=1)
WELL = pb.InfoResponse(version="0.1.0", kernels=[KERNEL], workers=1, queue_size=3)
SILENT = "127.0.0.1:1"


SERVICE = "notebook_runner.v1.NotebookRunner"

Method = Callable[[Any, grpc.ServicerContext], Any]
Serve = Callable[..., str]


def answering(*answers: pb.InfoResponse | tuple[grpc.StatusCode, str]) -> dict[str, Method]:
    """Info with a message, or a status and its reason; the last of them again and again."""
    left = list(answers)

    def info(_: Any, context: grpc.ServicerContext) -> Any:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, pb.InfoResponse):
            return answer
        code, reason = answer
        detail = Packed()
        detail.Pack(error_details_pb2.ErrorInfo(domain="notebook-runner", reason=reason))
        status = status_pb2.Status(code=code.value[0], details=[detail])
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        return context.abort(code, f"said {reason}")

    return {"Info": info}


def old(*_: Any) -> Any:
    """List, as a server of a time answers it when there was no Info."""
    return pb.ListResponse()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves these methods of the service and no others, and gives the address."""
    running: list[grpc.Server] = []

    def started(methods: dict[str, Method], credentials: grpc.ServerCredentials | None = None) -> str:
        server = grpc.server(ThreadPoolExecutor(4))
        handlers: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(
                method, response_serializer=lambda message: message.SerializeToString()
            )
            for name, method in methods.items()
        }
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
        address = "127.0.0.1:0"
        if credentials:
            port = server.add_secure_port(address, credentials)
        else:
            port = server.add_insecure_port(address)
        server.start()
        running.append(server)
        return f"127.0.0.1:{port}"

    yield started
    for server in running:
        server.stop(None).wait()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates that sign themselves: `good` and `other` for 127.0.0.1, `named` for a name."""
    folder = tmp_path_factory.mktemp("keys")
    for name, subject in (("good", "IP:127.0.0.1"), ("other", "IP:127.0.0.1"), ("named", "DNS:runner.test")):
        command = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
        command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        command += ["-addext", f"subjectAltName={subject}"]
        command += ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")]
        subprocess.run(command, check=True, capture_output=True)
    return folder


def credentials(keys: Path, name: str, clients: str = "") -> grpc.ServerCredentials:
    """What a server with TLS has; with `clients` it wants a certificate of each."""
    pair = ((keys / f"{name}.key").read_bytes(), (keys / f"{name}.pem").read_bytes())
    authority = (keys / f"{clients}.pem").read_bytes() if clients else None
    return grpc.ssl_server_credentials([pair], authority, require_client_auth=bool(clients))


def examined(target: str, *settings: str | Path) -> dict[str, dict[str, Any]]:
    """What the doctor finds, by what it looked at; the exit code is right."""
    done = CliRunner().invoke(main, ["--target", target, *map(str, settings), "doctor", "--json"])
    told = json.loads(done.stdout)
    assert told["target"] == target
    assert done.exit_code == (0 if told["ok"] else 1)
    assert told["ok"] is all(finding["ok"] for finding in told["findings"])
    assert all(finding["advice"] for finding in told["findings"] if not finding["ok"])
    return {finding["check"]: finding for finding in told["findings"]}


def problem(found: dict[str, dict[str, Any]]) -> tuple[str, str, str]:
    """The only problem: where it is, what it is, what to do."""
    (bad,) = [finding for finding in found.values() if not finding["ok"]]
    return bad["check"], bad["text"], bad["advice"]


def test_a_server_that_is_well(server: Server) -> None:
    """A real server is well, and its version, kernels and spares are told."""
    settled(server)
    found = examined(server.target)
    assert list(found) == ["connection", "TLS", "token", "version", "kernels", "warm kernels", "runs"]
    assert all(finding["ok"] for finding in found.values())
    assert "python3 (python, default)" in found["kernels"]["text"]


def test_what_it_says_to_people(server: Server) -> None:
    """To people it tells a line for each thing, and what to do below each problem."""
    settled(server)
    well = CliRunner().invoke(main, ["--target", server.target, "doctor"])
    assert well.stdout.splitlines()[-1] == "all checks passed"
    ill = CliRunner().invoke(main, ["--target", SILENT, "doctor"])
    assert ill.exit_code == 1
    first, advice, last = ill.stdout.splitlines()
    assert first == f"✗ connection  Cannot reach {SILENT}: connection refused."
    assert advice.strip() == "→ Start the server or set --target."
    assert last == "1 problem found"


def test_nothing_is_there() -> None:
    """A port where nothing listens, and a name that nobody knows."""
    assert problem(examined(SILENT))[:2] == (
        "connection",
        f"Cannot reach {SILENT}: connection refused.",
    )
    assert "unknown host name" in problem(examined("runner.invalid:50051"))[1]


class _Web(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    @override
    def log_message(self, *_: Any) -> None:
        pass


def test_a_web_server() -> None:
    """A port that speaks HTTP is told from one that speaks gRPC."""
    with HTTPServer(("127.0.0.1", 0), _Web) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        target = f"127.0.0.1:{web.server_port}"
        found = examined(target)
        web.shutdown()
        thread.join()
    check, text, advice = problem(found)
    assert (check, text.startswith(f"Cannot reach {target}: it does not speak gRPC")) == ("protocol", True)
    assert advice == "Another service uses this port. Check --target."


def test_something_else() -> None:
    """A port that accepts and closes is no server of any kind."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        closing = threading.Thread(target=_close_all, args=[listening], daemon=True)
        closing.start()
        target = f"127.0.0.1:{listening.getsockname()[1]}"
        assert problem(examined(target))[1] == f"Cannot reach {target}: it does not speak gRPC."


def _close_all(listening: socket.socket) -> None:
    try:
        while True:
            listening.accept()[0].close()
    except OSError:
        return


def test_tls(serve: Serve, keys: Path) -> None:
    """With the right authority TLS is well; without, with another one and with another name it is not."""
    target = serve(answering(WELL), credentials(keys, "good"))
    found = examined(target, "--tls-ca", keys / "good.pem")
    assert found["TLS"]["text"] == "the server's certificate is trusted"
    assert all(finding["ok"] for finding in found.values())
    assert "the server requires TLS" in problem(examined(target))[1]
    check, text, advice = problem(examined(target, "--tls-ca", keys / "other.pem"))
    assert (check, "not signed by a CA" in text, "contains the CA that signed it" in advice) == (
        "TLS",
        True,
        True,
    )
    named = serve(answering(WELL), credentials(keys, "named"))
    _, text, advice = problem(examined(named, "--tls-ca", keys / "named.pem"))
    assert "127.0.0.1" in text
    assert "a name that is in the certificate" in advice


def test_tls_where_there_is_none(serve: Serve, keys: Path) -> None:
    """A client that wants TLS of a server without it is told so."""
    target = serve(answering(WELL))
    check, text, advice = problem(examined(target, "--tls-ca", keys / "good.pem"))
    assert (check, "the server does not use TLS" in text) == ("TLS", True)
    assert "Omit --tls-ca" in advice


def test_certificates_of_clients(serve: Serve, keys: Path, tmp_path: Path) -> None:
    """A server that wants a certificate of the client is told from one whose own is bad."""
    target = serve(answering(WELL), credentials(keys, "good", clients="other"))
    trusted: list[str | Path] = ["--tls-ca", keys / "good.pem"]
    assert "Set --tls-cert and --tls-key." in problem(examined(target, *trusted))[2]
    mine: list[str | Path] = ["--tls-cert", keys / "other.pem", "--tls-key", keys / "other.key"]
    assert examined(target, *trusted, *mine)["TLS"]["ok"]
    theirs: list[str | Path] = ["--tls-cert", keys / "named.pem", "--tls-key", keys / "named.key"]
    assert "does not accept --tls-cert" in problem(examined(target, *trusted, *theirs))[1]
    (tmp_path / "bad.pem").write_text("no certificate")
    assert "contains no PEM certificates" in problem(examined(target, "--tls-ca", tmp_path / "bad.pem"))[1]


@pytest.mark.parametrize(
    ("code", "reason", "check", "said"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "MISSING_TOKEN", "token", "MISSING_TOKEN: said MISSING_TOKEN"),
        (grpc.StatusCode.UNAUTHENTICATED, "BAD_TOKEN", "token", "BAD_TOKEN: said BAD_TOKEN"),
        (grpc.StatusCode.PERMISSION_DENIED, "BAD_TOKEN", "token", "BAD_TOKEN: said BAD_TOKEN"),
        (grpc.StatusCode.UNAVAILABLE, "NOT_READY", "server", "NOT_READY: said NOT_READY"),
        (grpc.StatusCode.INTERNAL, "INTERNAL_ERROR", "server", "INTERNAL_ERROR"),
    ],
)
def test_what_the_server_refuses(
    serve: Serve, code: grpc.StatusCode, reason: str, check: str, said: str
) -> None:
    """Each reason of the server's is told in words, with what to do."""
    found = problem(examined(serve(answering((code, reason)))))
    assert found[0] == check
    assert said in found[1]


def test_a_token_that_is_accepted(serve: Serve, tmp_path: Path) -> None:
    """With a token it says that the token is good."""
    (tmp_path / "token").write_text("secret")
    found = examined(serve(answering(WELL)), "--token-file", tmp_path / "token")
    assert found["token"]["text"] == "accepted"


def test_versions(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older server is a problem, also one without Info; a newer one is none; another service is."""
    monkeypatch.setattr(_doctor, "__version__", "1.10.0")
    older = problem(examined(serve(answering(pb.InfoResponse(version="1.9.2", kernels=[KERNEL])))))
    assert older[:2] == ("version", "the server is 1.9.2, older than this client (1.10.0)")
    newer = examined(serve(answering(pb.InfoResponse(version="1.10.1", kernels=[KERNEL]))))
    assert (newer["version"]["ok"], "newer" in newer["version"]["text"]) == (True, True)
    assert "does not report its version" in problem(examined(serve({"List": old})))[1]
    assert "is not a notebook-runner" in problem(examined(serve({})))[1]


def test_kernels(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel is a problem, a spare that does not get ready as well; that none are kept is not."""
    monkeypatch.setattr(_doctor, "WARM_TIMEOUT", 0.1)
    assert problem(examined(serve(answering(pb.InfoResponse(version="0.1.0")))))[0] == "kernels"
    cold = pb.KernelInfo(name="python3", language="python", warm_ready=1, warm_wanted=2)
    found = problem(examined(serve(answering(pb.InfoResponse(version="0.1.0", kernels=[cold])))))
    assert found[:2] == ("warm kernels", "python3: 1 of 2 ready")
    none = pb.KernelInfo(name="python3", language="python")
    found_well = examined(serve(answering(pb.InfoResponse(version="0.1.0", kernels=[none]))))
    assert "none are kept" in found_well["warm kernels"]["text"]


def test_a_spare_that_is_on_its_way(serve: Serve) -> None:
    """A kernel that gets ready while the doctor looks is well."""
    cold = pb.InfoResponse(version="0.1.0", kernels=[pb.KernelInfo(name="python3", warm_wanted=1)])
    assert examined(serve(answering(cold, WELL)))["warm kernels"]["ok"]
