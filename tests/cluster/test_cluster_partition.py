"""A worker that is cut off from the network: nothing hangs, and nothing of its run goes on unseen."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import Ended, executed, finish, inline, perform, reach, start, texts
from tests.support.cluster import Cluster
from tests.support.killable import RUN_MARK, KillableServer, figure, gone, new_mark, remains
from tests.support.network import Wire, lacking
from tests.support.notebooks import printed
from tests.support.processes import is_alive

pytestmark = pytest.mark.skipif(bool(lacking()), reason=lacking())

TIMEOUT, LOST, SLACK = 6.0, 5.0, 60.0
"""Seconds: --worker-timeout where a test waits for it, how much later the server says that one is lost, and
how much a busy machine may add."""
LONG_TIMEOUT = 60.0
"""--worker-timeout where no worker may be lost."""

TREE = """
import os, subprocess, time
with open({path!r}, "a") as file:
    file.write(f"{{os.getpid()}}\\n")
subprocess.Popen(["sleep", os.environ["NBR_RUN_MARK"]], env={{}}, start_new_session=True)
subprocess.run(["sh", "-c", "setsid sleep $NBR_RUN_MARK &"], check=True)
for number in range({count}):
    print(number, flush=True)
    time.sleep(0.01)
"""


class Far(NamedTuple):
    """A cluster of one worker, and the wire to that."""

    cluster: Cluster
    wire: Wire


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    """A scheduler on this side of a wire, and one worker on the other."""
    with Wire() as wire, Cluster(tmp_path_factory.mktemp("cluster"), 0, wire.here) as cluster:
        cluster.start_worker("far", *wire.prefix, host=wire.there)
        cluster.wait(1)
        yield Far(cluster, wire)
        wire.mend()


@pytest.fixture
def serve(far: Far, tmp_path: Path) -> Iterator[Callable[..., KillableServer]]:
    """Starts a server on the cluster, by the seconds of its --worker-timeout."""
    with ExitStack() as servers:

        def one(timeout: float = TIMEOUT) -> KillableServer:
            options = ("--worker-timeout", str(timeout), "--queue", "9")
            server = KillableServer(tmp_path / "state", *options, environment=far.cluster.environment)
            return servers.enter_context(server)

        yield one
        far.wire.mend()


class Course:
    """A run on the far worker that prints for a while, and what is left of it."""

    def __init__(self, server: KillableServer, folder: Path, count: int = 100_000) -> None:
        self.server, self._effects, self._mark = server, folder / "effects", new_mark()
        source = TREE.format(path=str(self._effects), count=count)
        request = inline(source, environment={RUN_MARK: self._mark})
        self.run_id = start(server.stub, request).run_id
        reach(server.stub, self.run_id, "cell_output")
        assert len(remains(self._mark)) >= 2

    def finish(self) -> Ended:
        """Follows it to its end, at which nothing may be left of it."""
        ended = finish(self.server.stub, self.run_id)
        (kernel,) = self._effects.read_text().split()
        assert (remains(self._mark), is_alive(int(kernel))) == ({}, False)
        return ended

    def gone(self, seconds: float) -> float:
        """Waits until nothing is left of it."""
        return gone(self._mark, seconds)


def is_lost(run: pb.Run) -> bool:
    """Whether it ended as the run of a lost worker does."""
    kind = (run.state, run.failure.cause)
    return kind == (pb.RUN_STATE_CRASHED, pb.FAILURE_CAUSE_WORKER_DIED) and "lost" in run.failure.message


def works(server: KillableServer) -> float:
    """A run on the worker succeeds; answers the seconds from Start to its end."""
    begin = time.monotonic()
    assert perform(server.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED
    return time.monotonic() - begin


def test_a_cut_that_lasts_is_said(far: Far, serve: Callable[..., KillableServer], tmp_path: Path) -> None:
    """CRASHED, lost, after the configured time; by then nothing goes on there, and later neither."""
    course = Course(serve(), tmp_path)
    far.wire.cut()
    begin = time.monotonic()
    seconds = course.gone(TIMEOUT + SLACK)
    ended = course.finish()
    said = time.monotonic() - begin
    figure(f"the worker ended the run {seconds:.1f} s after the cut, the server said so after {said:.1f} s")
    assert is_lost(ended.run), ended.run
    assert said > TIMEOUT + LOST - TIMEOUT / 4 - 0.5
    far.wire.mend()
    figure(f"the next run ended {works(course.server):.1f} s after the link was back")
    assert course.finish() == ended
    assert printed(executed(course.server.stub, course.run_id), 0) == texts(ended.events)


@pytest.mark.cluster_long
def test_a_worker_that_comes_back_too_late(
    far: Far, serve: Callable[..., KillableServer], tmp_path: Path
) -> None:
    """It has ended the run, which nobody has said to be lost yet: that is said as soon as it answers."""
    course = Course(serve(), tmp_path)
    far.wire.cut()
    course.gone(TIMEOUT + SLACK)
    far.wire.mend()
    begin = time.monotonic()
    run = course.finish().run
    figure(f"said {time.monotonic() - begin:.1f} s after the link was back: {run.failure.message}")
    assert (run.state, run.failure.cause) == (pb.RUN_STATE_CRASHED, pb.FAILURE_CAUSE_WORKER_DIED)
    works(course.server)


@pytest.mark.parametrize("seconds", [0.5, 3.5])
def test_a_short_cut_is_no_end(
    far: Far, serve: Callable[..., KillableServer], tmp_path: Path, seconds: float
) -> None:
    """A link that is back before the time-out: the run goes on, and no event is missing or doubled."""
    count = 700
    course = Course(serve(LONG_TIMEOUT), tmp_path, count)
    far.wire.cut()
    # The length of the cut is what is tried here; nothing is waited for.
    threading.Event().wait(seconds)
    far.wire.mend()
    ended = course.finish()
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED, ended.run
    lines = "".join(f"{number}\n" for number in range(count))
    assert texts(ended.events) == lines
    assert printed(executed(course.server.stub, course.run_id), 0) == lines


def test_kill_while_the_link_is_cut(far: Far, serve: Callable[..., KillableServer], tmp_path: Path) -> None:
    """Kill answers KILLED when the worker must have ended the run, and not before."""
    course = Course(serve(), tmp_path)
    far.wire.cut()
    begin = time.monotonic()
    answer = course.server.stub.Kill(pb.KillRequest(run_id=course.run_id), timeout=60)
    seconds = time.monotonic() - begin
    figure(f"Kill over a link that is cut answers after {seconds:.1f} s: {answer.run.failure.message}")
    assert answer.run.state == pb.RUN_STATE_KILLED
    assert course.finish().run == answer.run
    far.wire.mend()
    works(course.server)


@pytest.mark.cluster_long
def test_kill_reaches_a_worker_that_comes_back(
    far: Far, serve: Callable[..., KillableServer], tmp_path: Path
) -> None:
    """An order that is given while the link is cut is carried out when it is back."""
    course = Course(serve(LONG_TIMEOUT), tmp_path)
    far.wire.cut()
    with ThreadPoolExecutor(1) as pool:
        kill = pool.submit(course.server.stub.Kill, pb.KillRequest(run_id=course.run_id), timeout=60)
        threading.Event().wait(2)
        assert not kill.done()
        far.wire.mend()
        begin = time.monotonic()
        answer = kill.result(60)
    figure(f"Kill answers {time.monotonic() - begin:.1f} s after the link is back")
    assert answer.run.state == pb.RUN_STATE_KILLED
    assert answer.processes_ended >= 2
    course.finish()
    works(course.server)


def test_kill_of_what_never_reached_the_worker(far: Far, serve: Callable[..., KillableServer]) -> None:
    """A run that waits for a slot behind the cut is KILLED at once, and not executed later."""
    server, mark = serve(), new_mark()
    works(server)
    far.wire.cut()
    run = start(server.stub, inline("import time; time.sleep(100000)", environment={RUN_MARK: mark}))
    stream = server.stub.Progress(pb.ProgressRequest(run_id=run.run_id), timeout=60)
    next(event for event in stream if event.run_changed.state == pb.RUN_STATE_STARTING)
    stream.cancel()
    # The link stays cut: a Kill that waited for the worker would miss its deadline.
    answer = server.stub.Kill(pb.KillRequest(run_id=run.run_id), timeout=60)
    assert answer.run.state == pb.RUN_STATE_KILLED
    far.wire.mend()
    works(server)
    assert remains(mark) == {}
