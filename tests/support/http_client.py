"""A caller of the HTTP API that sees every header, and whatever a stream brings."""

import http.client
import json
import ssl
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from notebook_runner.v1 import notebook_runner_pb2 as pb

SECONDS = 60.0

MessageT = TypeVar("MessageT", bound=Message)


class StreamFailedError(Exception):
    """A stream ended with a status; its reason is the text."""

    def __init__(self, status: Any) -> None:
        super().__init__(reason_of(status))


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
        return reason_of(self.json)


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
        return self._events(path, pb.ProgressResponse, **headers)

    def messages(self, path: str, **headers: str) -> Generator[pb.ProgressResponse, None, None]:
        """The events of a run as JSON lines."""
        return self._messages(path, pb.ProgressResponse, **headers)

    def change_events(self, path: str, **headers: str) -> Iterator[tuple[str, pb.WatchResponse]]:
        """The changes of all runs as server-sent events, each with its id."""
        return self._events(path, pb.WatchResponse, **headers)

    def changes(self, path: str, **headers: str) -> Generator[pb.WatchResponse, None, None]:
        """The changes of all runs as JSON lines."""
        return self._messages(path, pb.WatchResponse, **headers)

    def _events(
        self, path: str, kind: type[MessageT], **headers: str
    ) -> Generator[tuple[str, MessageT], None, None]:
        lines = self.lines(path, accept="text/event-stream", **headers)
        with closing(lines):
            for line in lines:
                data = json.loads(next(lines).removeprefix("data: "))
                assert next(lines) == ""
                if line == "event: status":
                    raise StreamFailedError(data)
                yield line.removeprefix("id: "), ParseDict(data, kind())

    def _messages(self, path: str, kind: type[MessageT], **headers: str) -> Generator[MessageT, None, None]:
        lines = self.lines(path, accept="application/x-ndjson", **headers)
        with closing(lines):
            for line in lines:
                data = json.loads(line)
                if "error" in data:
                    raise StreamFailedError(data["error"])
                yield ParseDict(data, kind())


def reason_of(status: Any) -> str:
    """The reason in a status."""
    found: str = next(one["reason"] for one in status["details"] if one["@type"].endswith(".ErrorInfo"))
    return found


def _named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}
