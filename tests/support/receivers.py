"""Receivers of webhooks: real servers on loopback that do what a test says, and remember what came."""

import base64
import os
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from standardwebhooks import Webhook
from typing_extensions import override

SECONDS = 60.0
HANG = 0
"""The status of a receiver that never answers."""


def new_secret() -> str:
    """A secret, as the specification wants it."""
    return "whsec_" + base64.b64encode(os.urandom(32)).decode()


@dataclass(frozen=True)
class Arrived:
    """A webhook that came."""

    headers: dict[str, str]
    body: bytes
    status: int

    @property
    def id(self) -> str:
        """Its id."""
        return self.headers["webhook-id"]

    def event(self, secret: str) -> dict[str, Any]:
        """The event, after its signature was verified by the library of the specification."""
        event: dict[str, Any] = Webhook(secret).verify(self.body, self.headers)
        return event


class WebhookReceiver:
    """A receiver that answers with `status(number)`, where `number` counts what came before.

    Attributes:
        arrived: What came.
        body: The body of what comes now.
        status: What to answer; `HANG`: nothing.
    """

    def __init__(
        self, status: Callable[[int], int] = lambda _: 204, port: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        self.arrived: list[Arrived] = []
        self.body = b""
        self.status = status
        self._news = threading.Condition()
        self._closed = threading.Event()
        receiver = self

        class Handler(_Handler):
            """Answers for this receiver."""

            owner = receiver

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(SECONDS)

    @property
    def accepted(self) -> list[Arrived]:
        """What it has accepted."""
        return [one for one in self.arrived if 200 <= one.status < 300]

    def wait(self, count: int, *, accepted: bool = True) -> list[Arrived]:
        """Waits until so many have come, and were accepted unless said otherwise."""
        with self._news:
            found = self._news.wait_for(
                lambda: len(self.accepted if accepted else self.arrived) >= count, SECONDS
            )
        assert found, f"{len(self.arrived)} came, {len(self.accepted)} were accepted"
        return self.accepted if accepted else self.arrived

    def answer(self, headers: dict[str, str], body: bytes) -> int:
        """Keeps what came; the status of the answer."""
        with self._news:
            self.body = body
            status = self.status(len(self.arrived))
            self.arrived.append(Arrived(headers, body, status))
            self._news.notify_all()
        if status == HANG:
            self._closed.wait(SECONDS)
        return status


class _Handler(BaseHTTPRequestHandler):
    """Hands all to its receiver."""

    owner: WebhookReceiver
    protocol_version = "HTTP/1.1"

    @override
    def log_message(self, *_: object) -> None:
        """Nothing is logged."""

    def do_POST(self) -> None:
        """Answers POST."""
        self.close_connection = True
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        status = self.owner.answer({**headers, ":path": self.path}, body)
        if status == HANG:
            return
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", f"http://127.0.0.1:{self.owner.port}/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()


def webhooks_file(path: Path, **tables: str) -> Path:
    """Writes a webhooks file, with the lines of each table; replaces it at once. Nobody else can read it."""
    draft = path.with_name(path.name + ".new")
    draft.touch(mode=0o600)
    draft.write_text("\n".join(f"[webhooks.{name}]\n{lines}\n" for name, lines in tables.items()))
    draft.replace(path)
    return path


def table(receiver: WebhookReceiver, secret: str, *more: str) -> str:
    """The lines of a table for a receiver on loopback."""
    return "\n".join([f'url = "{receiver.url}"', f'secret = "{secret}"', "allow_internal = true", *more])
