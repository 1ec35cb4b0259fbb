"""Requests and connections over HTTP that are meant to do harm, and reach nothing."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import trustme

from tests.support.http_client import SECONDS, HttpCaller
from tests.support.polling import pause
from tests.support.secure import ADDRESS, TlsFolder, issue, new_token
from tests.support.server import Server

HTTP = ("--http-listen", "127.0.0.1:0")
# Python reads no number of so many digits.
DIGITS = 5000


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that wants tokens."""
    folder = tmp_path_factory.mktemp("guarded")
    new_token(folder / "tokens", "ci")
    with Server(folder / "state", "--tokens-file", str(folder / "tokens"), *HTTP) as server:
        yield server


def connected(server: Server) -> socket.socket:
    """A connection to the HTTP listener."""
    host, port = server.http.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=SECONDS)


def told(connection: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    found = b""
    with suppress(ConnectionResetError):
        while data := connection.recv(65536):
            found += data
    return found


def request(line: str, *headers: str) -> bytes:
    """A request without a body, after which the server closes the connection."""
    return "\r\n".join([f"{line} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""]).encode(
        "latin-1"
    )


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request("GET /v1/info", "Origin: http://["), 403),
        (request("GET /v1/info", "Origin: null"), 403),
        (b"GET /v1/info HTTP/1.0\r\nOrigin: null\r\n\r\n", 403),
        (request("GET /v1/runs/x/progress", f"Last-Event-ID: {'0' * 30}{'9' * DIGITS}"), 400),
        (request("GET /v1/runs/x/progress", f"Last-Event-ID: {'0' * 30}{'9' * 40}"), 400),
        (request("GET /livez", f"Tracestate: {'x' * 5000}"), 413),
        (request("GET /livez", f"X-Long: {'x' * 60_000}"), 431),
        (request("POST /v1/runs", "Transfer-Encoding: chunked", "Content-Length: 3") + b"0\r\n\r\nGET", 400),
    ],
)
def test_malformed_headers_are_refused(guarded: Server, sent: bytes, status: int) -> None:
    """They are the caller's mistake, never an error of the server, and never two requests."""
    with connected(guarded) as connection:
        connection.sendall(sent)
        answer = told(connection)
    assert int(answer.split(b" ", 2)[1]) == status, answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert guarded.said("http_request_failed") == []


def test_the_rest_of_a_refused_body_does_not_hold_a_connection(guarded: Server) -> None:
    """A caller that was refused and sends a byte now and then is disconnected."""
    with connected(guarded) as connection:
        connection.sendall(b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")
        with suppress(ConnectionResetError, BrokenPipeError):
            while True:
                connection.sendall(b"x")
                pause()


def test_garbage_after_an_answer_is_not_logged(guarded: Server) -> None:
    """What follows a refused request ends the connection without a line, which strangers could repeat."""
    with connected(guarded) as connection:
        connection.sendall(b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")
        with suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(b"no size\r\n")
            told(connection)
    assert HttpCaller(guarded.http).get("/livez").status == 200
    assert [line for line in guarded.log if "protocol" in str(line).lower()] == []


def test_connections_count_before_their_tls_handshake(tmp_path: Path) -> None:
    """Those that begin none take no more descriptors than the maximum."""
    folder = TlsFolder(tmp_path, issue(trustme.CA()))
    new_token(tmp_path / "tokens")
    options = [*folder.options, "--tokens-file", str(tmp_path / "tokens"), "--max-connections", "5"]
    with ExitStack() as stack:
        server = stack.enter_context(Server(tmp_path / "state", *options, "--http-listen", f"{ADDRESS}:0"))
        held = [stack.enter_context(connected(server)) for _ in range(5)]
        with connected(server) as further:
            assert told(further) == b""
        for connection in held:
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):
                connection.recv(1)
