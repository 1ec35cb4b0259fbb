"""Fixtures of the client's tests: a server that does what the test says, and both clients to call it."""

import asyncio
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from notebook_runner import AsyncClient, Client
from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.fake_server import RUNNING, WAIT_SECONDS, Collect, FakeServer, changed, printed


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    """A server that does what the test says."""
    serving = FakeServer()
    yield serving
    serving.stop()


def messages(answers: Iterable[Any]) -> list[Any]:
    """The messages of the contract in what a client answers."""
    return [getattr(answer, "pb", answer) for answer in answers]


@pytest.fixture
def collect(request: pytest.FixtureRequest, fake: FakeServer) -> Collect:
    """Calls a method of one of the clients, and gives the messages of all that it answers as a list."""

    def blocking(name: str, *args: Any, **options: Any) -> list[Any]:
        with Client(fake.target) as client:
            answer = getattr(client, name)(*args, **options)
            return messages(answer if isinstance(answer, Iterator) else [answer])

    async def awaited(name: str, *args: Any, **options: Any) -> list[Any]:
        async with AsyncClient(fake.target) as client:
            answer = getattr(client, name)(*args, **options)
            return messages(
                [item async for item in answer] if hasattr(answer, "__aiter__") else [await answer]
            )

    if request.param == "sync":
        return blocking
    return lambda *args, **options: asyncio.run(awaited(*args, **options))


@pytest.fixture
def held(fake: FakeServer) -> Iterator[None]:
    """A stream of the run `r` that says one thing and then holds until the test is over."""
    over = threading.Event()

    def hold() -> pb.ProgressResponse:
        over.wait(WAIT_SECONDS)
        return printed(2)

    fake.answers("Progress", changed(1, RUNNING), hold)
    yield
    over.set()
