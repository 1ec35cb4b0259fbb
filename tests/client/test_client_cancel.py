"""Readers that have enough: cancelled tasks, closed clients; and the token that goes with every call."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from notebook_runner import AsyncClient, Client, RpcFailed, Unavailable, _transport
from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.fake_server import ENDED, RUNNING, WAIT_SECONDS, FakeServer, changed, printed


@pytest.mark.usefixtures("held")
def test_cancelled_task_stays_cancelled(fake: FakeServer) -> None:
    """Cancelling a task in mid stream raises asyncio's own exception."""

    async def follow(reached: asyncio.Event) -> None:
        async with AsyncClient(fake.target) as client:
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
def test_cancelled_call_stays_cancelled(fake: FakeServer) -> None:
    """A deadline of asyncio's around a wait is asyncio's own exception."""

    async def scenario() -> None:
        async with AsyncClient(fake.target) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.wait("r"), 0.05)

    asyncio.run(scenario())


@pytest.mark.usefixtures("held")
def test_closed_async_client_is_no_cancellation(fake: FakeServer) -> None:
    """A client that is closed under its reader raises RpcFailed, because nobody cancelled the task."""

    async def scenario() -> None:
        async with AsyncClient(fake.target) as client:
            async for _ in client.progress("r"):
                await client.close()

    with pytest.raises(RpcFailed, match="closed"):
        asyncio.run(scenario())


@pytest.mark.usefixtures("held")
def test_closed_client_does_not_reconnect(fake: FakeServer) -> None:
    """A client that is closed under its reader raises RpcFailed at once."""
    with Client(fake.target) as client:
        events = client.progress("r")
        next(events)
        client.close()
        with pytest.raises(RpcFailed, match=r"(?i)closed"):
            next(events)


@pytest.mark.parametrize("method", ["start", "progress", "output", "kill", "list", "wait", "info"])
def test_closed_clients_say_so(fake: FakeServer, method: str) -> None:
    """Every call of a client that was closed raises RpcFailed, and closing it again does nothing."""

    async def scenario() -> None:
        async with AsyncClient(fake.target) as client:
            pass
        await client.close()
        answer = getattr(client, method)()
        await (anext(answer) if hasattr(answer, "__anext__") else answer)

    with Client(fake.target) as client:
        pass
    client.close()
    with pytest.raises(RpcFailed, match="closed"):
        list(getattr(client, method)())
    with pytest.raises(RpcFailed, match="closed"):
        asyncio.run(scenario())
    assert not fake.asked


def test_client_of_another_loop(fake: FakeServer) -> None:
    """An AsyncClient that is used in a second event loop says what is wrong."""
    fake.answers("Info", pb.InfoResponse())
    client = AsyncClient(fake.target)

    async def ask() -> None:
        await client.info()

    with asyncio.Runner() as first:
        first.run(ask())
        with pytest.raises(RuntimeError, match="belongs to the event loop of its first call"):
            asyncio.run(ask())
        first.run(client.close())


def test_late_answer_names_server_and_time(fake: FakeServer) -> None:
    """A deadline that has passed is Unavailable, and says how long it was and for whom."""
    over = threading.Event()

    def wait() -> pb.InfoResponse:
        over.wait(WAIT_SECONDS)
        return pb.InfoResponse()

    fake.answers("Info", wait)
    fake.answers("Info", wait)

    async def scenario() -> None:
        async with AsyncClient(fake.target, timeout=0.1) as client:
            await client.info()

    with Client(fake.target, timeout=0.1) as client:
        with pytest.raises(Unavailable, match=rf"No answer from {fake.target} within 0\.1 s"):
            client.info()
        with pytest.raises(Unavailable, match=r"within 0\.1 s"):
            asyncio.run(scenario())
    over.set()


def test_interrupt_stays_an_interrupt(fake: FakeServer) -> None:
    """Ctrl-C in the middle of a call and of a stream is KeyboardInterrupt, and the call is over."""
    over = threading.Event()

    def press() -> pb.ProgressResponse:
        os.kill(os.getpid(), signal.SIGINT)
        over.wait(WAIT_SECONDS)
        return changed(2, ENDED)

    fake.answers("Info", press)
    fake.answers("Progress", changed(1, RUNNING), press)
    with Client(fake.target) as client:
        with pytest.raises(KeyboardInterrupt):
            client.info()
        with pytest.raises(KeyboardInterrupt):
            list(client.progress("r"))
    over.set()


@pytest.fixture
def alarm() -> Iterator[Callable[[float], object]]:
    """Sets an alarm after some seconds, which does what Ctrl-C does."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.signal(signal.SIGALRM, before)


def test_interrupt_at_any_moment_of_a_stream(fake: FakeServer, alarm: Callable[[float], object]) -> None:
    """Ctrl-C is KeyboardInterrupt wherever it hits a reader: no error of gRPC's locks, and no hang."""
    rounds = 300
    # More than any machine reads until the alarm.
    rest = [printed(number) for number in range(2, 20_000)]
    for _ in range(rounds):
        fake.answers("Progress", changed(1, RUNNING), *rest)

    def read(client: Client, seconds: float) -> None:
        for event in client.progress("r"):
            if event.sequence == 1:
                alarm(seconds)

    with Client(fake.target) as client:
        for number in range(rounds):
            with pytest.raises(KeyboardInterrupt):
                read(client, 0.0002 + number % 30 * 0.0001)


def test_interrupt_when_a_stream_begins(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C before gRPC has a thread that looks after the stream: the client is closed all the same."""

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    fake.answers("Progress", changed(1, RUNNING), changed(2, ENDED))
    monkeypatch.setattr(_transport, "CLOSE_SECONDS", 0.2)
    client = Client(fake.target)
    with monkeypatch.context() as patch:
        patch.setattr("grpc._channel._run_channel_spin_thread", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(client.progress("r"))
    closing = threading.Thread(target=client.close, daemon=True)
    closing.start()
    closing.join(WAIT_SECONDS)
    assert not closing.is_alive()


@pytest.mark.parametrize("give", [{"token": "secret"}, {"token_file": None}])
def test_token_goes_with_every_call(fake: FakeServer, tmp_path: Path, give: dict[str, Any]) -> None:
    """The bearer token is sent with calls and streams, and a token file is read each time."""
    path = tmp_path / "token"
    path.write_text("secret\n")
    fake.answers("Start", pb.StartResponse(run=RUNNING))
    fake.answers("Progress", changed(1, ENDED))
    with Client(fake.target, **{**give, **({"token_file": path} if "token_file" in give else {})}) as client:
        client.start(b"{}")
        path.write_text("rotated")
        client.wait("r")
    sent = [metadata["authorization"] for metadata in fake.metadata]
    assert sent == ["Bearer secret", "Bearer rotated" if "token_file" in give else "Bearer secret"]
