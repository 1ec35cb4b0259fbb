"""Clients that flood: others are served, memory stays, the server lives; with TLS and without.

`make attack` plays it at length; the figures here are for every run of the tests.
"""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import frames
from support.floods import ATTACKS, CONNECTIONS, REST_MB, Ordinary, attacking, memory
from support.frames import Raw, frame
from support.mortal import MortalServer, figure
from support.secure import Guarded
from support.server import PROGRAM, Server

CONNECTION_KB = 150


@pytest.mark.parametrize("name", ATTACKS)
def test_a_flood(besieged: Guarded, name: str) -> None:
    """An ordinary client's Start and Kill stay under a second, and the server's memory stays."""
    server, ordinary = besieged.server, Ordinary(besieged.server.target, besieged.run, besieged.ca)
    ordinary.until(lambda: True, least=1)
    before = memory(server.process.pid)
    with attacking(lambda over: ATTACKS[name](besieged, over)) as is_over:
        ordinary.until(is_over)
        after = memory(server.process.pid)
    ordinary.was_served(name)
    figure(f"{name}: memory {before:.0f} MB before, {after:.0f} MB in it")
    assert after - before < REST_MB
    assert server.process.poll() is None


def half_open(besieged: Guarded, kind: int) -> Raw:
    """A connection that says nothing, or begins HTTP/2 and goes no further, or begins a call."""
    if not kind:
        return Raw(besieged.server.target)
    raw = besieged.raw().greet()
    if kind > 1:
        raw.send(
            frame(frames.HEADERS, frames.END_HEADERS, 1, frames.call_headers("/grpc.health.v1.Health/Watch"))
        )
    return raw


def test_many_connections(besieged: Guarded) -> None:
    """Many connections that do nothing keep nobody out, and each takes little; silent ones are closed."""
    server, ordinary = besieged.server, Ordinary(besieged.server.target, besieged.run, besieged.ca)
    before = memory(server.process.pid)
    with ExitStack() as opened:
        held = [opened.enter_context(half_open(besieged, place % 3)) for place in range(CONNECTIONS)]
        ordinary.until(lambda: True)
        after = memory(server.process.pid)
        # It is closed by the server, which may greet before.
        begin = time.monotonic()
        held[0].rest()
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
