"""Several replicas, their database and the way to it fail at random moments, and no promise is broken.

`CHAOS_ROUNDS=500 pytest tests/faults/test_replica_chaos.py -s` plays longer; with the same CHAOS_SEED, the
same faults are chosen, at moments that are still chance.
"""

import os
import secrets
from collections.abc import Iterator

import pytest

from tests.faults.replica_chaos import ReplicaChaos
from tests.support.killable import figure
from tests.support.postgres import Postgres

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.process_pool("on a cluster runs outlive their server"),
]

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "1"))
SEED = int(os.environ.get("CHAOS_SEED", "0")) or secrets.randbits(32)


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicaChaos]:
    """One history for all rounds."""
    figure(f"CHAOS_SEED={SEED}")
    # A database of its own: it fails.
    with Postgres() as database:
        chaos = ReplicaChaos(tmp_path_factory.mktemp("chaos"), SEED, database)
        try:
            chaos.open()
            yield chaos
        finally:
            figure(chaos.summary() + "\n")
            chaos.close()


@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
def test_no_promise_is_broken_whatever_fails(chaos: ReplicaChaos, number: int) -> None:
    """Each acknowledged run is found everywhere, executed at most once, and ends once."""
    before = len(chaos.violations)
    chaos.play()
    assert chaos.violations[before:] == [], f"round {number} of seed {SEED}: {chaos.summary()}"
