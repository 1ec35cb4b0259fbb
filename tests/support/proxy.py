"""A TCP proxy between a client and a server that cuts connections, each after some number of bytes."""

import contextlib
import random
import select
import socket
import struct
import threading
from typing import Self

WAIT_SECONDS = 60.0
PIECE = 65536
# Closes with a reset instead of a polite end.
RESET = struct.pack("ii", 1, 0)
# From in the middle of the handshake up to some dozens of events.
FEWEST_BYTES, MOST_BYTES = 20, 3000


class CuttingProxy:
    """Passes bytes on, and cuts so many connections, one after the other; later ones are left whole.

    How many bytes pass before a cut, and whether it is a reset or an end, is decided by the seed.

    Attributes:
        server: Host and port that new connections are passed on to.
        is_down: Whether new connections are closed without a byte, as if there were no server.
        refused: How many connections were.
    """

    def __init__(self, target: str, *, cuts: int = 0, seed: int = 0) -> None:
        host, _, port = target.rpartition(":")
        self.server = (host, int(port))
        self._random = random.Random(seed)  # noqa: S311 - the same again for the same seed
        self._left = cuts
        self.cuts = 0
        self.is_down = False
        self.refused = 0
        self.whole = threading.Event()
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

    def _spawn(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type] # a method
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.is_down:
                    client.close()
                    self.refused += 1
                else:
                    self._spawn(self._pass_on, client)

    def _pass_on(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self.server) as server:
            rest = self._allowance()
            while rest is None or rest > 0:
                passed = _exchange(client, server, PIECE if rest is None else min(rest, PIECE))
                if passed is None:
                    return
                rest = None if rest is None else rest - passed
            self._cut(client, server)

    def _allowance(self) -> int | None:
        if not self._left:
            self.whole.set()
            return None
        self._left -= 1
        return self._random.randint(FEWEST_BYTES, MOST_BYTES)

    def _cut(self, *ends: socket.socket) -> None:
        if self._random.random() < 0.5:
            for end in ends:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.cuts += 1


def _exchange(client: socket.socket, server: socket.socket, most: int) -> int | None:
    """Passes on what has come from either side; answers how many bytes, or None when a side has ended."""
    other = {client: server, server: client}
    passed = 0
    for source in select.select([client, server], [], [])[0]:
        data = source.recv(most - passed) if passed < most else b""
        if passed < most and not data:
            return None
        other[source].sendall(data)
        passed += len(data)
    return passed
