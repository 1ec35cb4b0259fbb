"""Runs on a Dask cluster: many at once, each with the guarantees that it has on one machine."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import executed, finish, follow, inline, perform, reach, start, started, texts
from tests.support.cluster import Cluster
from tests.support.gate import Gate
from tests.support.killable import RUN_MARK, KillableServer, figure, gone, new_mark, remains
from tests.support.notebooks import printed
from tests.support.polling import pause
from tests.support.scrape import ON, scrape, until

Serve = Callable[..., KillableServer]
TREE = """
import os, subprocess
subprocess.Popen(["sleep", os.environ["NBR_RUN_MARK"]], env={}, start_new_session=True)
subprocess.run(["sh", "-c", "setsid sleep $NBR_RUN_MARK &"], check=True)
print(os.getpid(), flush=True)
"""
FOR_EVER = TREE + "import time; time.sleep(100000)"
ONCE = """
import os
with open({path!r}, "a") as file:
    file.write("executed\\n")
"""
# Text that comes all the time, and ends.
COUNTING = """
import time
for number in range({count}):
    print(number, flush=True)
    time.sleep(0.01)
"""


@pytest.fixture(scope="module")
def calm(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KillableServer]:
    """A server for the tests that leave it well."""
    options = ("--worker-timeout", "30", "--queue", "9")
    with KillableServer(tmp_path_factory.mktemp("state"), *options, environment=cluster.environment) as one:
        yield one


def workers(server: KillableServer, count: int, seconds: float = 60.0) -> float:
    """Waits until the server has so many slots; answers how long that took."""
    begin = time.monotonic()
    while server.stub.Info(pb.InfoRequest(), timeout=60).workers != count:
        assert time.monotonic() < begin + seconds, server.tail()
        pause()
    return time.monotonic() - begin


def kernel(server: KillableServer, run: pb.Run, cell: int = 0) -> int:
    """The process that a run has printed as its own."""
    event = reach(server.stub, run.run_id, "cell_output", cell)
    return int(event.cell_output.stream.text)


def test_as_many_runs_go_on_as_there_are_slots(calm: KillableServer, gate: Gate) -> None:
    """Three run at once on three workers, the fourth waits in the server's queue and comes next."""
    workers(calm, 3)
    with ExitStack() as stack:
        runs = [stack.enter_context(started(calm.stub, inline(gate.source))) for _ in range(4)]
        for run in runs[:3]:
            reach(calm.stub, run.run_id, "cell_started")
        info = calm.stub.Info(pb.InfoRequest(), timeout=60)
        assert (info.workers, info.runs_active, info.runs_queued) == (3, 3, 1)
        gate.open(4)
        assert {finish(calm.stub, run.run_id).run.state for run in runs} == {pb.RUN_STATE_SUCCEEDED}


def test_warm_kernels_of_all_workers_are_told(calm: KillableServer) -> None:
    """Info counts the kernels that wait on the workers."""
    end = time.monotonic() + 60
    while True:
        kernels = calm.stub.Info(pb.InfoRequest(), timeout=60).kernels
        if [(one.warm_ready, one.warm_wanted) for one in kernels if one.name == "python3"] == [(3, 3)]:
            return
        assert time.monotonic() < end, kernels
        pause()


def test_the_runs_at_once_follow_the_cluster(cluster: Cluster, calm: KillableServer, gate: Gate) -> None:
    """A worker that comes takes a run that waited; when it goes, there is one slot less."""
    workers(calm, 3)
    with ExitStack() as stack:
        runs = [stack.enter_context(started(calm.stub, inline(gate.source))) for _ in range(4)]
        for run in runs[:3]:
            reach(calm.stub, run.run_id, "cell_started")
        cluster.start_worker("another")
        reach(calm.stub, runs[3].run_id, "cell_started")
        workers(calm, 4)
        gate.open(4)
        assert {finish(calm.stub, run.run_id).run.state for run in runs} == {pb.RUN_STATE_SUCCEEDED}
    cluster.stop_worker("another")
    workers(calm, 3)


def test_kill_ends_running_and_waiting_runs(calm: KillableServer) -> None:
    """The answer comes when no process is left on the worker, and at once for what had not started."""
    mark = new_mark()
    with ExitStack() as stack:
        request = inline(FOR_EVER, environment={RUN_MARK: mark})
        runs = [stack.enter_context(started(calm.stub, request)) for _ in range(4)]
        for run in runs[:3]:
            kernel(calm, run)
        for run in reversed(runs):
            begin = time.monotonic()
            answer = calm.stub.Kill(pb.KillRequest(run_id=run.run_id), timeout=60)
            figure(f"Kill answers after {1000 * (time.monotonic() - begin):.0f} ms")
            assert answer.run.state == pb.RUN_STATE_KILLED
            assert answer.processes_ended >= (0 if run is runs[3] else 3)
        assert remains(mark) == {}


def test_a_worker_that_is_killed_is_the_end_of_its_run_alone(
    cluster: Cluster, calm: KillableServer, tmp_path: Path, gate: Gate
) -> None:
    """CRASHED within 1 s, executed once, nothing left there, its text kept; other runs go on."""
    workers(calm, 3)
    mark, path = new_mark(), tmp_path / "effects"
    cells = (ONCE.format(path=str(path)), FOR_EVER)
    with started(calm.stub, inline(gate.source)) as other:
        run = start(calm.stub, inline(*cells, environment={RUN_MARK: mark}))
        name, pid = cluster.worker_of(kernel(calm, run, 1))
        os.kill(pid, signal.SIGKILL)
        moment = time.time()
        ended = finish(calm.stub, run.run_id).run
        seconds = ended.end_time.ToNanoseconds() / 1e9 - moment
        figure(f"CRASHED {1000 * seconds:.0f} ms after SIGKILL of {name}; gone after {gone(mark):.3f} s")
        assert (ended.state, ended.failure.cause) == (pb.RUN_STATE_CRASHED, pb.FAILURE_CAUSE_WORKER_DIED)
        assert printed(executed(calm.stub, run.run_id), 1).strip().isdigit()
        assert perform(calm.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED
        gate.open()
        assert finish(calm.stub, other.run_id).run.state == pb.RUN_STATE_SUCCEEDED
    workers(calm, 3)
    # Dask has had its second try by now.
    assert perform(calm.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED
    assert path.read_text() == "executed\n"


@pytest.mark.parametrize("is_asked", [False, True], ids=["killed", "asked to stop"])
def test_runs_are_followed_on_by_the_next_server(
    serve: Serve, tmp_path: Path, gate: Gate, *, is_asked: bool
) -> None:
    """Runs go on and end without the server; no event of them is missing or doubled; queued ones start."""
    path, count = tmp_path / "effects", 200
    first = serve("--cluster-runs", "2")
    cells = (ONCE.format(path=str(path)), COUNTING.format(count=count), "print('end')")
    run, brief, queued = (start(first.stub, inline(*one)) for one in (cells, (gate.source,), ("1",)))
    reach(first.stub, brief.run_id, "cell_started")
    reach(first.stub, run.run_id, "cell_output", 1)
    if is_asked:
        first.stop()
    else:
        first.process.kill()
        first.process.wait()
    gate.open()
    second = serve("--cluster-runs", "2")
    ended = finish(second.stub, run.run_id)
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED, ended.run
    lines = "".join(f"{number}\n" for number in range(count))
    assert texts(ended.events) == f"{lines}end\n"
    assert printed(executed(second.stub, run.run_id), 1) == lines
    assert path.read_text() == "executed\n"
    for one in (brief, queued):
        assert finish(second.stub, one.run_id).run.state == pb.RUN_STATE_SUCCEEDED


def test_the_next_server_counts_the_runs_that_go_on(serve: Serve, gate: Gate) -> None:
    """Workers are added by the number of runs: one that was begun before the server's death is among them."""
    first = serve()
    run = start(first.stub, inline(gate.source))
    reach(first.stub, run.run_id, "cell_started")
    first.process.kill()
    first.process.wait()
    second = serve(*ON)
    assert scrape(second).counted("runs") == {("running",): 1}
    gate.open()
    assert finish(second.stub, run.run_id).run.state == pb.RUN_STATE_SUCCEEDED
    until(second, lambda page: not page.counted("runs"))


def test_large_output_survives_the_death_of_the_server(serve: Serve, gate: Gate) -> None:
    """A segment that was on its way in many pieces is whole in the end."""
    size = 40_000_000
    show = f"from IPython.display import display; display({{'text/plain': 'x' * {size}}}, raw=True)"
    source = f"{gate.source}\n{show}"
    first = serve()
    run = start(first.stub, inline(source))
    with closing(follow(first.stub, run.run_id)) as events:
        next(event for event in events if event.HasField("cell_started"))
        gate.open()
        next(event for event in events if event.HasField("cell_output"))
    first.process.kill()
    first.process.wait()
    second = serve()
    assert finish(second.stub, run.run_id).run.state == pb.RUN_STATE_SUCCEEDED
    (output,) = executed(second.stub, run.run_id).cells[0].outputs
    assert output.data["text/plain"] == "x" * size


def test_a_run_that_no_server_asks_for_is_ended(serve: Serve) -> None:
    """When no server is back in the configured time, nothing goes on; the next one says INTERRUPTED."""
    mark = new_mark()
    first = serve("--worker-timeout", "6")
    run = start(first.stub, inline(FOR_EVER, environment={RUN_MARK: mark}))
    kernel(first, run)
    first.process.kill()
    first.process.wait()
    figure(f"ended {gone(mark):.1f} s after the death of its server")
    second = serve()
    ended = finish(second.stub, run.run_id).run
    assert (ended.state, ended.failure.cause) == (pb.RUN_STATE_INTERRUPTED, pb.FAILURE_CAUSE_SERVER_DIED)


def test_without_a_scheduler_nothing_starts_until_it_is_back(cluster: Cluster, serve: Serve) -> None:
    """Runs end in a named state, Start answers UNAVAILABLE / NOT_READY, and all works when it is back."""
    mark = new_mark()
    server = serve()
    run = start(server.stub, inline(FOR_EVER, environment={RUN_MARK: mark}))
    kernel(server, run)
    cluster.kill_scheduler()
    workers(server, 0)
    with pytest.raises(grpc.RpcError) as refused:
        start(server.stub, inline("1"))
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    ended = finish(server.stub, run.run_id).run
    assert (ended.state, ended.failure.cause) == (pb.RUN_STATE_CRASHED, pb.FAILURE_CAUSE_WORKER_DIED)
    assert remains(mark) == {}
    cluster.restart()
    figure(f"all slots are back {workers(server, 3, 60):.1f} s after the scheduler")
    assert perform(server.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED
