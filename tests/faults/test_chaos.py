"""Faults at random moments and at named points: what was acknowledged is found, and nothing is left.

`CHAOS_ROUNDS=500 pytest tests/faults/test_chaos.py -s` plays longer; CHAOS_SEED plays the same again.
"""

import os
import secrets
from collections.abc import Iterator

import pytest

from tests.faults.harness import Chaos
from tests.support.killable import figure

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "20"))
SEED = int(os.environ.get("CHAOS_SEED", "0")) or secrets.randbits(32)
# The rounds of one test, all on one state folder: few enough to end long before a test is taken to hang.
BATCH = 10


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos]:
    """One history for all rounds."""
    figure(f"CHAOS_SEED={SEED}")
    chaos = Chaos(tmp_path_factory.mktemp("chaos"), SEED, has_retries=True)
    try:
        yield chaos
    finally:
        figure(chaos.summary() + "\n")
        chaos.close()


@pytest.mark.parametrize("first", range(0, ROUNDS, BATCH))
def test_nothing_acknowledged_is_lost_whatever_dies(chaos: Chaos, first: int) -> None:
    """Server, worker and kernel die, runs of several owners are repeated, and no promise is broken."""
    for _ in range(first, min(first + BATCH, ROUNDS)):
        chaos.play()
    assert chaos.violations == [], chaos.summary()
