"""What the server does with its helper processes."""

import asyncio
import os
import select
import signal

import pytest

from notebook_runner_server.transfer.policy import policy
from notebook_runner_server.transfer.service import GRACE_SECONDS, TransferService
from tests.support.killable import children
from tests.support.web import Web

pytestmark = pytest.mark.fault


# Time for a helper process to start on a busy machine; one test waits until it is over.
SECONDS = 20.0
# Far more than a helper process takes to end.
END_SECONDS = 60.0


def ended(descriptor: int) -> bool:
    """Whether a process ends: its descriptor is readable then."""
    return bool(select.select([descriptor], [], [], GRACE_SECONDS + END_SECONDS)[0])


@pytest.mark.parametrize("cancels", [1, 2])
def test_a_helper_that_does_not_end_by_itself_is_ended(cancels: int) -> None:
    """One that is stopped cannot see that it is given up; it is killed, also when its end is cancelled."""

    async def scenario(web: Web) -> None:
        service = TransferService(policy(["http"], ["127.0.0.1"], []), 100, 60.0)
        reading = asyncio.ensure_future(service.read(f"{web.url}/silent"))
        await asyncio.to_thread(web.wait)
        (helper,) = (pid for pid, line in children(os.getpid()).items() if "transfer.program" in line)
        descriptor = os.pidfd_open(helper)
        os.kill(helper, signal.SIGSTOP)
        for _ in range(cancels):
            reading.cancel()
            # As far as it comes: it waits for the end of the helper then.
            for _ in range(5):
                await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await asyncio.to_thread(ended, descriptor)
        os.close(descriptor)
        # What waits for its end is let finish, or the helper's pipes would be left open.
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)

    with Web() as web:
        asyncio.run(scenario(web))


def test_no_more_is_read_at_once_than_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a turn waits within the same time, and is told."""
    monkeypatch.setattr("notebook_runner_server.transfer.service.READS_AT_ONCE", 1)

    async def scenario(web: Web) -> None:
        service = TransferService(policy(["http"], ["127.0.0.1"], []), 100, SECONDS)
        reads = [service.read(f"{web.url}/silent"), service.read(web.put("a", b"content"))]
        first, second = await asyncio.gather(*reads, return_exceptions=True)
        assert f"longer than {SECONDS:g} s" in str(first)
        assert f"longer than {SECONDS:g} s" in str(second)
        assert web.requests == ["GET /silent"]
        assert await service.read(web.put("a", b"content")) == b"content"

    with Web() as web:
        asyncio.run(scenario(web))
