"""The networks that tests cut."""

import secrets

import pytest

from tests.support.network import Wire, lacking


@pytest.mark.skipif(bool(lacking()), reason=lacking())
def test_no_two_wires_have_the_same_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of tests that know nothing of each other have wires on one machine."""
    chance, first = secrets.randbelow, [7, 3, 7, 3]
    monkeypatch.setattr(secrets, "randbelow", lambda most: first.pop(0) if first else chance(most))
    with Wire() as one, Wire() as other:
        assert not first
        assert {one.here, one.there}.isdisjoint({other.here, other.there})
