"""The harness of the chaos test can fail: a server that breaks a promise does not pass."""

import sys
from pathlib import Path

import pytest
from faults.harness import Chaos

BROKEN = [sys.executable, str(Path(__file__).with_name("broken_server.py"))]


@pytest.mark.parametrize(
    ("promise", "fault", "violation"),
    [
        ("forgets", "last-write", "is acknowledged, and its request made"),
        ("repeats", "cell-finished", "cells_completed never decreases"),
        ("skips", "none", "sequence"),
        ("mangles", "none", "cell 0 has"),
        ("leaves", "none", "processes outlived their run"),
    ],
)
def test_a_broken_promise_is_found(tmp_path: Path, promise: str, fault: str, violation: str) -> None:
    """One round with a fault at the right place names what is wrong."""
    chaos = Chaos(tmp_path, 1, program=[*BROKEN, promise])
    try:
        # What is broken may end the round early as well: a caller that waits for what never comes.
        try:
            chaos.play(fault)
        except AssertionError as error:
            chaos.violations.append(str(error))
        assert any(violation in one for one in chaos.violations), chaos.summary()
    finally:
        if chaos._server is not None:
            chaos._server.channel.close()
            chaos._server._end_by_force()
