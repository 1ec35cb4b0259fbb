"""A caller of the HTTP API that sees every header, and whatever a stream brings."""

import http.client
import json
import ssl
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from google.protobuf.json_format import ParseDict

from notebook_runner.v1 import notebook_runner_pb2 as pb

SECONDS = 60.0


@dataclass(frozen=True)
class HttpAnswer:
    """A whole response."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        """The body, which is JSON."""
        assert self.headers["Content-Type"] == "application/json", self.body
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        """The reason of a failed call."""
        found: str = next(
            one["reason"] for one in self.json["details"] if one["@type"].endswith(".ErrorInfo")
        )
        return found


class HttpCaller:
    """Calls one address, with these headers, on a new connection each time."""

    def __init__(self, address: str, tls: ssl.SSLContext | None = None, **headers: str) -> None:
        self._address = address
        self._tls = tls
        self._headers = _named(headers)

    def connect(self) -> http.client.HTTPConnection:
        """A new connection."""
        if self._tls is None:
            return http.client.HTTPConnection(self._address, timeout=SECONDS)
        return http.client.HTTPSConnection(self._address, timeout=SECONDS, context=self._tls)

    def call(self, verb: str, path: str, body: Any = None, **headers: str) -> HttpAnswer:
        """Makes one request; a body that is no bytes is sent as JSON."""
        sent = {**self._headers, **_named(headers)}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("content-type", "application/json")
        with closing(self.connect()) as connection:
            connection.request(verb, path, body, sent)
            answer = connection.getresponse()
            return HttpAnswer(answer.status, answer.headers, answer.read())

    def get(self, path: str, **headers: str) -> HttpAnswer:
        """Makes a GET request."""
        return self.call("GET", path, **headers)

    def lines(self, path: str, **headers: str) -> Generator[str, None, None]:
        """The lines of a stream as they come, until its end; leaving it cuts the connection."""
        with closing(self.connect()) as connection:
            connection.request("GET", path, headers={**self._headers, **_named(headers)})
            answer = connection.getresponse()
            assert answer.status == 200, (answer.status, answer.read())
            while line := answer.readline():
                yield line.decode().removesuffix("\n")

    def events(self, path: str, **headers: str) -> Iterator[tuple[str, pb.ProgressResponse]]:
        """The events of a run as server-sent events, each with its id."""
        lines = self.lines(path, accept="text/event-stream", **headers)
        with closing(lines):
            for line in lines:
                number = line.removeprefix("id: ")
                data = next(lines).removeprefix("data: ")
                assert next(lines) == ""
                yield number, ParseDict(json.loads(data), pb.ProgressResponse())

    def messages(self, path: str, **headers: str) -> Generator[pb.ProgressResponse, None, None]:
        """The events of a run as JSON lines."""
        lines = self.lines(path, accept="application/x-ndjson", **headers)
        with closing(lines):
            for line in lines:
                yield ParseDict(json.loads(line), pb.ProgressResponse())


def _named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}
