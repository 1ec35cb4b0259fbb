"""The server's end of the connection to a worker: events in, orders out, on the event loop.

The other end is a `multiprocessing.connection.Connection`, whose framing this speaks: a message's length as
a signed 32-bit number, then what is pickled: some messages in a list.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
from collections.abc import Callable
from typing import Any

_HEADER = struct.Struct("!i")

MAX_WAITING_BYTES = 4 * 1024 * 1024
"""Stop reading when so much is waiting to be taken: the worker then waits, and memory stays bounded."""


class WorkerConnection(asyncio.Protocol):
    """Receives whole messages in batches, and never holds more than a bounded amount of them."""

    def __init__(self, on_message: Callable[[Any], bool]) -> None:
        self._on_message = on_message
        self._buffer = bytearray()
        self._messages: list[Any] = []
        self._waiting = 0
        self._arrived = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self.closed = False

    @classmethod
    async def open(cls, end: socket.socket, on_message: Callable[[Any], bool]) -> WorkerConnection:
        """Take over one end of a socket pair.

        Args:
            end: The socket.
            on_message: Is shown each message as it arrives; true: it has taken it, and nobody else gets it.
        """
        loop = asyncio.get_running_loop()
        _, link = await loop.connect_accepted_socket(lambda: cls(on_message), end)
        return link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (called by asyncio)."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a socket's is
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Take bytes from the worker (called by asyncio)."""
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer, start)
            end = start + _HEADER.size + length
            if len(self._buffer) < end:
                break
            # The worker is this program's own; the notebook's processes have no descriptor of this.
            messages = pickle.loads(self._buffer[start + _HEADER.size : end])  # noqa: S301 - as said
            start = end
            if kept := [message for message in messages if not self._on_message(message)]:
                self._messages += kept
                self._waiting += length
        del self._buffer[:start]
        if self._messages:
            self._arrived.set()
        if self._waiting > MAX_WAITING_BYTES and self._transport is not None:
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Note that the worker is gone (called by asyncio)."""
        self.closed = True
        self._arrived.set()

    async def receive(self) -> list[Any]:
        """Return all messages that are there, after waiting for one; none: the worker is gone."""
        await self._arrived.wait()
        messages, self._messages, self._waiting = self._messages, [], 0
        if not self.closed:
            self._arrived.clear()
            if self._transport is not None:
                self._transport.resume_reading()
        return messages

    def send(self, message: object) -> None:
        """Send an order; nothing happens when the worker is gone."""
        encoded = pickle.dumps(message)
        if self._transport is not None and not self.closed:
            self._transport.write(_HEADER.pack(len(encoded)) + encoded)

    def close(self) -> None:
        """Close the connection: the worker ends itself and all that is below it."""
        if self._transport is not None:
            self._transport.close()
