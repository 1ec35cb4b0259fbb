"""What the sockets of a run hold: their buffers are memory of Linux, and count for no process.

Linux reports the buffers of all sockets of a network namespace to each user (sock_diag(7)). A socket belongs
to the run if a process of the run had it open at a check, even if it is now only in transit through another
one. No library is used: pyroute2, which can read this as well, would be a large dependency for two requests.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

FEW = 32
"""Sockets of a run up to which nothing is read, which is costly on a busy machine: a kernel has 17."""

_REST = 9
"""How much longer a pause is than the reading before it: reading takes at most a tenth of a processor."""

_LINK = "socket:["

# From linux/netlink.h and linux/sock_diag.h.
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_REQUEST_DUMP = 0x1 | 0x300
_ERROR, _DONE = 2, 3
_HEADER, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=HH")
_ALL_STATES = 0xFFFFFFFF
_LARGEST_ANSWER = 1 << 17

# From linux/unix_diag.h: peer, connections that a listener has not accepted, queue, and buffers.
_UNIX_REQUEST = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, _ALL_STATES, 0, 0x4 | 0x8 | 0x10 | 0x20, 0, 0)
_UNIX_HEAD, _UNIX_INODE = 16, 4
_PEER, _PENDING, _QUEUE, _UNIX_BUFFERS = 2, 3, 4, 5
# Of the other kinds: the request, and in its messages the place of the inode, the length of the head, and the
# attribute with the buffers. From linux/inet_diag.h (the last protocol is UDP-Lite) and linux/netlink_diag.h.
_OTHERS = (
    *(
        (struct.pack("=BBBBI48x", family, protocol, 1 << 6, 0, _ALL_STATES), 68, 72, 7)
        for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP, 136)
        for family in (socket.AF_INET, socket.AF_INET6)
    ),
    (struct.pack("=BBHIIII", socket.AF_NETLINK, 0xFF, 0, 0, 0x1, 0, 0), 16, 28, 0),
)

# What Linux allocates for a message of one byte.
_SMALLEST_BUFFER = 768


def inode(link: str) -> int:
    """Return the inode of a socket from its link in /proc/PID/fd; 0: it is something else."""
    number = link.removeprefix(_LINK).removesuffix("]")
    return int(number) if link.startswith(_LINK) and number.isdecimal() else 0


class SocketBuffers:
    """Tracks what the sockets of one run hold."""

    def __init__(self) -> None:
        self._own: set[int] = set()
        self._size = 0
        self._next_reading = 0.0

    def size(self, inodes: Iterable[int]) -> int:
        """Return the bytes that the run's sockets held at the last reading; 0: unknown, or only a few exist.

        Args:
            inodes: Those that the run's processes have open now.
        """
        self._own.update(inodes)
        if len(self._own) <= FEW:
            self._size = 0
        elif time.monotonic() >= self._next_reading:
            begin = time.thread_time()
            found = _sizes(self._own)
            self._own &= found.keys()
            self._size = sum(found.values())
            self._next_reading = time.monotonic() + _REST * (time.thread_time() - begin)
        return self._size


def _sizes(inodes: set[int]) -> dict[int, int]:
    """Return the bytes that sockets hold, of those that this network namespace has."""
    found: dict[int, int] = {}
    # Where a container forbids it, or Linux was built without it, nothing is known.
    with contextlib.suppress(OSError):
        largest = 2 * int(Path("/proc/sys/net/core/wmem_max").read_bytes())
        for message in _dump(_UNIX_REQUEST):
            number = int.from_bytes(message[_UNIX_INODE : _UNIX_INODE + 4], sys.byteorder)
            if number in inodes:
                found[number] = _unix_size(dict(_attributes(message, _UNIX_HEAD)), largest)
    for request, place, head, buffers in _OTHERS:
        if found.keys() >= inodes:
            break
        # A kind whose module is missing hides no other.
        with contextlib.suppress(OSError):
            for message in _dump(request):
                number = int.from_bytes(message[place : place + 4], sys.byteorder)
                if number in inodes:
                    found[number] = _size(dict(_attributes(message, head)).get(buffers, bytes(36)))
    return found


def _unix_size(attributes: dict[int, bytes], largest: int) -> int:
    """Return what a Unix socket has sent and its peer not read, and what closed sockets have sent to it.

    Linux counts a message for its sender. Of a sender that is closed, only the bytes in the receiver's queue
    are known, so these count as if they had been sent one by one, as far as a sender can go.

    Args:
        attributes: Those of the socket.
        largest: Bytes that a socket can send before they are read.
    """
    _, _, sent, *_ = _numbers(attributes.get(_UNIX_BUFFERS, bytes(36)))
    queued = _numbers(attributes.get(_QUEUE, bytes(4)))[0]
    # A listener's queue has connections, each with its client, which may be closed as well.
    if _PENDING in attributes:
        return sent + largest * _numbers(attributes[_PENDING]).count(0)
    is_alone = not _numbers(attributes.get(_PEER, bytes(4)))[0]
    return sent + (min(queued * _SMALLEST_BUFFER, queued + largest) if is_alone else 0)


def _size(buffers: bytes) -> int:
    """Return what another socket has received, and what it has sent and not had acknowledged."""
    received, _, sent, _, _, unacknowledged, _, backlog, *_ = _numbers(buffers)
    return received + max(sent, unacknowledged) + backlog


def _numbers(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"={len(data) // 4}I", data)


def _dump(request: bytes) -> Iterator[bytes]:
    """Yield the messages about all sockets of a family and protocol.

    Raises:
        OSError: Linux does not answer such requests here.
    """
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG) as connection:
        head = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0)
        connection.send(head + request)
        while answer := connection.recv(_LARGEST_ANSWER):
            position = 0
            while position < len(answer):
                length, meaning, *_ = _HEADER.unpack_from(answer, position)
                message = answer[position + _HEADER.size : position + length]
                if meaning == _DONE:
                    return
                if meaning == _ERROR:
                    raise OSError(
                        -int.from_bytes(message[:4], sys.byteorder, signed=True), "sock_diag failed"
                    )
                yield message
                position += _padded(length)


def _attributes(message: bytes, position: int) -> Iterator[tuple[int, bytes]]:
    while position + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, position)
        yield kind, message[position + _ATTRIBUTE.size : position + length]
        position += _padded(length)


def _padded(length: int) -> int:
    return (length + 3) & ~3
