"""A proxy of a server that cuts calls as proxies do: by a reset of the stream, or by a page of its own."""

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Self

from hyperframe.frame import Frame, HeadersFrame, RstStreamFrame

from tests.support.frames import headers

WAIT_SECONDS = 60.0
PIECE = 65536
_HEAD_BYTES = 9


def _page(stream: int, status: bytes) -> Frame:
    """An answer that is no call's."""
    return HeadersFrame(stream, headers((b":status", status)), flags=["END_HEADERS", "END_STREAM"])


CUTS: dict[str, Callable[[int], Frame]] = {
    "RST_STREAM": partial(RstStreamFrame, error_code=2),
    "HTTP 500": partial(_page, status=b"500"),
    "HTTP 502": partial(_page, status=b"502"),
    "no gRPC": partial(_page, status=b"200"),
}
"""How an answer may be cut, by name: the frame that ends its stream."""


class CuttingProxy:
    """Passes everything on, but cuts the first answers in these ways: the server has done what was asked."""

    def __init__(self, target: str, cuts: Iterable[str]) -> None:
        host, _, port = target.rpartition(":")
        self._server = (host, int(port))
        self._cuts = deque(cuts)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        # Wakes the accept that waits.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive(), "a connection of the proxy is still open"

    @property
    def left(self) -> int:
        """How many cuts were not made."""
        return len(self._cuts)

    def _spawn(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type] # a method
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._spawn(self._pass_on, client)

    def _pass_on(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self._server) as server:
            there = threading.Thread(target=_copy, args=(client, server), daemon=True)
            there.start()
            self._answer(server, client)
            for end in (client, server):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            there.join(WAIT_SECONDS)

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
