"""The HTTP API is as closed as gRPC: to callers without credentials, to pages, and to notebooks."""

import json
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import grpc
import pytest
import trustme

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc
from notebook_runner_server.api.peers import HEADER
from tests.support.calls import inline, perform
from tests.support.errors import refused
from tests.support.http_client import SECONDS, HttpCaller
from tests.support.notebooks import content
from tests.support.polling import pause
from tests.support.secure import ADDRESS, BAD, TlsFolder, bearer, issue, new_token, plain, roots
from tests.support.server import PROGRAM, Server

HTTP = ("--http-listen", "127.0.0.1:0")


class HttpGuarded:
    """A server with HTTP that wants tokens, and one token of each scope."""

    def __init__(self, server: Server, file: Path) -> None:
        self.server = server
        self.run, self.read = new_token(file, "ci"), new_token(file, "board", "read")
        self.anyone = HttpCaller(server.http)
        self.runner = HttpCaller(server.http, authorization=f"Bearer {self.run}")
        self.reader = HttpCaller(server.http, authorization=f"bearer  {self.read}")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpGuarded]:
    """Such a server."""
    folder = tmp_path_factory.mktemp("guarded")
    file = folder / "tokens"
    new_token(file, "first")
    options = ("--tokens-file", str(file), "--heartbeat-interval", "0.2", *HTTP)
    with Server(folder / "state", *options, "--http-cors-origins", "https://app.example") as server:
        yield HttpGuarded(server, file)


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on loopback that asks for nothing."""
    with Server(tmp_path_factory.mktemp("state"), *HTTP) as server:
        yield server


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("POST", "/v1/runs"),
        ("GET", "/v1/runs"),
        ("GET", "/v1/runs/latest"),
        ("GET", "/v1/runs/latest/progress"),
        ("GET", "/v1/runs/latest/output"),
        ("POST", "/v1/runs/latest:kill"),
        ("DELETE", "/v1/runs/x"),
        ("GET", "/v1/watch"),
        ("GET", "/v1/info"),
    ],
)
def test_each_call_needs_a_token(guarded: HttpGuarded, verb: str, path: str) -> None:
    """Without one, with a wrong one, with two, or in another form: 401 before anything else."""
    missing = guarded.anyone.call(verb, path)
    assert (missing.status, missing.reason, missing.headers["WWW-Authenticate"]) == (
        401,
        "MISSING_TOKEN",
        "Bearer",
    )
    for value in (f"Bearer {'x' * 40}", f"Basic {guarded.run}", guarded.run, "Bearer \xff", ""):
        wrong = guarded.anyone.call(verb, path, authorization=value)
        assert (wrong.status, wrong.reason) == (401, "BAD_TOKEN")
    with closing(guarded.anyone.connect()) as connection:
        connection.putrequest(verb, path)
        for _ in range(2):
            connection.putheader("authorization", f"Bearer {guarded.run}")
        connection.endheaders()
        assert connection.getresponse().status == 401


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz"])
def test_health_needs_no_token_and_says_nothing_else(guarded: HttpGuarded, path: str) -> None:
    """A probe has no token; whoever calls learns a state, and only reads."""
    for query in ("", "?service=x"):
        answer = guarded.anyone.get(path + query)
        assert (answer.status, answer.json) == (200, {"status": "SERVING"})
    assert guarded.anyone.get(f"{path}/x").status == 404
    assert guarded.anyone.call("POST", path).status == 405
    assert guarded.anyone.get(path, origin="https://evil.example").status == 403


def test_scopes(guarded: HttpGuarded) -> None:
    """A reader reads, and starts nothing; the owner is the token's name."""
    assert guarded.reader.get("/v1/info").json["caller"] == "board"
    answer = guarded.reader.call("POST", "/v1/runs", content("1"))
    assert (answer.status, answer.reason) == (403, "BAD_TOKEN")
    run = guarded.runner.call("POST", "/v1/runs", content("1")).json["run"]
    assert run["owner"] == "ci"
    assert guarded.reader.get(f"/v1/runs/{run['runId']}").reason == "RUN_NOT_FOUND"
    assert "RUN_STATE_SUCCEEDED" in [*guarded.runner.lines(f"/v1/runs/{run['runId']}/progress")][-2]


def test_refused_before_the_body(guarded: HttpGuarded) -> None:
    """A caller without a token is refused while its body has not arrived."""
    with closing(guarded.anyone.connect()) as connection:
        connection.putrequest("POST", "/v1/runs")
        connection.putheader("content-length", "50000000")
        connection.endheaders()
        connection.send(b"x" * 1000)
        answer = connection.getresponse()
        assert answer.status == 401
        assert json.loads(answer.read())["code"] == 16


def test_a_body_that_is_too_large(guarded: HttpGuarded) -> None:
    """It is refused when the maximum has arrived, whatever its announced size."""
    with closing(guarded.runner.connect()) as connection:
        connection.putrequest("POST", "/v1/runs")
        connection.putheader("authorization", f"Bearer {guarded.run}")
        connection.putheader("transfer-encoding", "chunked")
        connection.endheaders()
        chunk = b"%x\r\n" % 2**20 + b"x" * 2**20 + b"\r\n"
        with pytest.raises((BrokenPipeError, ConnectionResetError)):  # noqa: PT012 - the server may still read
            for _ in range(200):
                connection.send(chunk)
    (line,) = guarded.server.logged("rpc", "NotebookRunner/Start", "INVALID_ARGUMENT")[-1:]
    assert line["caller"] == "ci"


def test_a_stream_ends_with_its_token(tmp_path: Path) -> None:
    """A revoked token ends the stream with the next message, whose status says why."""
    file = tmp_path / "tokens"
    new_token(file, "other")
    token = new_token(file, "ci")
    with Server(
        tmp_path / "state",
        "--tokens-file",
        str(file),
        "--heartbeat-interval",
        "0.2",
        "--drain-timeout",
        "0",
        *HTTP,
    ) as server:
        caller = HttpCaller(server.http, authorization=f"Bearer {token}")
        run = caller.call("POST", "/v1/runs", content("import time; time.sleep(600)")).json["run"]
        lines = caller.lines(f"/v1/runs/{run['runId']}/progress")
        assert next(lines) == "id: 1"
        kept = [line for line in file.read_text().splitlines() if not line.startswith("ci ")]
        file.write_text("\n".join([*kept, ""]))
        told = [line for line in lines if line][-2:]
        assert told[0] == "event: status"
        assert json.loads(told[1].removeprefix("data: "))["code"] == 16


def test_a_caller_cannot_say_that_it_is_another(guarded: HttpGuarded) -> None:
    """Neither over gRPC nor over HTTP does a header change the address in the log."""
    stub = rpc.NotebookRunnerStub(guarded.server.channel)
    for value in ("ipv4:6.6.6.6:6", " ipv4:6.6.6.6:6", "x ipv4:6.6.6.6:6"):
        metadata = ((HEADER, value), ("x-request-id", "forged-1"), *bearer(guarded.run))
        stub.Info(pb.InfoRequest(), metadata=metadata, timeout=SECONDS)
        headers = {HEADER: value, "x_forwarded_for": "6.6.6.6", "forwarded": "for=6.6.6.6"}
        assert guarded.runner.get("/v1/info", x_request_id="forged-2", **headers).status == 200
    lines = guarded.server.logged("rpc", "forged-", count=6)
    assert {line["peer"].rpartition(":")[0] for line in lines} == {"ipv4:127.0.0.1"}


def private_socket(server: Server) -> Path:
    """The socket between the HTTP listener and the gRPC server."""
    return (server.state_dir / "http").resolve() / "grpc.sock"


def test_the_private_socket_is_for_the_listener(guarded: HttpGuarded, open_server: Server) -> None:
    """Whoever finds it is refused, with or without a token, and other users cannot reach it."""
    for server, token in ((guarded.server, guarded.run), (open_server, "")):
        path = private_socket(server)
        assert path.parent.stat().st_mode & 0o777 == 0o700
        with grpc.insecure_channel(f"unix:{path}") as channel:
            stub = rpc.NotebookRunnerStub(channel)
            for metadata in ((), ((HEADER, "ipv4:6.6.6.6:6"),), bearer(token or "x" * 40)):
                answer = refused(partial(stub.Info, pb.InfoRequest(), metadata=metadata, timeout=SECONDS))
                assert answer.kind == BAD


def test_a_notebook_cannot_use_the_private_socket(open_server: Server) -> None:
    """A notebook that connects to it, as the server's user, gets no answer to a call."""
    source = f"""
import grpc
with grpc.insecure_channel("unix:{private_socket(open_server)}") as channel:
    call = channel.unary_unary("/notebook_runner.v1.NotebookRunner/Info")
    try:
        call(b"", timeout=60)
        print("answered")
    except grpc.RpcError as error:
        print(error.code().name)
"""
    ended = perform(open_server.stub, inline(source))
    printed = [one.cell_output.stream.text for one in ended.events if one.HasField("cell_output")]
    assert "".join(printed).strip() in {"UNAUTHENTICATED", "UNAVAILABLE"}


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://app.example", "http://localhost:1"]
)
def test_pages_of_other_origins(open_server: Server, origin: str) -> None:
    """A page that makes a browser send a request starts nothing, where no token protects the server."""
    caller = HttpCaller(open_server.http)
    before = list(open_server.stub.List(pb.ListRequest(), timeout=SECONDS).runs)
    for verb, path in (("POST", "/v1/runs"), ("GET", "/v1/info"), ("OPTIONS", "/v1/runs")):
        answer = caller.call(verb, path, content("1") if verb == "POST" else None, origin=origin)
        assert (answer.status, answer.reason) == (403, "ORIGIN_NOT_ALLOWED")
        assert answer.headers["Access-Control-Allow-Origin"] is None
    assert list(open_server.stub.List(pb.ListRequest(), timeout=SECONDS).runs) == before
    own = caller.get("/v1/info", origin=f"http://{open_server.http}")
    assert own.status == 200


def test_names_that_a_page_may_have(open_server: Server, guarded: HttpGuarded) -> None:
    """A name that points to this machine reaches a server with tokens only."""
    caller = HttpCaller(open_server.http)
    for host in ("evil.example", "localhost.evil.example:80", ""):
        answer = caller.get("/v1/info", host=host)
        assert (answer.status, answer.reason) == (403, "ORIGIN_NOT_ALLOWED")
        assert guarded.runner.get("/v1/info", host=host).status == 200
    for host in ("localhost:80", "127.0.0.1", "[::1]:8080"):
        assert caller.get("/v1/info", host=host).status == 200


def test_origins_that_are_named(guarded: HttpGuarded) -> None:
    """They get CORS, for all methods and headers of the API, and no cookies; others get nothing."""
    answer = guarded.runner.get("/v1/info", origin="https://app.example")
    assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
    assert answer.headers["Access-Control-Allow-Credentials"] is None
    asked = {"access_control_request_method": "DELETE", "access_control_request_headers": "authorization"}
    allowed = guarded.anyone.call("OPTIONS", "/v1/runs/x", origin="https://app.example", **asked)
    assert allowed.status == 200
    assert "DELETE" in allowed.headers["Access-Control-Allow-Methods"]
    assert guarded.anyone.call("OPTIONS", "/v1/runs/x", origin="https://evil.example", **asked).status == 400
    assert guarded.runner.get("/v1/info", origin="https://evil.example").status == 403


def test_pages_do_not_belong_to_this_origin(open_server: Server) -> None:
    """A browser gives the page of a run an origin of its own, so that its scripts cannot call the server."""
    run = perform(open_server.stub, inline("1")).run
    answer = HttpCaller(open_server.http).get(f"/v1/runs/{run.run_id}/output?format=html")
    assert answer.headers["Content-Security-Policy"] == "sandbox allow-scripts"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_endless_headers(guarded: HttpGuarded) -> None:
    """The connection ends after 16 KiB of headers."""
    host, port = guarded.server.http.split(":")
    with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
        connection.sendall(b"GET /v1/info HTTP/1.1\r\n")
        with pytest.raises(OSError, match=r"reset|[Bb]roken"):  # noqa: PT012 - it may take some
            while True:
                connection.sendall(b"x-more: " + b"x" * 1000 + b"\r\n")


def test_headers_that_the_server_does_not_accept(guarded: HttpGuarded) -> None:
    """A header that is too large to be handed on is refused, and not dropped."""
    answer = guarded.anyone.get("/v1/info", authorization=f"Bearer {'x' * 6000}")
    assert (answer.status, answer.reason) == (413, "REQUEST_TOO_LARGE")


@pytest.mark.parametrize("sent", [b"", b"GET /v1/info HTTP/1.1\r\nhost: x\r\n"])
def test_a_connection_that_sends_no_request(open_server: Server, sent: bytes) -> None:
    """It is closed, however slowly more comes."""
    host, port = open_server.http.split(":")
    with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
        connection.sendall(sent)
        assert connection.recv(1) == b""


def test_connections_are_limited(make_server: Callable[..., Server]) -> None:
    """Further connections are closed as they arrive, and accepted again later."""
    server = make_server("--max-connections", "5", *HTTP)
    host, port = server.http.split(":")
    caller = HttpCaller(server.http)
    held = []
    for _ in range(5):
        connection = caller.connect()
        connection.request("GET", "/v1/info")
        assert connection.getresponse().read()
        held.append(connection)
    further = socket.create_connection((host, int(port)), timeout=SECONDS)
    with further, suppress(ConnectionResetError):
        assert further.recv(1) == b""
    for connection in held:
        connection.close()
    until = time.monotonic() + SECONDS
    while True:
        try:
            assert caller.get("/v1/info").status == 200
        except OSError:
            assert time.monotonic() < until
            pause()
        else:
            return


def trusting(ca: trustme.CA, folder: Path, client: trustme.CA | None = None) -> ssl.SSLContext:
    """The context of a caller that trusts an authority, and may have a certificate."""
    context = ssl.create_default_context(cadata=roots(ca).decode())
    if client is not None:
        pair = issue(client, "client.example")
        (folder / "own.pem").write_bytes(pair.key + pair.cert)
        context.load_cert_chain(folder / "own.pem")
    return context


def test_tls_is_that_of_grpc_and_reloaded(tmp_path: Path) -> None:
    """HTTPS with the same certificate; a new one is used by the next connection."""
    first, second = trustme.CA(), trustme.CA()
    folder = TlsFolder(tmp_path, issue(first))
    file = tmp_path / "tokens"
    token = new_token(file)
    options = [*folder.options, "--tokens-file", str(file), "--http-listen", f"{ADDRESS}:0"]
    with Server(tmp_path / "state", *options) as server:
        headers = {"authorization": f"Bearer {token}"}
        old = HttpCaller(server.http, trusting(first, tmp_path), **headers)
        new = HttpCaller(server.http, trusting(second, tmp_path), **headers)
        assert old.get("/v1/info").status == 200
        with pytest.raises(ssl.SSLError):
            new.get("/v1/info")
        folder.put(issue(second))
        assert new.get("/v1/info").status == 200
        with pytest.raises(ssl.SSLError):
            old.get("/v1/info")
        (folder / "tls.key").write_text("broken")
        assert new.get("/v1/info").status == 200
        with pytest.raises(OSError, match=r"."):
            HttpCaller(server.http, None, **headers).get("/v1/info")


def test_client_certificates_in_addition_to_tokens(tmp_path: Path) -> None:
    """Where gRPC wants a certificate and a token, HTTP does too; new authorities replace the old ones."""
    ca, known, other = trustme.CA(), trustme.CA(), trustme.CA()
    folder = TlsFolder(tmp_path, issue(ca), roots(known))
    file = tmp_path / "tokens"
    token = new_token(file)
    options = [*folder.options, "--tokens-file", str(file), "--http-listen", f"{ADDRESS}:0"]
    with Server(tmp_path / "state", *options) as server:

        def status(client: trustme.CA | None, authorization: str = "") -> int:
            headers = {"authorization": authorization} if authorization else {}
            caller = HttpCaller(server.http, trusting(ca, tmp_path, client))
            return caller.get("/v1/info", **headers).status

        assert status(known, authorization=f"Bearer {token}") == 200
        assert status(known) == 401
        for stranger in (None, other):
            with pytest.raises(OSError, match=r"."):
                status(stranger, authorization=f"Bearer {token}")
        folder.put(issue(ca), roots(other))
        assert status(other, authorization=f"Bearer {token}") == 200
        with pytest.raises(OSError, match=r"."):
            status(known, authorization=f"Bearer {token}")


@contextmanager
def refusing(*options: str) -> Iterator[str]:
    """What the server says when it does not start with these options."""
    command = [str(PROGRAM), "--check", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=plain(), check=False)
    assert done.returncode == 1, done.stderr
    yield done.stderr


def test_certificates_alone_are_not_enough(tmp_path: Path) -> None:
    """A server whose only authentication is certificates refuses to serve HTTP, also with --insecure."""
    folder = TlsFolder(tmp_path, issue(trustme.CA()), roots(trustme.CA()))
    with refusing(*folder.options, *HTTP, "--insecure") as said:
        assert "--http-listen cannot tell callers apart by --tls-client-ca alone" in said


def test_not_open_by_accident(tmp_path: Path) -> None:
    """An address that others can reach needs TLS and tokens for HTTP, as it does for gRPC."""
    with refusing("--http-listen", "0.0.0.0:0") as said:
        assert "--http-listen 0.0.0.0:0: anyone who can reach this address could run code" in said
    file = tmp_path / "tokens"
    new_token(file)
    with refusing("--http-listen", "0.0.0.0:0", "--tokens-file", str(file)) as said:
        assert "Add TLS" in said
    assert os.environ.get("NOTEBOOK_RUNNER_HTTP_LISTEN") is None
