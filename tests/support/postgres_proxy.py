"""A TCP proxy before PostgreSQL that loses answers to commits, resets connections, or passes nothing on."""

import contextlib
import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

HOST = "127.0.0.1"
WAIT_SECONDS = 60.0
PIECE = 65536
_HEAD_BYTES = 5
# The server's message that a transaction is durable: its type, its length and its text.
_COMMITTED = b"C\x00\x00\x00\x0bCOMMIT\x00"
# Of a server's connections, and of as many bytes.
_NAME, _HIDDEN_NAME = b"application_name\x00notebook-runner ", b"application_name\x00of-a-pooler-----"
# Closes with a reset instead of a polite end.
_RESET = struct.pack("ii", 1, 0)
# Such connections begin with answers that are no messages; a client of this proxy must not ask for them.
PLAIN = "?sslmode=disable&gssencmode=disable"


class PostgresProxy:
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
        self._server = (HOST, port)
        self._random = random.Random(seed)  # noqa: S311 - the same again for the same seed
        self._listener = socket.create_server((host, 0))
        self.port: int = self._listener.getsockname()[1]
        self.chance = 0.0
        self.lost = 0
        self.hides_names = False
        self._passes = threading.Event()
        self._passes.set()
        self._is_closed = False
        self._ends: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed = True
        self._passes.set()
        # Wakes the accept that waits.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset()
        for thread in self._threads:
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive(), "a connection of the proxy is still open"

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
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                end.shutdown(socket.SHUT_RDWR)

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
        with client, contextlib.suppress(OSError):
            self._passes.wait()
            if self._is_closed:
                return
            with socket.create_connection(self._server) as server:
                self._connect(client, server)

    def _connect(self, client: socket.socket, server: socket.socket) -> None:
        with self._lock:
            self._ends |= {client, server}
        there = threading.Thread(target=self._ask, args=(client, server), daemon=True)
        there.start()
        try:
            self._answer(server, client)
        finally:
            for end in (client, server):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            there.join(WAIT_SECONDS)
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
