"""Five hundred watchers of all runs: each sees each change once, and other calls are answered meanwhile."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, cast

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc
from tests.support.calls import SECONDS, inline
from tests.support.killable import figure
from tests.support.progress import TERMINAL
from tests.support.server import Server
from tests.support.watching import WatchValidator

pytestmark = pytest.mark.long

if TYPE_CHECKING:
    from notebook_runner.v1.notebook_runner_pb2_grpc import NotebookRunnerAsyncStub

WATCHERS = 500
CHANNELS = 8
RUNS = 2
SLEEPS = "import time; time.sleep(600)"


async def watch(stub: "NotebookRunnerAsyncStub", ready: asyncio.Barrier) -> list[pb.WatchResponse]:
    """What a watcher sees until so many runs have ended."""
    request = pb.WatchRequest()
    validator = WatchValidator(request)
    seen: list[pb.WatchResponse] = []
    call = stub.Watch(request, timeout=4 * SECONDS)
    messages = aiter(call)
    first = await anext(messages)
    assert first.HasField("heartbeat")
    await ready.wait()
    while sum(message.run.state in TERMINAL for message in seen) < RUNS:
        message = await anext(messages)
        validator.see(message)
        if not message.HasField("heartbeat"):
            seen.append(message)
    call.cancel()
    return seen


async def watch_all(target: str) -> tuple[list[list[pb.WatchResponse]], dict[str, float]]:
    """What all watchers see of runs that are started and killed, and how long these calls took."""
    ready = asyncio.Barrier(WATCHERS + 1)
    seconds: dict[str, float] = {}
    async with AsyncExitStack() as stack:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(target, options) for _ in range(CHANNELS + 1)]
        stub, *stubs = [
            cast("NotebookRunnerAsyncStub", rpc.NotebookRunnerStub(await stack.enter_async_context(each)))
            for each in channels
        ]
        tasks = [asyncio.create_task(watch(stubs[n % CHANNELS], ready)) for n in range(WATCHERS)]
        await asyncio.wait_for(ready.wait(), 2 * SECONDS)
        for _ in range(RUNS):
            begin = time.monotonic()
            run = (await stub.Start(inline(SLEEPS), timeout=SECONDS)).run
            seconds["Start"] = time.monotonic() - begin
            begin = time.monotonic()
            await stub.Kill(pb.KillRequest(run_id=run.run_id), timeout=SECONDS)
            seconds["Kill"] = time.monotonic() - begin
        return await asyncio.gather(*tasks), seconds


def test_each_of_five_hundred_watchers_sees_every_change(make_server: Callable[..., Server]) -> None:
    """All see the same, whole, and Start and Kill are answered."""
    seen, seconds = asyncio.run(watch_all(make_server("--max-streams", str(WATCHERS)).target))
    for name, value in seconds.items():
        figure(f"{name} with {WATCHERS} watchers: {value * 1000:.0f} ms")
    assert len({message.run.run_id for message in seen[0]}) == RUNS
    assert all(one == seen[0] for one in seen)
