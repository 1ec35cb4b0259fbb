"""The harness of the chaos test can fail: a server that breaks a promise does not pass."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest

from tests.faults.broken_server import PROMISES
from tests.faults.harness import PROGRAM, Chaos
from tests.support.server import Server

BROKEN = [sys.executable, str(Path(__file__).with_name("broken_server.py"))]
# How long is waited for what a broken server leaves behind for ever.
LEFT_SECONDS = 5.0
# The id of a run, or as much of a text as there is of it.
RUN, ANY = r"\d{8}-\d{6}-[0-9a-f]{8}", r"[^\n]*"


class Case(NamedTuple):
    """A broken promise, where a round has to hurt the server, and what it then has to say."""

    promise: str
    fault: str
    hits: int
    violation: str
    has_retries: bool = False


CASES = [
    Case("hurries", "after-answer", 1, f"{RUN} is acknowledged, and its request made {RUN}"),
    Case("forgets", "last-write", 2, f"{RUN} is acknowledged, and its request made {RUN}"),
    Case("repeats", "cell-finished", 2, rf"{RUN} executed its cells as \[0, 1(, 2)?, 0, 1, 2\]"),
    Case("abandons", "worker", 0, f"{RUN} is RUN_STATE_CRASHED at attempt 1, and nothing repeats it", True),
    Case("skips", "none", 0, f"{RUN}: sequence without gap or repeat; after 4 came: sequence: 6"),
    Case("swallows", "none", 0, f"{RUN}: cell 0 has '{ANY}line 4{ANY}', told '{ANY}line 3{ANY}'"),
    Case("mangles", "none", 0, f"{RUN}: cell 0 has '{ANY}lime 1{ANY}', told '{ANY}line 1{ANY}'"),
    Case("leaves", "none", 0, f"processes outlived their run: {ANY}sleep "),
    Case("leaves", "cell-finished", 1, f"processes outlived the server: {ANY}sleep "),
    Case("outlives", "cell-finished", 1, f"processes outlived the server: {ANY}spawn_main"),
]


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ends by force every server that a test starts: a broken one leaves what an orderly end objects to."""
    started: list[Server] = []
    enter = Server.__enter__

    def remembered(self: Server) -> Server:
        started.append(self)
        return enter(self)

    monkeypatch.setattr(Server, "__enter__", remembered)
    yield
    for server in started:
        if hasattr(server, "channel"):
            server.channel.close()
        server._end_by_force()


@pytest.mark.process_pool("a broken server breaks what its own worker processes promise")
@pytest.mark.usefixtures("servers")
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            id=f"{case.promise}-{case.fault}",
            # A claim in the database keeps a run from being started again.
            marks=[pytest.mark.state_folder("it forgets what a state folder says")]
            if case.promise == "repeats"
            else [],
        )
        for case in CASES
    ],
)
def test_a_broken_promise_is_found(tmp_path: Path, case: Case) -> None:
    """One round with a fault at the right place names what is wrong."""
    program = [*BROKEN, case.promise]
    chaos = Chaos(tmp_path, 1, program=program, has_retries=case.has_retries, gone_seconds=LEFT_SECONDS)
    try:
        chaos.play(case.fault, case.hits)
    except (AssertionError, grpc.RpcError) as error:
        # Some ends of a broken round are early; what was found by then has to name the promise.
        chaos.violations.append(f"(the round ended early: {error})")
    assert any(re.match(case.violation, one) for one in chaos.violations), chaos.summary()


def test_every_promise_is_broken_once() -> None:
    """No promise that the broken server can break is left out."""
    assert sorted({case.promise for case in CASES}) == PROMISES


@pytest.mark.parametrize(("fault", "hits"), sorted({case.fault: case.hits for case in CASES}.items()))
def test_a_server_that_breaks_none_passes(tmp_path: Path, fault: str, hits: int) -> None:
    """The same faults find nothing wrong with the server as it is."""
    chaos = Chaos(tmp_path, 1, program=PROGRAM)
    try:
        chaos.play(fault, hits)
        assert chaos.violations == [], chaos.summary()
    finally:
        chaos.close()
