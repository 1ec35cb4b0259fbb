"""A run gets a kernel that is ready and restricted, whatever happens while the next one is forked."""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import inline, perform
from tests.support.killable import figure
from tests.support.server import Server
from tests.support.unprivileged import UnprivilegedServer, unprivileged_home
from tests.support.warm import ON, kept

pytestmark = pytest.mark.process_pool(
    "one worker's kernels are counted; each Dask worker has its own, by the same code"
)

RUNS = int(os.environ.get("HANDOVER_RUNS", "40"))
WRITE = inline("open('o.txt', 'w').write('x')")

# Preloaded by a template: each kernel that it forks waits so long before it does anything.
SLOW_FORK = """
import os, time
generation = 0

def wait():
    global generation
    generation += 1
    if generation == 2:
        time.sleep({seconds})

os.register_at_fork(after_in_child=wait)
"""


@contextmanager
def slow_server(seconds: float, *options: str) -> Iterator[UnprivilegedServer]:
    """A server whose warm kernels take so much longer to become ready."""
    with unprivileged_home() as home:
        modules = home / "modules"
        modules.mkdir()
        (modules / "slow_fork.py").write_text(SLOW_FORK.format(seconds=seconds))
        environment = {"PYTHONPATH": str(modules)}
        with UnprivilegedServer(
            home, *ON, "--preload", "slow_fork", *options, environment=environment
        ) as server:
            yield server


def starts(server: Server, runs: int) -> list[str]:
    """How the kernel of each of so many runs came to be, warm or cold."""
    return [entry["start"] for entry in server.logged("run", count=runs)]


def failures(server: Server, runs: int) -> list[str]:
    """Executes runs that write to their folder, one after the other; answers what went wrong."""
    ended = (perform(server.stub, WRITE).run for _ in range(runs))
    return [run.failure.message for run in ended if run.state != pb.RUN_STATE_SUCCEEDED]


def test_a_kernel_that_is_not_ready_is_waited_for() -> None:
    """The next run comes while its kernel has not restricted itself: it waits, and may write its folder."""
    with slow_server(0.5) as server:
        kept(server)
        assert failures(server, 4) == []
        assert starts(server, 4) == ["warm"] * 4


def test_a_kernel_that_never_gets_ready_is_not_waited_for() -> None:
    """The run starts one of its own, and the one that hangs is ended."""
    with slow_server(10_000) as server:
        assert failures(server, 2) == []
        assert starts(server, 2) == ["cold"] * 2
        server.logged("warm_kernel_lost", "it was not ready in time")


@pytest.mark.parametrize("queue", [0, 4])
def test_every_run_may_write_its_folder(queue: int) -> None:
    """Two workers, runs that follow each other at once, and new entries in the folders above all state."""
    with (
        unprivileged_home() as home,
        UnprivilegedServer(home, "--workers", "2", "--queue", str(queue)) as server,
    ):
        # As many as there are workers, or as many more as may wait.
        callers = 2 + queue // 2

        def in_a_row(caller: int) -> list[str]:
            found = []
            for number in range(RUNS // callers):
                if number % callers == caller:
                    for folder in (home, server.state_dir.parent):
                        (folder / f"entry-{caller}-{number}").touch()
                found += failures(server, 1)
            return found

        with ThreadPoolExecutor(callers) as pool:
            assert list(chain.from_iterable(pool.map(in_a_row, range(callers)))) == []
    runs = callers * (RUNS // callers)
    assert len(starts(server, runs)) == runs
    figure(f"{Counter(starts(server, runs))}")
