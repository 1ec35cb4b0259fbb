"""A name server that says where a name is now."""

import socket
import struct
import threading
from ipaddress import IPv4Address
from typing import Self

WAIT_SECONDS = 60.0
HEADER_BYTES = 12
TYPE_BYTES = 4
ADDRESS = 1  # the type of a question for an IPv4 address
ANSWER, NO_SUCH_NAME = 0x8180, 0x8183  # an answer, recursion and all
SAME_NAME = 0xC00C  # the name of the question again


class NameServer:
    """Answers every question for an address with `address`, and everything else with nothing.

    While `address` is empty there is no such name, as while a pod is replaced.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Nothing is no question: it ends the thread.
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join(WAIT_SECONDS)
        self._socket.close()

    def target(self, name: str, port: str | int) -> str:
        """The target of a channel that asks this server for the name."""
        return f"dns://127.0.0.1:{self._socket.getsockname()[1]}/{name}:{port}"

    def _serve(self) -> None:
        while True:
            query, asker = self._socket.recvfrom(512)
            if not query:
                return
            self._socket.sendto(self._answer(query), asker)

    def _answer(self, query: bytes) -> bytes:
        end = query.index(b"\0", HEADER_BYTES) + 1 + TYPE_BYTES
        question = query[HEADER_BYTES:end]
        (kind,) = struct.unpack(">H", question[-4:-2])
        found = int(kind == ADDRESS and bool(self.address))
        header = query[:2] + struct.pack(">5H", ANSWER if self.address else NO_SUCH_NAME, 1, found, 0, 0)
        if not found:
            return header + question
        record = struct.pack(">3HIH4s", SAME_NAME, ADDRESS, 1, 0, 4, IPv4Address(self.address).packed)
        return header + question + record
