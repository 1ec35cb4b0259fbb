"""The server's end of the connection to a worker: whole messages, however they arrive, and never too many."""

import asyncio
import os
import pickle
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from notebook_runner_server.execution.interface import SegmentChunk, StreamOutput
from notebook_runner_server.execution.worker_process import MAX_WAITING_BYTES, WorkerConnection

MESSAGES: list[object] = [
    StreamOutput(0, "stdout", "ä €"),
    SegmentChunk(1, b"", last=True),
    None,
    "x" * 70_000,
    StreamOutput(1, "stderr", ""),
]


def framed(message: object) -> bytes:
    """A message as multiprocessing sends it, in a list of its own."""
    data = pickle.dumps([message])
    return struct.pack("!i", len(data)) + data


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[WorkerConnection, socket.socket]]:
    """A link and the worker's end of it, a socket that never blocks for long."""
    near, far = socket.socketpair()
    link = await WorkerConnection.open(near, lambda _: False)
    far.setblocking(False)
    try:
        yield link, far
    finally:
        link.close()
        far.close()


async def received(link: WorkerConnection, count: int) -> list[Any]:
    """So many messages."""
    messages: list[Any] = []
    while len(messages) < count:
        batch = await link.receive()
        assert batch, "the link has ended"
        messages += batch
    return messages


@settings(deadline=None, database=None, max_examples=50)
@given(st.lists(st.integers(1, 40_000), max_size=12))
async def test_messages_are_whole_however_they_are_cut(cuts: list[int]) -> None:
    """Slices of any size, through a header or through a message, give the same messages in order."""
    data = b"".join(map(framed, MESSAGES))
    async with linked() as (link, far):
        loop = asyncio.get_running_loop()
        rest = data
        for cut in cuts:
            await loop.sock_sendall(far, rest[:cut])
            rest = rest[cut:]
            await asyncio.sleep(0)
        await loop.sock_sendall(far, rest)
        assert await received(link, len(MESSAGES)) == MESSAGES


async def test_one_byte_at_a_time() -> None:
    """The smallest slices there are."""
    loop = asyncio.get_running_loop()
    async with linked() as (link, far):
        for byte in framed(MESSAGES[0]) + framed(MESSAGES[1]):
            await loop.sock_sendall(far, bytes([byte]))
            await asyncio.sleep(0)
        assert await received(link, 2) == MESSAGES[:2]


async def test_it_speaks_as_multiprocessing_does() -> None:
    """A real Connection at the other end sends and receives the same objects."""
    near, far = socket.socketpair()
    link = await WorkerConnection.open(near, lambda _: False)
    with Connection(far.detach()) as connection:
        for message in MESSAGES:
            await asyncio.to_thread(connection.send, [message])
        assert await received(link, len(MESSAGES)) == MESSAGES
        for message in MESSAGES:
            link.send(message)
            assert await asyncio.to_thread(connection.recv) == message
        link.close()
        with pytest.raises(EOFError):
            await asyncio.to_thread(connection.recv)


async def test_it_stops_reading_when_too_much_waits_to_be_taken() -> None:
    """The worker's writes come to a halt, memory stays bounded, and nothing is lost when reading goes on."""
    piece = framed(SegmentChunk(0, os.urandom(512 * 1024), last=False))
    count = 40
    async with linked() as (link, far):
        loop = asyncio.get_running_loop()
        writing = asyncio.ensure_future(loop.sock_sendall(far, piece * count))
        # Long enough to read all of it, if nothing held it back.
        for _ in range(10_000):
            await asyncio.sleep(0)
        assert link._transport is not None
        assert not link._transport.is_reading()
        assert not writing.done()
        held = sum(len(message.data) for message in link._messages)
        assert held <= MAX_WAITING_BYTES + 2 * len(piece)
        assert len(link._buffer) <= 2 * len(piece)
        messages = await received(link, count)
        await writing
        assert [message.data for message in messages] == [pickle.loads(piece[4:])[0].data] * count  # noqa: S301 - its own


async def test_the_end_comes_after_the_last_message() -> None:
    """What a worker sent before it died is received; then, and as often as one asks, that it is gone."""
    async with linked() as (link, far):
        far.send(framed("last words") + framed("cut off")[:-1])
        far.close()
        messages = await link.receive()
        assert messages == ["last words"]
        assert [await link.receive() for _ in range(3)] == [[], [], []]
        assert link.closed
        link.send("nobody hears this")


async def test_a_dead_worker_wakes_who_waits() -> None:
    """Whoever waits for a message learns of the death, and does not wait for ever."""
    async with linked() as (link, far):
        waiting = asyncio.ensure_future(link.receive())
        await asyncio.sleep(0)
        assert not waiting.done()
        far.close()
        assert await waiting == []


async def test_a_worker_that_dies_while_reading_is_paused_is_seen() -> None:
    """All that it had sent is received first."""
    piece = framed(SegmentChunk(0, bytes(1024 * 1024), last=False))
    async with linked() as (link, far):
        loop = asyncio.get_running_loop()
        count = MAX_WAITING_BYTES // len(piece) + 5
        writing = asyncio.ensure_future(loop.sock_sendall(far, piece * count))
        writing.add_done_callback(lambda _: far.close())
        messages: list[object] = []
        while batch := await link.receive():
            messages += batch
        assert len(messages) == count
        assert link.closed
