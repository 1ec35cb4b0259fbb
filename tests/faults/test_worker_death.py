"""SIGKILL of the worker: its run is CRASHED with what it had, and no other run is touched."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import executed, finish, inline, perform, reach, start, started, texts
from tests.support.gate import Gate
from tests.support.killable import RUN_MARK, figure, new_mark, remains, worker_of
from tests.support.notebooks import printed
from tests.support.processes import outlived
from tests.support.server import Server

DEADLY = """
import os, pathlib, subprocess, time
subprocess.Popen(["sleep", os.environ["NBR_RUN_MARK"]], env={{}}, start_new_session=True)
subprocess.run(["sh", "-c", "setsid sleep $NBR_RUN_MARK &"], check=True)
print("kept\\n", end="", flush=True)
{wait}
pathlib.Path({path!r}).write_text(str(time.time_ns()))
os.kill(os.getppid(), 9)
time.sleep(1000)
"""


class Death(NamedTuple):
    """A run whose worker died, one that was queued behind it, and what there was after both."""

    server: Server
    moment: int
    events: list[pb.ProgressResponse]
    left: dict[int, str]
    queued: pb.Run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the gate and for the time of the death."""
    return tmp_path_factory.mktemp("death")


@pytest.fixture(scope="module")
def death(folder: Path) -> Iterator[Death]:
    """A notebook that ended its worker while another run was queued."""
    gate, path, mark = Gate(folder), folder / "time", new_mark()
    source = DEADLY.format(wait=gate.source, path=str(path))
    # A notebook can end its worker only where nothing keeps it from that.
    with Server(folder / "state", "--queue", "3", "--sandbox", "off") as server:
        run = start(server.stub, inline("print('done')", source, environment={RUN_MARK: mark}))
        queued = start(server.stub, inline("print('later')"))
        reach(server.stub, run.run_id, "cell_output", cell=1)
        assert len(remains(mark)) >= 2
        gate.open()
        events, left = finish(server.stub, run.run_id).events, remains(mark)
        yield Death(server, int(path.read_text()), events, left, queued)
    gate.close()


def test_the_run_is_crashed_at_once(death: Death) -> None:
    """The terminal event names the death of the worker, and no limit had to pass for it."""
    run = death.events[-1].run_changed
    seconds = (run.end_time.ToNanoseconds() - death.moment) / 1e9
    figure(f"terminal {1000 * seconds:.0f} ms after the death of the worker")
    assert run.state == pb.RUN_STATE_CRASHED
    assert run.failure.cause == pb.FAILURE_CAUSE_WORKER_DIED
    assert (run.failure.HasField("cell_index"), run.failure.cell_index) == (True, 1)
    # Only the worker knew what the run had used.
    assert not run.HasField("cpu_time")
    assert run.peak_memory_bytes == 0


def test_no_process_of_it_is_left_when_it_has_ended(death: Death) -> None:
    """Whatever it had started, in whichever session and environment, is gone at the terminal event."""
    assert death.left == {}


def test_what_it_had_is_kept(death: Death) -> None:
    """The finished cell, and what the deadly one was told to have printed."""
    run_id = death.events[-1].run_changed.run_id
    node = executed(death.server.stub, run_id)
    assert (printed(node, 0), printed(node, 1)) == ("done\n", "kept\n")
    assert texts(death.events) == "done\nkept\n"


def test_the_queued_run_is_untouched(death: Death) -> None:
    """The run behind it is executed by the worker that takes the place."""
    ended = finish(death.server.stub, death.queued.run_id)
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED
    assert texts(ended.events) == "later\n"
    seconds = (ended.run.start_time.ToNanoseconds() - death.moment) / 1e9
    figure(f"the next run had a worker {seconds:.2f} s after the death")


@pytest.mark.process_pool("on a cluster no run says which worker it will have: tests/cluster ends all")
def test_a_worker_that_dies_with_nothing_to_do_is_replaced(make_server: Callable[..., Server]) -> None:
    """The next Start works when the idle worker was killed, again and again."""
    server = make_server()
    for _ in range(2):
        worker = worker_of(server)
        os.kill(worker, signal.SIGKILL)
        assert outlived([worker], 60) == []
        begin = time.monotonic()
        run = perform(server.stub, inline("1")).run
        figure(f"Start to end {time.monotonic() - begin:.2f} s after the death of the idle worker")
        assert run.state == pb.RUN_STATE_SUCCEEDED, run


@pytest.mark.process_pool("on a cluster the next run may be on another machine")
def test_a_kernel_that_dies_is_the_end_of_its_run_alone(server: Server, gate: Gate) -> None:
    """The worker of a dead kernel goes on with the run that was queued."""
    with started(server.stub, inline("import os; os.kill(os.getpid(), 9)")) as run:
        worker = worker_of(server)
        with started(server.stub, inline(gate.source)) as queued:
            assert finish(server.stub, run.run_id).run.state == pb.RUN_STATE_CRASHED
            gate.open()
            assert finish(server.stub, queued.run_id).run.state == pb.RUN_STATE_SUCCEEDED
    assert worker_of(server) == worker
