"""A TCP proxy before PostgreSQL that loses answers to commits, resets connections, or passes nothing on."""

import contextlib
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from typing_extensions import override

from tests.support.tcp_proxy import HOST, PIECE, RESET, TcpProxy, relay

_HEAD_BYTES = 5
# The server's message that a transaction is durable: its type, its length and its text.
_COMMITTED = b"C\x00\x00\x00\x0bCOMMIT\x00"
# Of a server's connections, and of as many bytes.
_NAME, _HIDDEN_NAME = b"application_name\x00notebook-runner ", b"application_name\x00of-a-pooler-----"
# Such connections begin with answers that are no messages; a client of this proxy must not ask for them.
PLAIN = "?sslmode=disable&gssencmode=disable"


class PostgresProxy(TcpProxy):
    """Passes connections on to a PostgreSQL, and breaks them as it is told.

    Its clients must connect with the options `PLAIN`.

    Args:
        port: The port of PostgreSQL on loopback.
        seed: Decides which commits lose their answers.
        host: The address of this machine on which it listens.

    Attributes:
        port: Where it listens.
        chance: How probable it is that a commit loses its answer, and its connection.
        lost: How many have lost theirs.
        hides_names: Whether connections get a name of the proxy's own, as some poolers give them.
    """

    def __init__(self, port: int, seed: int = 0, host: str = HOST) -> None:
        super().__init__(host)
        self._server = (HOST, port)
        self._random = random.Random(seed)  # noqa: S311 - the same again for the same seed
        self.chance = 0.0
        self.lost = 0
        self.hides_names = False
        self._passes = threading.Event()
        self._passes.set()
        self._is_closed = False
        self._ends: set[socket.socket] = set()
        self._lock = threading.Lock()

    @override
    def __exit__(self, *details: object) -> None:
        self._is_closed = True
        self._passes.set()
        self.reset()
        super().__exit__(*details)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Passes nothing on while the block goes on, as a network does that drops all packets."""
        self._passes.clear()
        try:
            yield
        finally:
            # What was sent meanwhile is lost.
            self.reset()
            self._passes.set()

    def reset(self) -> None:
        """Resets all connections."""
        with self._lock:
            ends = list(self._ends)
        for end in ends:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                end.shutdown(socket.SHUT_RDWR)

    @override
    def _pass_on(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            self._passes.wait()
            if self._is_closed:
                return
            with socket.create_connection(self._server) as server:
                self._connect(client, server)

    def _connect(self, client: socket.socket, server: socket.socket) -> None:
        with self._lock:
            self._ends |= {client, server}
        try:
            relay(client, server, self._ask, self._answer)
        finally:
            with self._lock:
                self._ends -= {client, server}

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(PIECE):
                self._passes.wait()
                server.sendall(data.replace(_NAME, _HIDDEN_NAME) if self.hides_names else data)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        """Pass on what the server sends, message by message, until a commit loses its answer."""
        with server.makefile("rb") as reader:
            while head := reader.read(_HEAD_BYTES):
                message = head + reader.read(int.from_bytes(head[1:]) - 4)
                self._passes.wait()
                if message == _COMMITTED and self._random.random() < self.chance:
                    self.lost += 1
                    return
                client.sendall(message)
