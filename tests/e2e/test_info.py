"""What a server says of itself: what it has, how busy it is, and what is ready for the next run."""

import os
import signal
import time
from collections.abc import Callable

import pytest

from notebook_runner import __version__
from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support import warm
from tests.support.calls import SECONDS, finish, inline, reach, start, started
from tests.support.gate import Gate
from tests.support.polling import pause
from tests.support.server import Server


def told(server: Server) -> pb.InfoResponse:
    """What the server says now."""
    return server.stub.Info(pb.InfoRequest(), timeout=SECONDS)


def kernel(server: Server, name: str = "python3") -> pb.KernelInfo:
    """What the server says of one kernelspec."""
    return next(one for one in told(server).kernels if one.name == name)


def until_ready(server: Server, count: int) -> None:
    """Waits until so many kernels are ready."""
    end = time.monotonic() + SECONDS
    while kernel(server).warm_ready != count:
        assert time.monotonic() < end, f"{kernel(server)}\n{server.tail()}"
        pause()


def test_a_server_says_what_it_is_and_has(server: Server) -> None:
    """Version, workers, queue, formats, kernelspecs and the default notebook are those of the server."""
    info = told(server)
    assert info.version == __version__
    assert (info.workers, info.queue_size) == (1, 3)
    assert {"notebook", "html", "files", "error"} <= set(info.formats)
    assert (info.default_notebook, info.has_notebook_root) == ("default.ipynb", True)
    assert [one.name for one in info.kernels if one.is_default] == ["python3"]
    assert kernel(server).language == "python"


def test_a_server_without_a_root_says_so(make_server: Callable[..., Server]) -> None:
    """There is neither a default notebook nor a place for paths, and nothing is kept warm."""
    info = told(server := make_server("--no-warm-kernels"))
    assert (info.default_notebook, info.has_notebook_root) == ("", False)
    assert (kernel(server).warm_ready, kernel(server).warm_wanted) == (0, 0)


def test_the_schemes_of_uris_are_told(server: Server, make_server: Callable[..., Server]) -> None:
    """None where the operator allows none."""
    assert list(told(server).uri_schemes) == []
    assert list(told(make_server("--uri-schemes", "s3,https")).uri_schemes) == ["https", "s3"]


def test_runs_that_go_on_and_that_wait_are_counted(server: Server, gate: Gate) -> None:
    """One run is executed and two wait; at the end there is none."""
    with started(server.stub, inline(gate.source)) as first:
        reach(server.stub, first.run_id, "cell_started")
        rest = [start(server.stub, inline("1")) for _ in range(2)]
        info = told(server)
        assert (info.runs_active, info.runs_queued) == (1, 2)
        gate.open()
        for run in [first, *rest]:
            finish(server.stub, run.run_id)
    info = told(server)
    assert (info.runs_active, info.runs_queued) == (0, 0)


@pytest.mark.process_pool("tests/cluster counts those of a cluster, which has more workers")
def test_kernels_that_are_ready_are_counted_over_all_workers(
    make_server: Callable[..., Server], gate: Gate
) -> None:
    """Two workers keep two kernels each; a run takes one, which is replaced."""
    server = make_server("--workers", "2", "--warm-kernels", "python3=2")
    assert kernel(server).warm_wanted == 4
    until_ready(server, 4)
    with started(server.stub, inline(gate.source)) as run:
        reach(server.stub, run.run_id, "cell_started")
        until_ready(server, 4)
        gate.open()
        finish(server.stub, run.run_id)


@pytest.mark.process_pool("the run goes to any worker, and not to the one whose template was stopped")
def test_a_kernel_that_was_taken_is_not_ready(make_server: Callable[..., Server], gate: Gate) -> None:
    """Where a template has died and cannot be replaced at once, a run that takes the spare leaves none."""
    server = make_server(*warm.ON)
    until_ready(server, 1)
    template, _ = warm.kept(server)

    os.kill(template, signal.SIGSTOP)
    with started(server.stub, inline(gate.source)) as run:
        reach(server.stub, run.run_id, "cell_started")
        until_ready(server, 0)
        os.kill(template, signal.SIGCONT)
        gate.open()
        finish(server.stub, run.run_id)
    until_ready(server, 1)
