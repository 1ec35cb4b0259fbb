"""Clients that flood, send nonsense, or do not read: others are served, memory stays, the server lives.

`make attack` plays it at length; the figures here are for every run of the tests.
"""

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from support import frames
from support.calls import SECONDS, inline
from support.frames import Raw, frame
from support.mortal import MortalServer, figure
from support.secure import Guarded, bearer, own_channel
from support.server import PROGRAM, SERVICE, Server

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc

CONNECTIONS = int(os.environ.get("ATTACK_CONNECTIONS", "500"))
ATTACK_SECONDS = float(os.environ.get("ATTACK_SECONDS", "2"))
CALL_SECONDS = 1.0
# What attacks may take: a connection with a stream takes 60 KB, an answer that nobody reads 12 MB.
CONNECTION_KB = 150
REST_MB = 150
UNREAD_MB = 600


def memory(pid: int) -> float:
    """What a process has in memory, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


@dataclass
class Ordinary:
    """An ordinary client that starts and kills, again and again, while others attack."""

    target: str
    token: str = ""
    starts: list[float] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)

    def once(self, stub: rpc.NotebookRunnerStub) -> None:
        """One run, and how long its calls took."""
        metadata = bearer(self.token) if self.token else None
        begin = time.monotonic()
        run = stub.Start(inline("1"), timeout=SECONDS, metadata=metadata).run
        self.starts.append(time.monotonic() - begin)
        begin = time.monotonic()
        stub.Kill(pb.KillRequest(run_id=run.run_id), timeout=SECONDS, metadata=metadata)
        self.kills.append(time.monotonic() - begin)

    def until(self, over: Callable[[], bool], least: int = 5) -> None:
        """Goes on until the attack is over, each time with a connection of its own."""
        while not over() or len(self.starts) < least:
            with own_channel(self.target) as channel:
                self.once(rpc.NotebookRunnerStub(channel))

    def was_served(self, name: str) -> None:
        """Asserts that every call was answered in time."""
        longest = max(self.starts), max(self.kills)
        figure(f"{name}: {len(self.starts)} runs, Start {longest[0]:.3f} s, Kill {longest[1]:.3f} s at most")
        assert max(longest) < CALL_SECONDS


@contextmanager
def attacking(attack: Callable[[Callable[[], bool]], None], threads: int = 2) -> Iterator[Callable[[], bool]]:
    """Plays an attack on threads of its own until the block is left; answers whether its time is over."""
    end = time.monotonic() + ATTACK_SECONDS
    left = threading.Event()
    playing = [threading.Thread(target=attack, args=[left.is_set]) for _ in range(threads)]
    for thread in playing:
        thread.start()
    try:
        yield lambda: time.monotonic() > end
    finally:
        left.set()
        for thread in playing:
            thread.join(SECONDS)


KILL = SERVICE + "Kill"


def reset(target: str, over: Callable[[], bool]) -> None:
    """Opens streams and resets each at once, a thousand of them a second."""
    pace = threading.Event()
    while not over():
        with Raw(target) as raw:
            raw.greet()
            for stream in range(1, 2001, 2):
                headers = frame(frames.HEADERS, frames.END_HEADERS, stream, frames.call_headers(KILL))
                if over() or not raw.send(headers + frame(frames.RST_STREAM, 0, stream, b"\0\0\0\x08")):
                    break
                pace.wait(0.001)


def continuation(target: str, over: Callable[[], bool]) -> None:
    """Begins headers that never end."""
    while not over():
        with Raw(target) as raw:
            raw.greet()
            piece = frames.header(b"x", b"y" * 4000)
            raw.send(frame(frames.HEADERS, 0, 1, frames.call_headers(KILL)))
            while not over() and raw.send(frame(frames.CONTINUATION, 0, 1, piece)):
                pass


def pings(target: str, over: Callable[[], bool]) -> None:
    """Pings and settings without an end, whose answers are not read."""
    while not over():
        with Raw(target, receive_bytes=2048) as raw:
            raw.greet()
            raw.socket.settimeout(0.5)
            both = (frame(frames.PING, 0, 0, b"12345678") + frame(frames.SETTINGS, 0, 0)) * 100
            while not over() and raw.send(both):
                pass


def calls(target: str, over: Callable[[], bool]) -> None:
    """Makes calls without a token as fast as it can, and reads nothing of what is answered."""
    while not over():
        with Raw(target, receive_bytes=2048) as raw:
            raw.greet()
            raw.socket.settimeout(0.5)
            for stream in range(1, 20001, 2):
                if over() or not raw.call(stream, KILL, b""):
                    break


def garbage(target: str, over: Callable[[], bool]) -> None:
    """Sends nonsense, after a true beginning or without one."""
    dice = random.Random(6)  # noqa: S311 - has to be the same each time, not hard to guess
    while not over():
        with Raw(target) as raw:
            if dice.random() < 0.5:
                raw.greet()
            raw.send(dice.randbytes(dice.randrange(1, 20000)))


ATTACKS = {
    "reset streams": reset,
    "endless headers": continuation,
    "pings": pings,
    "calls": calls,
    "nonsense": garbage,
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_flood(guarded: Guarded, name: str) -> None:
    """An ordinary client's Start and Kill stay under a second, and the server's memory stays."""
    server, ordinary = guarded.server, Ordinary(guarded.server.target, guarded.run)
    ordinary.until(lambda: True, least=1)
    before = memory(server.process.pid)
    with attacking(lambda over: ATTACKS[name](server.target, over)) as is_over:
        ordinary.until(is_over)
        after = memory(server.process.pid)
    ordinary.was_served(name)
    figure(f"{name}: memory {before:.0f} MB before, {after:.0f} MB in it")
    assert after - before < REST_MB
    assert server.process.poll() is None


def half_open(target: str, kind: int) -> Raw:
    """A connection that says nothing, or begins HTTP/2 and goes no further, or begins a call."""
    raw = Raw(target)
    if kind:
        raw.greet()
    if kind > 1:
        raw.send(
            frame(frames.HEADERS, frames.END_HEADERS, 1, frames.call_headers("/grpc.health.v1.Health/Watch"))
        )
    return raw


def test_many_connections(guarded: Guarded) -> None:
    """Many connections that do nothing keep nobody out, and each takes little; silent ones are closed."""
    server, ordinary = guarded.server, Ordinary(guarded.server.target, guarded.run)
    before = memory(server.process.pid)
    with ExitStack() as opened:
        held = [opened.enter_context(half_open(server.target, place % 3)) for place in range(CONNECTIONS)]
        ordinary.until(lambda: True)
        after = memory(server.process.pid)
        # It is closed by the server, which greets first.
        begin = time.monotonic()
        assert held[0].rest()
        figure(f"a silent connection was closed after {time.monotonic() - begin:.1f} s")
    ordinary.was_served("connections")
    figure(f"{CONNECTIONS} connections: memory {before:.0f} MB before, {after:.0f} MB with them")
    assert after - before < CONNECTION_KB * CONNECTIONS / 1024


def test_more_connections_than_there_may_be(make_server: Callable[..., Server]) -> None:
    """Those that are over are closed as they come, those that were there go on, and a place is given back."""
    server = make_server("--max-connections", "20")
    ordinary = Ordinary(server.target)
    ordinary.once(server.stub)
    with ExitStack() as opened:
        held = [opened.enter_context(Raw(server.target).greet()) for _ in range(60)]
        assert held[-1].rest() == b""
        ordinary.once(server.stub)
    ordinary.until(lambda: True, least=3)


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    """Where the system grants few descriptors, connections take some of them and runs the rest."""
    program = ["prlimit", "--nofile=128:128", str(PROGRAM)]
    with MortalServer(tmp_path, program=program) as server, ExitStack() as opened:
        (told,) = [entry for entry in server.log if "too few descriptors" in entry["event"]]
        ordinary = Ordinary(server.target)
        ordinary.once(server.stub)
        for _ in range(3 * told["taken"]):
            opened.enter_context(Raw(server.target).greet())
        ordinary.once(server.stub)
        assert len(os.listdir(f"/proc/{server.process.pid}/fd")) < 128
        opened.close()
        ordinary.until(lambda: True, least=4)


OUTPUT = SERVICE + "Output"
PAGE_BYTES = 3 * 1024 * 1024


def wordy(guarded: Guarded) -> str:
    """A run that has more than a page of output, by its id."""
    stub, metadata = guarded.server.stub, bearer(guarded.run)
    request = inline("print('x' * 4_000_000)")
    run_id = stub.Start(request, metadata=metadata, timeout=SECONDS).run.run_id
    events = list(stub.Progress(pb.ProgressRequest(run_id=run_id), metadata=metadata, timeout=SECONDS))
    assert events[-1].run_changed.state == pb.RUN_STATE_SUCCEEDED
    return str(run_id)


def test_answers_that_nobody_reads(guarded: Guarded) -> None:
    """A caller who may read asks for hundreds of pages and takes none: memory stays, others are served."""
    server, ordinary = guarded.server, Ordinary(guarded.server.target, guarded.run)
    request = pb.OutputRequest(run_id=wordy(guarded), max_bytes=PAGE_BYTES)
    token = (b"authorization", f"Bearer {guarded.read}".encode())
    with ExitStack() as opened:
        for _ in range(12):
            raw = opened.enter_context(Raw(server.target)).greet()
            for stream in range(1, 50, 2):
                assert raw.call(stream, OUTPUT, request.SerializeToString(), token)
        ordinary.until(lambda: True, least=20)
        after = memory(server.process.pid)
    ordinary.was_served("answers that nobody reads")
    figure(f"300 pages of 3 MiB that nobody reads: memory {after:.0f} MB")
    assert after < UNREAD_MB
    # All places are given back.
    for _ in range(40):
        page = server.stub.Output(request, metadata=bearer(guarded.read), timeout=SECONDS)
        assert len(page.content) == PAGE_BYTES


def test_a_stream_that_nobody_reads(guarded: Guarded) -> None:
    """A reader of Progress that takes nothing costs no memory and does not hold the run up."""
    server, ordinary = guarded.server, Ordinary(guarded.server.target, guarded.run)
    request = pb.ProgressRequest(run_id=wordy(guarded)).SerializeToString()
    token = (b"authorization", f"Bearer {guarded.read}".encode())
    before = memory(server.process.pid)
    with ExitStack() as opened:
        for _ in range(10):
            raw = opened.enter_context(Raw(server.target, receive_bytes=2048)).greet()
            for stream in range(1, 20, 2):
                assert raw.call(stream, SERVICE + "Progress", request, token)
        ordinary.until(lambda: True)
        after = memory(server.process.pid)
    ordinary.was_served("streams that nobody reads")
    assert after - before < REST_MB


NONSENSE = {
    "HTTP/1": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 600,
    "a frame too large": frames.PREFACE + frame(frames.SETTINGS, 0, 0) + b"\xff\xff\xff\0\1\0\0\0\1",
    "no settings": frames.PREFACE + frame(frames.DATA, 0, 1, b"x"),
    "broken headers": frames.PREFACE
    + frame(frames.SETTINGS, 0, 0)
    + frame(frames.HEADERS, 5, 1, b"\xff" * 50),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_what_is_no_call(guarded: Guarded, name: str) -> None:
    """The connection is ended, and nobody else notices."""
    with Raw(guarded.server.target) as raw:
        assert raw.send(NONSENSE[name])
        raw.rest()
    Ordinary(guarded.server.target, guarded.run).until(lambda: True, least=1)
    assert guarded.server.process.poll() is None


@pytest.mark.parametrize("value", [b"Bearer\t", b"Bearer \xff\xfe", b"Bearer \0", b"Bearer \xc3\x9c"])
def test_a_header_that_is_no_text(guarded: Guarded, value: bytes) -> None:
    """What no client can send is refused like every wrong token, and none of it is in the log."""
    with Raw(guarded.server.target) as raw:
        raw.greet()
        raw.call(1, KILL, b"", (b"authorization", value + guarded.run.encode()))
        assert raw.until(b"header authorization")
    assert guarded.run not in "".join(map(str, guarded.server.log))


def test_headers_too_large(guarded: Guarded) -> None:
    """A call with more headers than it may have is refused, the connection goes on."""
    call: Any = guarded.server.channel.unary_unary(KILL)
    big = (("authorization", f"Bearer {guarded.run}"), ("x", "y" * 20_000))
    with pytest.raises(grpc.RpcError) as caught:
        call(b"", metadata=big, timeout=SECONDS)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    Ordinary(guarded.server.target, guarded.run).once(guarded.server.stub)
