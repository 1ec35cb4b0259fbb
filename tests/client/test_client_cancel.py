"""Readers that have enough: cancelled tasks, closed clients; and the token that goes with every call."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.scripted import ENDED, RUNNING, WAIT_SECONDS, Double, changed

from notebook_runner import AsyncClient, Client, RpcFailed
from notebook_runner.v1 import notebook_runner_pb2 as pb


@pytest.mark.usefixtures("held")
def test_cancelled_task_stays_cancelled(double: Double) -> None:
    """Cancelling a task in mid stream raises asyncio's own exception."""

    async def follow(reached: asyncio.Event) -> None:
        async with AsyncClient(double.target) as client:
            async for _ in client.progress("r"):
                reached.set()

    async def scenario() -> None:
        reached = asyncio.Event()
        task = asyncio.create_task(follow(reached))
        await asyncio.wait_for(reached.wait(), WAIT_SECONDS)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())


@pytest.mark.usefixtures("held")
def test_cancelled_call_stays_cancelled(double: Double) -> None:
    """A deadline of asyncio's around a wait is asyncio's own exception."""

    async def scenario() -> None:
        async with AsyncClient(double.target) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.wait("r"), 0.05)

    asyncio.run(scenario())


@pytest.mark.usefixtures("held")
def test_closed_async_client_is_no_cancellation(double: Double) -> None:
    """A client that is closed under its reader raises RpcFailed, because nobody cancelled the task."""

    async def scenario() -> None:
        async with AsyncClient(double.target) as client:
            async for _ in client.progress("r"):
                await client.close()

    with pytest.raises(RpcFailed, match="closed"):
        asyncio.run(scenario())


@pytest.mark.usefixtures("held")
def test_closed_client_does_not_reconnect(double: Double) -> None:
    """A client that is closed under its reader raises RpcFailed at once."""
    with Client(double.target) as client:
        events = client.progress("r")
        next(events)
        client.close()
        with pytest.raises(RpcFailed, match=r"(?i)closed"):
            next(events)


@pytest.mark.parametrize("give", [{"token": "secret"}, {"token_file": None}])
def test_token_goes_with_every_call(double: Double, tmp_path: Path, give: dict[str, Any]) -> None:
    """The bearer token is sent with calls and streams, and a token file is read each time."""
    path = tmp_path / "token"
    path.write_text("secret\n")
    double.answers("Start", pb.StartResponse(run=RUNNING))
    double.answers("Progress", changed(1, ENDED))
    with Client(
        double.target, **{**give, **({"token_file": path} if "token_file" in give else {})}
    ) as client:
        client.start(b"{}")
        path.write_text("rotated")
        client.wait("r")
    sent = [metadata["authorization"] for metadata in double.metadata]
    assert sent == ["Bearer secret", "Bearer rotated" if "token_file" in give else "Bearer secret"]
