"""What the sockets of a run hold, as Linux reports it."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from notebook_runner_server.execution.sockets import FEW, SocketBuffers, inode

PAIRS = FEW
TEXT = b"x" * 10_000
# From linux/in.h and linux/netlink.h.
UDP_LITE, NETLINK_USERSOCK = 136, 2


def inodes(sockets: list[socket.socket]) -> list[int]:
    """Those that the links of /proc name."""
    return [inode(os.readlink(f"/proc/self/fd/{one.fileno()}")) for one in sockets]


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Pairs whose first socket has sent something that the second has not read."""
    with ExitStack() as stack:
        found = []
        for _ in range(PAIRS):
            first, second = socket.socketpair()
            found.append((stack.enter_context(first), stack.enter_context(second)))
            first.send(TEXT)
        yield found


def test_only_links_of_sockets_have_an_inode() -> None:
    """A file may have nearly any name."""
    assert inode("socket:[17]") == 17
    assert [inode(link) for link in ("pipe:[17]", "/socket:[17]", "socket:[", "socket:[x]")] == [0] * 4


def test_what_was_sent_and_not_read_counts(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    """It counts for its sender, and no more than Linux allocates; what was read counts no more."""
    senders, receivers = map(list, zip(*pairs, strict=True))
    everything = inodes(senders) + inodes(receivers)
    assert PAIRS * len(TEXT) <= SocketBuffers().size(everything) <= 4 * PAIRS * len(TEXT)
    for one in receivers:
        assert len(one.recv(len(TEXT))) == len(TEXT)
    assert SocketBuffers().size(everything) == 0


def test_what_a_closed_socket_has_sent_counts(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    """Only the receiver is left, and its queue."""
    for first, _ in pairs:
        first.close()
    with ExitStack() as stack:
        others = [stack.enter_context(socket.socket()) for _ in range(FEW)]
        receivers = [second for _, second in pairs]
        assert SocketBuffers().size(inodes(receivers + others)) >= PAIRS * len(TEXT)


def test_a_connection_that_nobody_accepted_counts_after_its_client() -> None:
    """A client may close what it has connected and filled; the listener's queue keeps it."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        # Linux chooses an abstract name.
        listener.bind("")
        listener.listen(PAIRS)
        for _ in range(PAIRS):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(listener.getsockname())
                client.send(TEXT)
        others = [stack.enter_context(socket.socket()) for _ in range(FEW)]
        assert SocketBuffers().size(inodes([listener, *others])) >= PAIRS * len(TEXT)


def test_what_other_kinds_hold_counts() -> None:
    """Datagrams over UDP and UDP-Lite in both families, and messages over netlink."""
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        for protocol in (socket.IPPROTO_UDP, UDP_LITE):
            with ExitStack() as stack:
                try:
                    receivers = [
                        stack.enter_context(socket.socket(family, socket.SOCK_DGRAM, protocol))
                        for _ in range(2 * FEW)
                    ]
                    for one in receivers:
                        one.bind((address, 0))
                except OSError:
                    # Linux may be built without one of them.
                    continue
                for one in receivers:
                    one.sendto(TEXT, one.getsockname())
                assert SocketBuffers().size(inodes(receivers)) >= 2 * FEW * len(TEXT)
    with ExitStack() as stack:
        links = [
            stack.enter_context(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_USERSOCK))
            for _ in range(2 * FEW)
        ]
        for link in links:
            link.bind((0, 0))
            link.sendto(TEXT, link.getsockname())
        assert SocketBuffers().size(inodes(links)) >= 2 * FEW * len(TEXT)


def test_a_socket_in_transit_counts_once_it_was_seen(
    pairs: list[tuple[socket.socket, socket.socket]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process may send the descriptor of a full socket through another one, and close it."""
    monkeypatch.setattr("notebook_runner_server.execution.sockets._REST", 0)
    buffers = SocketBuffers()
    everything = [one for pair in pairs for one in pair]
    before = buffers.size(inodes(everything))
    assert before > 0
    first, second = socket.socketpair()
    with first, second:
        for one in everything:
            socket.send_fds(first, [b"x"], [one.fileno()])
            one.close()
        assert buffers.size(inodes([first, second])) >= before


def test_the_few_sockets_of_a_kernel_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """To read all sockets of a busy machine for nearly every run would be costly."""
    monkeypatch.setattr("notebook_runner_server.execution.sockets._sizes", lambda _: pytest.fail("was read"))
    assert SocketBuffers().size(range(1, FEW + 1)) == 0
