"""A proxy of a server that cuts calls as proxies do: by a reset of the stream, or by a page of its own."""

import contextlib
import socket
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

from hyperframe.frame import Frame, HeadersFrame, RstStreamFrame
from typing_extensions import override

from tests.support.frames import headers
from tests.support.tcp_proxy import PIECE, TcpProxy, relay

_HEAD_BYTES = 9


def _page(stream: int, status: bytes) -> Frame:
    """An HTTP response without the status of a call."""
    return HeadersFrame(stream, headers((b":status", status)), flags=["END_HEADERS", "END_STREAM"])


CUTS: dict[str, Callable[[int], Frame]] = {
    "RST_STREAM": partial(RstStreamFrame, error_code=2),
    "HTTP 500": partial(_page, status=b"500"),
    "HTTP 502": partial(_page, status=b"502"),
    "no gRPC": partial(_page, status=b"200"),
}
"""How an answer may be cut, by name: the frame that ends its stream."""


class StreamCuttingProxy(TcpProxy):
    """Passes everything on, but cuts the first answers in these ways: the server has done what was asked."""

    def __init__(self, target: str, cuts: Iterable[str]) -> None:
        super().__init__()
        host, _, port = target.rpartition(":")
        self._server = (host, int(port))
        self._cuts = deque(cuts)

    @property
    def left(self) -> int:
        """How many cuts were not made."""
        return len(self._cuts)

    @override
    def _pass_on(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self._server) as server:
            relay(client, server, _copy, self._answer)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        """Pass on what the server sends until it answers a call that is to be cut."""
        with server.makefile("rb") as reader:
            while head := reader.read(_HEAD_BYTES):
                payload = reader.read(int.from_bytes(head[:3]))
                frame, _ = Frame.parse_frame_header(memoryview(head))
                if isinstance(frame, HeadersFrame) and self._cuts:
                    client.sendall(CUTS[self._cuts.popleft()](frame.stream_id).serialize())
                    return
                client.sendall(head + payload)


def _copy(source: socket.socket, to: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(PIECE):
            to.sendall(data)
    with contextlib.suppress(OSError):
        to.shutdown(socket.SHUT_WR)
