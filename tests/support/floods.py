"""Clients that flood a server, and an ordinary one beside them."""

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc
from hyperframe.frame import ContinuationFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc
from tests.support.calls import SECONDS, inline
from tests.support.frames import call_headers, headers
from tests.support.killable import figure
from tests.support.secure import Guarded, bearer, own_channel
from tests.support.server import SERVICE

CONNECTIONS = int(os.environ.get("ATTACK_CONNECTIONS", "500"))
ATTACK_SECONDS = float(os.environ.get("ATTACK_SECONDS", "1"))
# `make attack` holds a second, on a machine that has nothing else to do; those that run all tests have.
CALL_SECONDS = float(os.environ.get("ATTACK_CALL_SECONDS", "60"))
# What attacks may take: a connection takes 60 KB.
REST_MB = 150


def memory(pid: int) -> float:
    """What a process has in memory, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def processor_seconds(pid: int) -> tuple[float, float]:
    """What a process has had of the processors: its main thread, which is Python's loop, and all others."""

    def spent(path: str) -> float:
        fields = Path(path).read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    main = spent(f"/proc/{pid}/task/{pid}/stat")
    return main, spent(f"/proc/{pid}/stat") - main


@dataclass
class Ordinary:
    """An ordinary client that starts and kills, again and again, while others attack."""

    target: str
    token: str = ""
    ca: bytes = b""
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

    def until(self, over: Callable[[], bool], least: int = 5, *, patient: bool = False) -> None:
        """Goes on until the attack is over, each time with a connection of its own.

        With `patient` it connects again while it is refused: a server sees later that others have left.
        """
        while not over() or len(self.kills) < least:
            with own_channel(self.target, self.ca) as channel:
                if patient:
                    grpc.channel_ready_future(channel).result(SECONDS)
                self.once(rpc.NotebookRunnerStub(channel))

    def was_served(self, name: str) -> None:
        """Asserts that every call was answered in time."""
        assert self.tell(name) < CALL_SECONDS

    def tell(self, name: str) -> float:
        """Tells how long calls took; answers the longest."""
        starts, kills = max(self.starts, default=0.0), max(self.kills, default=0.0)
        figure(f"{name}: {len(self.kills)} runs, Start {starts:.3f} s, Kill {kills:.3f} s at most")
        return max(starts, kills)


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


def served_again(stub: rpc.NotebookRunnerStub, token: str) -> float:
    """Kills what is left of an attack, when the server gets to it; answers the seconds until then."""
    begin = time.monotonic()
    while True:
        try:
            stub.Kill(pb.KillRequest(), timeout=SECONDS, metadata=bearer(token))
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.CANCELLED or time.monotonic() - begin > SECONDS:
                raise
        else:
            return time.monotonic() - begin


def reset(guarded: Guarded, over: Callable[[], bool], pause: float = 0.001, streams: int = 1000) -> None:
    """Opens streams and resets each at once, with a pause after each, so many on each connection."""
    pace = threading.Event()
    while not over():
        with guarded.raw() as raw:
            raw.greet()
            for stream in range(1, 2 * streams, 2):
                headers = HeadersFrame(stream, call_headers(KILL), flags=["END_HEADERS"])
                cancel = RstStreamFrame(stream, error_code=8)
                if over() or not raw.send(headers.serialize() + cancel.serialize()):
                    break
                if pause:
                    pace.wait(pause)


def continuation(guarded: Guarded, over: Callable[[], bool]) -> None:
    """Begins headers that never end."""
    while not over():
        with guarded.raw() as raw:
            raw.greet()
            piece = ContinuationFrame(1, headers((b"x", b"y" * 4000))).serialize()
            raw.send(HeadersFrame(1, call_headers(KILL)).serialize())
            while not over() and raw.send(piece):
                pass


def pings(guarded: Guarded, over: Callable[[], bool]) -> None:
    """Pings and settings without an end, whose answers are not read."""
    while not over():
        with guarded.raw(receive_bytes=2048) as raw:
            raw.greet()
            raw.socket.settimeout(0.5)
            both = (PingFrame(0, opaque_data=b"12345678").serialize() + SettingsFrame(0).serialize()) * 100
            while not over() and raw.send(both):
                pass


def calls(guarded: Guarded, over: Callable[[], bool], pause: float = 0.002) -> None:
    """Makes calls without a token, with a pause after each, and reads nothing of what is answered."""
    pace = threading.Event()
    while not over():
        with guarded.raw(receive_bytes=2048) as raw:
            raw.greet()
            raw.socket.settimeout(0.5)
            for stream in range(1, 20001, 2):
                if over() or not raw.call(stream, KILL, b""):
                    break
                if pause:
                    pace.wait(pause)


def garbage(guarded: Guarded, over: Callable[[], bool]) -> None:
    """Sends nonsense, after a true beginning or without one."""
    dice = random.Random(6)  # noqa: S311 - has to be the same each time, not hard to guess
    while not over():
        with guarded.raw() as raw:
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

AT_FULL_SPEED = {
    "calls": partial(calls, pause=0),
    "reset streams": partial(reset, pause=0, streams=1_000_000),
    "reset streams on new connections": partial(reset, pause=0),
}
"""What takes all the processors that there are: nobody promises how long calls take beside it."""
