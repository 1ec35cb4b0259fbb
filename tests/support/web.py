"""Services on loopback that hold notebooks: a web server that behaves as its paths say, and a real S3 API."""

import re
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from moto.server import ThreadedMotoServer
from typing_extensions import override

# Far more than any test waits for.
SECONDS = 60.0
BUCKET = "notebooks"
# Signatures are checked only where a test demands it.
_CREDENTIAL = "test/20260101/us-east-1/s3/aws4_request"
_SIGNED = f"AWS4-HMAC-SHA256 Credential={_CREDENTIAL}, SignedHeaders=host, Signature=0"


class Web:
    """A web server whose paths say what it does.

    `/objects/…` is there when somebody put it there; `/status/N` answers N; `/redirect?URI` leads there;
    `/short` ends before the length it told, `/endless` never ends and tells no length; `/trickle` sends a
    byte from time to time until `enough` is set; `/silent` never answers. `arrived` is released for each
    request to the last two.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.arrived = threading.Semaphore(0)
        self.closed = threading.Event()
        self.enough = threading.Event()
        web = self

        class Handler(_Handler):
            """Answers for this server."""

            owner = web

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self.enough.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(SECONDS)

    def put(self, name: str, content: bytes) -> str:
        """Puts an object there; answers its URI."""
        self.objects[f"/objects/{name}"] = content
        return f"{self.url}/objects/{name}"

    def wait(self) -> None:
        """Waits until a request has come that will not be answered."""
        assert self.arrived.acquire(timeout=SECONDS), "nobody asked"


class _Handler(BaseHTTPRequestHandler):
    """Answers as the path says."""

    owner: Web
    protocol_version = "HTTP/1.1"

    @override
    def log_message(self, *_: object) -> None:
        """Nothing is logged."""

    def do_GET(self) -> None:
        """Answers GET."""
        self._note()
        name = self.path.partition("?")[0]
        if self._odd(name):
            return
        content = self.owner.objects.get(name)
        self._answer(404 if content is None else 200, content or b"")

    def do_PUT(self) -> None:
        """Answers PUT."""
        self._note()
        name = self.path.partition("?")[0]
        if self._odd(name):
            return
        self.owner.objects[name] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(201, b"")

    def do_POST(self) -> None:
        """Answers POST, which leaves nothing behind."""
        self._note()
        self.rfile.read(int(self.headers["Content-Length"]))
        if not self._odd(self.path.partition("?")[0]):
            self._answer(204, b"")

    def _note(self) -> None:
        self.close_connection = True
        self.owner.requests.append(f"{self.command} {self.path}")

    def _odd(self, name: str) -> bool:
        """Does what the path says, where it says something odd."""
        kind, _, detail = name[1:].partition("/")
        match kind:
            case "status":
                self._answer(int(detail), b"no")
            case "redirect":
                self._answer(302, b"", self.path.partition("?")[2])
            case "short":
                self._begin(1000)
                self.wfile.write(b"{}")
            case "endless":
                self._begin(None)
                self._flood(b" " * 65536, 0.0, self.owner.closed)
            case "trickle":
                self.owner.arrived.release()
                self._begin(10**6)
                self._flood(b" ", 0.05, self.owner.enough)
            case "silent":
                self.owner.arrived.release()
                self.owner.closed.wait(SECONDS)
            case _:
                return False
        return True

    def _flood(self, piece: bytes, pause: float, end: threading.Event) -> None:
        try:
            while not end.wait(pause):
                self.wfile.write(piece)
        except OSError:
            # Nobody listens any more.
            return

    def _begin(self, length: int | None) -> None:
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _answer(self, status: int, content: bytes, location: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(content)


class ObjectStore:
    """A real S3 API, with one bucket.

    Attributes:
        environment: What a server needs to know of it.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.environment = {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self._request("PUT", BUCKET)

    def put(self, key: str, content: bytes) -> str:
        """Puts an object there; answers its URI."""
        self._request("PUT", f"{BUCKET}/{key}", content)
        return f"s3://{BUCKET}/{key}"

    def get(self, key: str) -> bytes:
        """The object of a key."""
        return self._request("GET", f"{BUCKET}/{key}")

    def keys(self, prefix: str) -> set[str]:
        """The keys that begin with a prefix."""
        listing = self._request("GET", f"{BUCKET}?prefix={prefix}").decode()
        return set(re.findall("<Key>([^<]*)</Key>", listing))

    def delete(self, key: str) -> None:
        """Removes an object."""
        self._request("DELETE", f"{BUCKET}/{key}")

    def demand_credentials(self, *, wanted: bool) -> None:
        """Has every call checked from now on, or none: nobody has credentials that are good."""
        self._request("POST", "moto-api/reset-auth", b"0" if wanted else b"inf")

    def _request(self, method: str, path: str, content: bytes | None = None) -> bytes:
        headers = {"Authorization": _SIGNED, "Content-Type": "application/octet-stream"}
        where = f"{self._url}/{path}"
        request = urllib.request.Request(where, content, headers, method=method)  # noqa: S310 - loopback
        with urllib.request.urlopen(request, timeout=SECONDS) as response:  # noqa: S310 - loopback
            answer: bytes = response.read()
        return answer


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """An S3 API that is there until the block is left."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield ObjectStore(f"http://{host}:{port}")
    finally:
        server.stop()
