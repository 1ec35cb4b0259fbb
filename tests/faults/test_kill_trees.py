"""Kill of every kind of tree, at every moment of a run: when it has answered, nothing is left."""

import os
import random
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.faults.trees import HERE, HOLD, IGNORE, ORPHANS, SAY, SLEEP, TREES
from tests.support.calls import SECONDS, duration, executed, finish, inline, perform, reach, start, started
from tests.support.gate import Gate
from tests.support.killable import RUN_MARK, figure, new_mark, remains, worker_of, zombies
from tests.support.notebooks import printed
from tests.support.progress import TERMINAL
from tests.support.server import Server

SEED = int(os.environ.get("KILL_SEED", "0")) or secrets.randbits(32)
RACES = 12
# A grace period that no test waits for: a Kill that did would miss its deadline.
LONG_GRACE = 10 * SECONDS


def kill(server: Server, run_id: str, grace: float = 0) -> pb.KillResponse:
    """Kills a run."""
    request = pb.KillRequest(run_id=run_id, grace_period=duration(grace))
    return server.stub.Kill(request, timeout=SECONDS)


def killed(
    server: Server, gate: Gate, source: str, grace: float = 0
) -> tuple[pb.KillResponse, dict[int, str], float]:
    """Runs a cell until it says "here", kills it; the answer, what is left at that moment, and the time."""
    mark = new_mark()
    environment = {RUN_MARK: mark, "NBR_GATE": str(gate.path)}
    with started(server.stub, inline("print('done')", source, environment=environment)) as run:
        reach(server.stub, run.run_id, "cell_output", cell=1)
        gate.open()
        begin = time.monotonic()
        answer = kill(server, run.run_id, grace)
        seconds, left = time.monotonic() - begin, remains(mark)
    return answer, left, seconds


@pytest.mark.parametrize("name", TREES)
def test_kill_ends_every_tree(server: Server, gate: Gate, name: str) -> None:
    """The answer is KILLED, counts the processes, and comes when none of them is left."""
    source, processes = TREES[name]
    answer, left, seconds = killed(server, gate, source)
    figure(f"kill {name}: {1000 * seconds:.0f} ms, {answer.processes_ended} processes")
    assert left == {}
    assert answer.run.state == pb.RUN_STATE_KILLED
    assert answer.processes_ended >= processes
    node = executed(server.stub, answer.run.run_id)
    assert (printed(node, 0), printed(node, 1)) == ("done\n", "here\n")


def test_orphans_are_reaped_while_the_run_goes_on(server: Server, gate: Gate) -> None:
    """Five hundred short-lived orphans of a run that goes on do not stay in the table of processes."""
    source = f"{HERE}{ORPHANS}{gate.source}\n{ORPHANS}{SAY}{gate.source}"
    with started(server.stub, inline(source, environment={RUN_MARK: "1"})) as run:
        reach(server.stub, run.run_id, "cell_started")
        gate.open()
        reach(server.stub, run.run_id, "cell_output")
        worker, end = worker_of(server), time.monotonic() + SECONDS
        while dead := zombies(worker):
            assert time.monotonic() < end, f"{dead} of 1000 orphans are not reaped while the run goes on"
            threading.Event().wait(0.05)


@pytest.mark.parametrize("name", ["scrubbed environment", "main thread ended", "all together"])
def test_what_a_notebook_leaves_ends_with_it(server: Server, name: str) -> None:
    """A run whose cells have all succeeded is SUCCEEDED, and none of its processes is left."""
    source = TREES[name][0].removesuffix(SLEEP).removesuffix(HOLD)
    mark = new_mark()
    ended = perform(server.stub, inline(source, environment={RUN_MARK: mark}))
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED, ended.run
    assert remains(mark) == {}


@pytest.mark.parametrize("name", ["ignores signals", "all together"])
def test_grace_is_no_way_out(server: Server, gate: Gate, name: str) -> None:
    """A cell that does not heed the interrupt is ended with its whole tree when the grace is over."""
    answer, left, seconds = killed(server, gate, TREES[name][0], grace=0.5)
    figure(f"kill with 0.5 s of grace, {name}: {1000 * seconds:.0f} ms")
    assert left == {}
    assert answer.run.state == pb.RUN_STATE_KILLED
    assert seconds >= 0.5


def test_grace_ends_what_the_clean_up_leaves(server: Server, gate: Gate) -> None:
    """A cell that heeds the interrupt leaves children; they are gone when Kill answers."""
    source = HERE + "subprocess.Popen(['sleep', mark], env={}, start_new_session=True)\n"
    # An interrupt may come as soon as the text is there.
    source += f"try:\n    {SAY}    time.sleep(1000)\nfinally:\n    print('cleaned up', flush=True)\n"
    answer, left, _ = killed(server, gate, source, grace=LONG_GRACE)
    assert left == {}
    assert printed(executed(server.stub, answer.run.run_id), 1) == "here\ncleaned up\n"


def test_a_second_kill_without_grace_ends_the_first_ones_patience(server: Server) -> None:
    """While one Kill waits for its grace period, another without one ends the run at once."""
    with started(server.stub, inline(HERE + IGNORE + SAY + SLEEP, environment={RUN_MARK: "1"})) as run:
        reach(server.stub, run.run_id, "cell_output")
        with ThreadPoolExecutor(1) as pool:
            patient = pool.submit(kill, server, run.run_id, LONG_GRACE)
            reach_killing(server, run.run_id)
            hasty = kill(server, run.run_id)
            assert patient.result(SECONDS) == hasty
    assert hasty.run.state == pb.RUN_STATE_KILLED


def reach_killing(server: Server, run_id: str) -> None:
    """Waits until the run is being ended."""
    request = pb.ProgressRequest(run_id=run_id)
    stream = server.stub.Progress(request, timeout=SECONDS)
    next(event for event in stream if event.run_changed.state == pb.RUN_STATE_KILLING)
    stream.cancel()


def test_a_kill_of_a_queued_run_leaves_the_others(server: Server, gate: Gate) -> None:
    """The queued run is KILLED without a process, those before and behind it succeed."""
    with started(server.stub, inline(gate.source)) as first:
        reach(server.stub, first.run_id, "cell_started")
        waiting = [start(server.stub, inline("1")) for _ in range(3)]
        answer = kill(server, waiting[1].run_id)
        gate.open()
        ends = [finish(server.stub, run.run_id).run for run in (first, *waiting)]
    assert answer.processes_ended == 0
    succeeded, ended = pb.RUN_STATE_SUCCEEDED, pb.RUN_STATE_KILLED
    assert [run.state for run in ends] == [succeeded, succeeded, ended, succeeded]
    assert answer.run == ends[2]


def test_a_kill_while_the_kernel_starts_leaves_nothing(server: Server) -> None:
    """STARTING at many moments: one true state, no process."""
    moments = random.Random(SEED)  # noqa: S311 - no secret
    figure(f"KILL_SEED={SEED}")
    for _ in range(8):
        mark = new_mark()
        run = start(server.stub, inline("import time; time.sleep(1000)", environment={RUN_MARK: mark}))
        reach_starting(server, run.run_id)
        threading.Event().wait(moments.uniform(0, 0.4))
        answer = kill(server, run.run_id)
        assert (answer.run.state, remains(mark)) == (pb.RUN_STATE_KILLED, {})
        assert finish(server.stub, run.run_id).run == answer.run


def reach_starting(server: Server, run_id: str) -> None:
    """Waits until a worker has the run."""
    stream = server.stub.Progress(pb.ProgressRequest(run_id=run_id), timeout=SECONDS)
    next(event for event in stream if event.run_changed.state >= pb.RUN_STATE_STARTING)
    stream.cancel()


def test_a_kill_at_the_natural_end_has_one_true_answer(server: Server) -> None:
    """Whoever is first, run or Kill: every answer, Progress and List tell the same end."""
    moments = random.Random(SEED)  # noqa: S311 - no secret
    ends: list[int] = []
    for _ in range(RACES):
        mark = new_mark()
        run = start(server.stub, inline("1", environment={RUN_MARK: mark}))
        reach(server.stub, run.run_id, "cell_started")
        threading.Event().wait(moments.uniform(0, 0.06))
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda _, of=run: kill(server, of.run_id), range(2)))
        left, ended = remains(mark), finish(server.stub, run.run_id).run
        assert [answer.run for answer in answers] == [ended, ended]
        assert left == {}
        ends.append(ended.state)
    figure(f"KILL_SEED={SEED}: of {RACES}, {ends.count(pb.RUN_STATE_KILLED)} were killed in time")
    assert set(ends) <= {pb.RUN_STATE_KILLED, pb.RUN_STATE_SUCCEEDED}
    assert set(ends) <= TERMINAL
    assert perform(server.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED


def test_fifty_killers_of_a_whole_tree_are_told_the_same(
    make_server: Callable[..., Server], gate: Gate
) -> None:
    """All get the one end of the run."""
    server, mark = make_server(), new_mark()
    environment = {RUN_MARK: mark, "NBR_GATE": str(gate.path)}
    run = start(server.stub, inline(TREES["all together"][0], environment=environment))
    reach(server.stub, run.run_id, "cell_output")
    gate.open()
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: kill(server, run.run_id), range(50)))
        left = remains(mark)
    assert left == {}
    assert {answer.run.state for answer in answers} == {pb.RUN_STATE_KILLED}
    assert {answer.run.SerializeToString(deterministic=True) for answer in answers} == {
        finish(server.stub, run.run_id).run.SerializeToString(deterministic=True)
    }
