"""What the TCP proxies of the tests share: they accept connections, and give each a thread."""

import contextlib
import socket
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

HOST = "127.0.0.1"
WAIT_SECONDS = 60.0
PIECE = 65536
# Closes with a reset instead of a polite end.
RESET = struct.pack("ii", 1, 0)


class TcpProxy(ABC):
    """Accepts connections between `with` and its end, when it waits for their threads.

    Args:
        host: The address of this machine on which it listens.

    Attributes:
        port: Where it listens.
        target: Host and port as a client names them.
    """

    def __init__(self, host: str = HOST) -> None:
        self._listener = socket.create_server((host, 0))
        self.port: int = self._listener.getsockname()[1]
        self.target = f"{host}:{self.port}"
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

    @abstractmethod
    def _pass_on(self, client: socket.socket) -> None:
        """Serve a connection to its end, on a thread of its own."""

    def _take(self, client: socket.socket) -> None:
        """Do something with a new connection that takes no time."""
        self._spawn(self._pass_on, client)

    def _spawn(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._take(client)


Direction = Callable[[socket.socket, socket.socket], None]
"""Passes on what comes from the first socket to the second, until one of them ends."""


def relay(client: socket.socket, server: socket.socket, ask: Direction, answer: Direction) -> None:
    """Passes both directions on, until the answers end; then the connection ends."""
    asking = threading.Thread(target=ask, args=(client, server), daemon=True)
    asking.start()
    try:
        answer(server, client)
    finally:
        for end in (client, server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        asking.join(WAIT_SECONDS)
