"""The watchdog of a run's processes has no word any more when the run has ended."""

import threading

import pytest

from notebook_runner_server.execution import watchdog
from notebook_runner_server.execution.interface import Cause
from notebook_runner_server.execution.shared_memory import SharedMemory
from notebook_runner_server.execution.watchdog import Watchdog

pytestmark = pytest.mark.long


def test_a_verdict_that_comes_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """To sum the memory of a large run takes longer than to end it; the next run is not killed for it."""
    summing, summed = threading.Event(), threading.Event()
    said: list[Cause] = []

    def memory(*_: object) -> int:
        summing.set()
        assert summed.wait(60)
        return 10**9

    monkeypatch.setattr(watchdog, "memory", memory)
    shared = SharedMemory(is_alone=False, folders=())
    one = Watchdog(1, 0, shared, lambda cause, _: said.append(cause))
    assert summing.wait(60)
    one.close()
    summed.set()
    one._thread.join(60)
    assert said == []
