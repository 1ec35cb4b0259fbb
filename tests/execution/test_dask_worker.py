"""What a Dask worker does with a lease that reaches it while it ends."""

from types import SimpleNamespace

import pytest
from distributed import Reschedule
from distributed.core import Status

from notebook_runner_server.execution.cluster import worker as module
from notebook_runner_server.execution.worker_protocol import encode
from tests.execution.host_options import OPTIONS


@pytest.mark.parametrize("status", [Status.closing, Status.closing_gracefully, Status.closed])
async def test_a_lease_goes_on_to_another_worker(monkeypatch: pytest.MonkeyPatch, status: Status) -> None:
    """The plugin is gone already: Dask gives the task to another worker, and no run fails."""
    ending = SimpleNamespace(plugins={}, status=status, address="tcp://127.0.0.1:1")
    monkeypatch.setattr(module, "get_worker", lambda: ending)
    with pytest.raises(Reschedule):
        await module.lease("run", "nonce", "topic", encode(OPTIONS))
    assert ending.plugins == {}
