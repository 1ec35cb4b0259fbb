"""A TCP proxy between a client and a server that cuts connections, each after some number of bytes."""

import contextlib
import random
import select
import socket
import threading

from typing_extensions import override

from tests.support.tcp_proxy import PIECE, RESET, TcpProxy

# From in the middle of the handshake up to some dozens of events.
FEWEST_BYTES, MOST_BYTES = 20, 3000


class CuttingProxy(TcpProxy):
    """Passes bytes on, and cuts so many connections, one after the other; later ones are left whole.

    How many bytes pass before a cut, and whether it is a reset or an end, is decided by the seed.

    Attributes:
        server: Host and port that new connections are passed on to.
        is_down: Whether new connections are closed without a byte, as if there were no server.
        refused: How many connections were.
    """

    def __init__(self, target: str, *, cuts: int = 0, seed: int = 0) -> None:
        super().__init__()
        host, _, port = target.rpartition(":")
        self.server = (host, int(port))
        self._random = random.Random(seed)  # noqa: S311 - the same again for the same seed
        self._left = cuts
        self.cuts = 0
        self.is_down = False
        self.refused = 0
        self.whole = threading.Event()

    @override
    def _take(self, client: socket.socket) -> None:
        if self.is_down:
            client.close()
            self.refused += 1
        else:
            super()._take(client)

    @override
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
