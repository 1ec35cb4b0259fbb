"""A warm kernel is connected and has answered before a run comes, however it was started."""

import asyncio
import gc
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import zmq
from jupyter_client.kernelspec import KernelSpecManager

from notebook_runner_server.execution import kernel as kernels
from notebook_runner_server.execution.ipykernel_args import MESSAGES_ON_THE_WAY
from notebook_runner_server.execution.kernel import Kernel
from notebook_runner_server.execution.warm import forking
from notebook_runner_server.execution.warm.forking import ForkServer, ForkServerError
from notebook_runner_server.execution.warm.pool import KernelSource
from tests.support.polling import pause

pytestmark = pytest.mark.integration

SECONDS = 60.0
# A test that waits for so long hangs, and fails.
FOR_EVER = 10_000.0
NAME = "python3"


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives a busy machine time for each fork, and for its assignment to a run."""
    monkeypatch.setattr(forking, "FORK_SECONDS", SECONDS)
    monkeypatch.setattr(forking, "ASSIGN_SECONDS", SECONDS)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a socket's."""
    path = Path(tempfile.mkdtemp(prefix="nbr-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=["forked", "started"])
def fork_server(request: pytest.FixtureRequest) -> Iterator[ForkServer | None]:
    """The fork server of the kernel; None: the kernelspec's command starts it."""
    if request.param == "started":
        yield None
        return
    source = KernelSource(NAME, KernelSpecManager().get_kernel_spec(NAME), (), hide=False)
    yield source.fork_server
    source.close()


async def until(condition: Callable[[], bool]) -> None:
    """Waits until something is so."""

    def wait() -> None:
        while not condition():
            pause()

    await asyncio.to_thread(wait)


@asynccontextmanager
async def launched(folder: Path, fork_server: ForkServer | None) -> AsyncIterator[Kernel]:
    """A kernel that was started without a run, and has bound its sockets if that can be known."""
    kernel = Kernel(NAME, folder, fork_server)
    try:
        await kernel.launch_ahead()
        if fork_server is not None:
            await until(lambda: kernel.is_bound)
        yield kernel
    finally:
        kernel.kill()
        await until(lambda: kernel.exit_code() is not None)
        kernel.close()


async def warmed_up(kernel: Kernel, seconds: float = SECONDS) -> bool:
    """Whether it was warmed up, on another thread, as a worker does it."""
    return await asyncio.to_thread(kernel.warm_up, seconds)


async def assigned(kernel: Kernel, folder: Path) -> None:
    """Gives the kernel to a run."""
    await kernel.assign(str(folder), {"GIVEN": "x"}, str(folder))
    await kernel.connect()


async def printed(kernel: Kernel, source: str) -> str:
    """What a cell prints."""
    client = kernel.client
    assert client is not None
    request = client.execute(source)
    text = ""
    while True:
        message = await client.get_iopub_msg(timeout=SECONDS)
        if message["parent_header"].get("msg_id") != request:
            continue
        if message["msg_type"] == "stream":
            text += message["content"]["text"]
        if message["content"].get("execution_state") == "idle":
            return text


async def test_a_run_finds_a_client_that_is_connected(folder: Path, fork_server: ForkServer | None) -> None:
    """It uses the sockets of the warm-up, on its own thread: their names may even be gone."""
    async with launched(folder, fork_server) as kernel:
        assert await warmed_up(kernel)
        assert not kernel.why_unusable()
        for one in folder.rglob("*"):
            if one.is_socket():
                one.unlink()
        assert kernel.why_unusable() == kernels.LOST_SOCKETS
        await assigned(kernel, folder)
        source = "import os; print(os.environ['GIVEN'], os.getcwd())"
        assert await printed(kernel, source) == f"x {folder.resolve()}\n"
        assert kernel.client is not None
        # Known from the warm-up, so that the run need not ask.
        info = kernel.client.known_info_reply(kernel.client.kernel_info())
        assert info is not None
        assert info["content"]["language_info"]["name"] == "python"


async def test_the_sockets_hold_few_messages(folder: Path) -> None:
    """A kernel that prints faster than it is read waits, instead of filling the worker's memory."""
    async with launched(folder, None) as kernel:
        assert await warmed_up(kernel)
        assert kernel.client is not None
        assert kernel.client.iopub_channel.socket.get(zmq.RCVHWM) == MESSAGES_ON_THE_WAY


async def test_nothing_is_left_of_a_kernel(folder: Path, fork_server: ForkServer | None) -> None:
    """Neither descriptors nor files, whether a run has used it or not."""
    # What a process opens once, and keeps.
    async with launched(folder, fork_server) as kernel:
        assert await warmed_up(kernel)
    # Those of earlier tests may be closed meanwhile.
    gc.collect()
    before = os.listdir("/proc/self/fd")
    for is_used in (False, True):
        async with launched(folder, fork_server) as kernel:
            assert await warmed_up(kernel)
            if is_used:
                await assigned(kernel, folder)
                assert await printed(kernel, "print(1)") == "1\n"
        assert list(folder.iterdir()) == []
        assert len(os.listdir("/proc/self/fd")) <= len(before)


async def test_a_kernel_that_dies_is_not_waited_for(folder: Path) -> None:
    """Its warm-up ends with it, because only then can its sockets be closed."""
    async with launched(folder, None) as kernel:
        os.kill(kernel.pid, signal.SIGSTOP)
        warm_up = asyncio.ensure_future(warmed_up(kernel, FOR_EVER))
        await asyncio.sleep(0)
        assert not warm_up.done()
        kernel.kill()
        assert not await warm_up


async def test_a_kernel_that_does_not_answer_is_given_up(folder: Path) -> None:
    """It stopped before it was connected: the warm-up says so, and the kernel can be closed."""
    async with launched(folder, None) as kernel:
        os.kill(kernel.pid, signal.SIGSTOP)
        assert not await warmed_up(kernel, 0.1)


async def test_a_warm_kernel_that_stops_is_noticed(
    folder: Path, fork_server: ForkServer | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has answered, and does not when it is given to a run, which can then take another one."""
    async with launched(folder, fork_server) as kernel:
        assert await warmed_up(kernel)
        os.kill(kernel.pid, signal.SIGSTOP)
        monkeypatch.setattr(forking, "ASSIGN_SECONDS", 0.1)
        monkeypatch.setattr(kernels, "READY_TIMEOUT", 0.0)
        monkeypatch.setattr(kernels, "LEAST_TIMEOUT", 0.1)
        with pytest.raises((ForkServerError, TimeoutError)):
            await assigned(kernel, folder)


async def test_a_warm_kernel_that_dies_is_noticed(folder: Path, fork_server: ForkServer | None) -> None:
    """The run is told at once, and not when a time is over."""
    async with launched(folder, fork_server) as kernel:
        assert await warmed_up(kernel)
        kernel.kill()
        with pytest.raises((ForkServerError, kernels.KernelDiedError)):
            await assigned(kernel, folder)
