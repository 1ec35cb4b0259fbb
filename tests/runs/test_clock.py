"""The time of a run goes only forward, whatever becomes of the system's clock."""

import time

import pytest

from notebook_runner_server.runs.transitions import Clock


def test_a_clock_that_is_set_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the run's beginning on, the time is what a monotonic clock has counted since."""
    monkeypatch.setattr(time, "time_ns", lambda: 1000)
    monkeypatch.setattr(time, "monotonic_ns", lambda: 70)
    clock = Clock()
    assert clock.now() == 1000
    monkeypatch.setattr(time, "time_ns", lambda: 5)
    monkeypatch.setattr(time, "monotonic_ns", lambda: 73)
    assert clock.now() == 1003


@pytest.mark.parametrize(("not_before", "begins"), [(999, 1000), (2000, 2000)])
def test_a_run_that_goes_on_does_not_go_back(
    monkeypatch: pytest.MonkeyPatch, not_before: int, begins: int
) -> None:
    """A run that an earlier server began has no time before what it has already seen."""
    monkeypatch.setattr(time, "time_ns", lambda: 1000)
    monkeypatch.setattr(time, "monotonic_ns", lambda: 70)
    assert Clock(not_before).now() == begins


def test_a_new_run_begins_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system clock at zero is a time as any other."""
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    monkeypatch.setattr(time, "monotonic_ns", lambda: 70)
    assert Clock().now() == 0
