"""Clients that flood: others are served, memory stays, the server lives; with TLS and without.

`make attack` plays it at length; the figures here are for every run of the tests.
"""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from hyperframe.frame import HeadersFrame

from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc
from tests.support.floods import (
    AT_FULL_SPEED,
    ATTACK_SECONDS,
    ATTACKS,
    CONNECTIONS,
    REST_MB,
    Ordinary,
    attacking,
    memory,
    processor_seconds,
    served_again,
)
from tests.support.frames import Raw, call_headers
from tests.support.killable import KillableServer, figure
from tests.support.secure import Guarded, own_channel
from tests.support.server import PROGRAM, Server

pytestmark = pytest.mark.load

CONNECTION_KB = 150


@pytest.mark.parametrize("name", ATTACKS)
def test_a_flood(besieged: Guarded, name: str) -> None:
    """An ordinary client is answered (in `make attack`, within a second), and the server keeps its memory."""
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


def refusals(server: Server) -> int:
    """How many refused calls the log has told of."""
    return sum(entry["count"] for entry in server.log if entry["event"] == "calls_refused")


@pytest.mark.parametrize("name", AT_FULL_SPEED)
def test_at_full_speed(besieged: Guarded, name: str) -> None:
    """Memory stays, and others are served when it is over; how long they wait in it is told."""
    server, ordinary = besieged.server, Ordinary(besieged.server.target, besieged.run, besieged.ca)
    before, cut_off = memory(server.process.pid), 0
    told, spent = refusals(server), processor_seconds(server.process.pid)
    with attacking(lambda over: AT_FULL_SPEED[name](besieged, over)) as is_over:
        while not is_over():
            try:
                ordinary.until(lambda: True, least=len(ordinary.kills) + 1)
            except grpc.RpcError:
                cut_off += 1
        after = memory(server.process.pid)
        loop, others = (
            now - then for now, then in zip(processor_seconds(server.process.pid), spent, strict=True)
        )
        reached = refusals(server) - told
    ordinary.tell(f"{name} at full speed")
    figure(f"processors: {loop:.1f} s for Python's loop, {others:.1f} s for gRPC's threads")
    figure(f"{reached / ATTACK_SECONDS:.0f} calls of the attackers a second reached Python")
    figure(f"{cut_off} calls cut off or refused, memory {before:.0f} MB before, {after:.0f} MB in it")
    assert after - before < REST_MB
    with own_channel(besieged.server.target, besieged.ca) as channel:
        seconds = served_again(rpc.NotebookRunnerStub(channel), besieged.run)
    figure(f"after {name}: served again in {seconds:.1f} s")
    late = Ordinary(besieged.server.target, besieged.run, besieged.ca)
    late.until(lambda: True, least=3)
    late.was_served(f"after {name}")


def half_open(besieged: Guarded, kind: int) -> Raw:
    """A connection that says nothing, or begins HTTP/2 and goes no further, or begins a call."""
    if not kind:
        return Raw(besieged.server.target)
    raw = besieged.raw().greet()
    if kind > 1:
        raw.send(
            HeadersFrame(1, call_headers("/grpc.health.v1.Health/Watch"), flags=["END_HEADERS"]).serialize()
        )
    return raw


def test_many_connections(besieged: Guarded) -> None:
    """Many connections that do nothing keep nobody out, and each takes little."""
    server, ordinary = besieged.server, Ordinary(besieged.server.target, besieged.run, besieged.ca)
    before = memory(server.process.pid)
    with ExitStack() as opened:
        for place in range(CONNECTIONS):
            opened.enter_context(half_open(besieged, place % 3))
        end = time.monotonic() + ATTACK_SECONDS
        ordinary.until(lambda: time.monotonic() > end)
        after = memory(server.process.pid)
    ordinary.was_served("connections")
    figure(f"{CONNECTIONS} connections: memory {before:.0f} MB before, {after:.0f} MB with them")
    assert after - before < CONNECTION_KB * CONNECTIONS / 1024


def test_a_silent_connection(guarded: Guarded) -> None:
    """It is closed by the server, which greets before."""
    with Raw(guarded.server.target) as raw:
        begin = time.monotonic()
        assert raw.rest()
        figure(f"a silent connection was closed after {time.monotonic() - begin:.1f} s")


def test_more_connections_than_there_may_be(make_server: Callable[..., Server]) -> None:
    """Those that are over are closed as they come, those that were there go on, and a place is given back."""
    server = make_server("--max-connections", "20")
    ordinary = Ordinary(server.target)
    ordinary.once(server.stub)
    with ExitStack() as opened:
        held = [opened.enter_context(Raw(server.target).greet()) for _ in range(60)]
        assert held[-1].rest() == b""
        ordinary.once(server.stub)
    ordinary.until(lambda: True, least=3, patient=True)


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    """Where the system grants few descriptors, connections take some of them and runs the rest."""
    program = ["prlimit", "--nofile=128:128", str(PROGRAM)]
    # Without the sandbox, for with it nobody but root may count its descriptors.
    options = ["--sandbox", "off"]
    with KillableServer(tmp_path, *options, program=program) as server, ExitStack() as opened:
        (told,) = [entry for entry in server.log if entry["event"] == "max_connections_reduced"]
        ordinary = Ordinary(server.target)
        ordinary.once(server.stub)
        for _ in range(3 * told["allowed"]):
            opened.enter_context(Raw(server.target).greet())
        ordinary.once(server.stub)
        assert len(os.listdir(f"/proc/{server.process.pid}/fd")) < 128
        opened.close()
        ordinary.until(lambda: True, least=4, patient=True)
