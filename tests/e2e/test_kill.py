"""Kill: at any moment, with and without grace, as often as one likes, and nothing stays behind."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any
from uuid import uuid4

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, duration, executed, finish, inline, perform, reach, start, started
from tests.support.gate import Gate
from tests.support.notebooks import printed
from tests.support.processes import is_alive, marked
from tests.support.server import Server

pytestmark = pytest.mark.guarantee

# A child, one in its own session, and one whose parent is gone.
CHILDREN_CELL = """
import os, subprocess
subprocess.Popen(["sleep", "100000"])
subprocess.Popen(["sleep", "100000"], start_new_session=True)
subprocess.run(["sh", "-c", "setsid sleep 100000 &"], check=True)
print(os.getpid(), flush=True)
"""
STUBBORN_CELL = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("here", flush=True)
{wait}
"""


def kill(server: Server, run_id: str, **fields: Any) -> pb.KillResponse:
    """Kills a run."""
    return server.stub.Kill(pb.KillRequest(run_id=run_id, **fields), timeout=SECONDS)


def test_kill_ends_a_run_and_every_process_of_it(server: Server, gate: Gate) -> None:
    """When Kill has answered, the kernel and all it ever started are gone."""
    mark = uuid4().hex
    request = inline(CHILDREN_CELL, gate.source, environment={"NBR_RUN_MARK": mark})
    with started(server.stub, request) as run:
        reach(server.stub, run.run_id, "cell_started", cell=1)
        kernel = int(printed(executed(server.stub, run.run_id), 0))
        assert is_alive(kernel)
        assert len(marked(mark)) >= 2
        answer = kill(server, run.run_id)
        left = marked(mark)
    assert left == {}
    assert not is_alive(kernel)
    assert answer.processes_ended >= 4
    assert answer.run.state == pb.RUN_STATE_KILLED
    assert answer.run.failure.cause == pb.FAILURE_CAUSE_KILL_REQUESTED
    assert finish(server.stub, run.run_id).run == answer.run


def test_no_process_outlives_a_run_that_ends_by_itself(server: Server) -> None:
    """A notebook's children are ended with it, also when it succeeds."""
    mark = uuid4().hex
    run = perform(server.stub, inline(CHILDREN_CELL, environment={"NBR_RUN_MARK": mark})).run
    assert run.state == pb.RUN_STATE_SUCCEEDED
    assert marked(mark) == {}


def test_kill_with_grace_lets_finally_run(server: Server, gate: Gate) -> None:
    """With a grace period the cell is interrupted, and what its clean-up prints is kept."""
    # A line in one piece, which the interrupt cannot cut.
    here = "import sys\n    sys.stdout.write('here\\n')\n    sys.stdout.flush()"
    source = f"try:\n    {here}\n    {gate.source}\nfinally:\n    print('cleaned up')"
    with started(server.stub, inline(source, "'never'")) as run:
        reach(server.stub, run.run_id, "cell_output")
        answer = kill(server, run.run_id, grace_period=duration(30))
        node = executed(server.stub, run.run_id)
    assert answer.run.state == pb.RUN_STATE_KILLED
    assert printed(node, 0) == "here\ncleaned up\n"
    assert node.cells[1].outputs == []


def test_grace_comes_to_an_end(server: Server, gate: Gate) -> None:
    """A cell that takes no notice of the interrupt is ended when the grace period is over."""
    with started(server.stub, inline(STUBBORN_CELL.format(wait=gate.source))) as run:
        reach(server.stub, run.run_id, "cell_output")
        answer = kill(server, run.run_id, grace_period=duration(1))
    seconds = (answer.run.end_time.ToNanoseconds() - answer.run.start_time.ToNanoseconds()) / 1e9
    assert answer.run.state == pb.RUN_STATE_KILLED
    assert answer.processes_ended >= 1
    assert seconds >= 1


def test_a_killed_run_keeps_its_finished_cells(server: Server, gate: Gate) -> None:
    """The notebook of a killed run holds what was finished, and what the cell printed until then."""
    # A line in one piece: the run may be killed as soon as one has come.
    source = f"import sys\nsys.stdout.write('begun\\n')\nsys.stdout.flush()\n{gate.source}"
    with started(server.stub, inline("print('done')", source)) as run:
        reach(server.stub, run.run_id, "cell_output", cell=1)
        kill(server, run.run_id)
        node = executed(server.stub, run.run_id)
        events = finish(server.stub, run.run_id).events
    outcomes = [event.cell_finished.outcome for event in events if event.HasField("cell_finished")]
    assert [printed(node, 0), printed(node, 1)] == ["done\n", "begun\n"]
    assert outcomes == [pb.CELL_OUTCOME_SUCCEEDED, pb.CELL_OUTCOME_STOPPED]


def test_a_queued_run_can_be_killed(server: Server, gate: Gate) -> None:
    """A run that waits ends without having begun, and the one that runs is not touched."""
    with started(server.stub, inline(gate.source)) as running:
        reach(server.stub, running.run_id, "cell_started")
        with started(server.stub, inline("1")) as waiting:
            answer = kill(server, waiting.run_id)
            ended = finish(server.stub, waiting.run_id)
        gate.open()
        assert finish(server.stub, running.run_id).run.state == pb.RUN_STATE_SUCCEEDED
    assert (answer.run.state, answer.processes_ended) == (pb.RUN_STATE_KILLED, 0)
    assert not answer.run.HasField("start_time")
    assert ended.run == answer.run


@pytest.mark.parametrize(("source", "state"), [("1", pb.RUN_STATE_SUCCEEDED), ("1 / 0", pb.RUN_STATE_FAILED)])
def test_a_run_that_has_ended_stays_as_it_is(
    server: Server, source: str, state: pb.RunState.ValueType
) -> None:
    """Killing what has ended answers OK with the state it has, every time."""
    run = perform(server.stub, inline(source)).run
    assert run.state == state
    for grace in (duration(0), duration(5)):
        answer = kill(server, run.run_id, grace_period=grace)
        assert (answer.run, answer.processes_ended) == (run, 0)


def test_fifty_kills_at_once_are_one(server: Server, gate: Gate) -> None:
    """All callers get the same end of the run, and there is one terminal event."""
    with started(server.stub, inline(gate.source)) as run:
        reach(server.stub, run.run_id, "cell_started")
        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(lambda _: kill(server, run.run_id), range(50)))
    ended = finish(server.stub, run.run_id)
    assert {answer.run.state for answer in answers} == {pb.RUN_STATE_KILLED}
    assert [answer for answer in answers if answer.run != ended.run] == []


def test_a_run_can_be_killed_as_soon_as_it_is_admitted(server: Server, gate: Gate) -> None:
    """A Kill right after Start ends the run wherever it is on its way, again and again."""
    for _ in range(5):
        run = start(server.stub, inline(gate.source))
        assert kill(server, run.run_id).run.state == pb.RUN_STATE_KILLED
    assert perform(server.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED


@pytest.mark.parametrize("moment", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
def test_grace_ends_at_every_moment_of_a_start(server: Server, gate: Gate, moment: float) -> None:
    """Whatever a starting run is at, its grace period ends, also where nothing heeds the interrupt."""
    with started(server.stub, inline(gate.source)) as run:
        # Nothing is waited for here: the moments only have to lie in different stages of a start.
        Event().wait(moment)
        request = pb.KillRequest(run_id=run.run_id, grace_period=duration(1))
        # Less than the time after which a kernel that does not answer is given up.
        answer = server.stub.Kill(request, timeout=SECONDS / 2)
    assert answer.run.state == pb.RUN_STATE_KILLED


@pytest.mark.process_pool("a run on a cluster goes on without its server: tests/cluster")
def test_a_stopping_server_ends_its_run(make_server: Callable[..., Server], gate: Gate) -> None:
    """A server that is told to stop while a run goes on exits with 0 and leaves no process."""
    server = make_server("--drain-timeout", "0")
    run = start(server.stub, inline(CHILDREN_CELL, gate.source))
    reach(server.stub, run.run_id, "cell_started", cell=1)
    server.stop()
    assert not is_alive(server.process.pid)


def test_kill_without_an_id_ends_the_run_that_is_executed(server: Server, gate: Gate) -> None:
    """Newer runs that wait are left alone; the newest of all is meant only when nothing is left to end."""
    with started(server.stub, inline(gate.source)) as first:
        reach(server.stub, first.run_id, "cell_started")
        with started(server.stub, inline(gate.source)) as second, started(server.stub, inline("1")) as third:
            answers = [kill(server, "")]
            reach(server.stub, second.run_id, "cell_started")
            answers.append(kill(server, ""))
            last = finish(server.stub, third.run_id).run
            ended = kill(server, "")
    assert [(one.run.run_id, one.already_ended) for one in answers] == [
        (first.run_id, False),
        (second.run_id, False),
    ]
    assert {one.run.state for one in answers} == {pb.RUN_STATE_KILLED}
    assert (ended.run, ended.already_ended) == (last, True)


def test_kill_says_whether_the_run_had_ended(server: Server, gate: Gate) -> None:
    """The first Kill ends the run, each later one changes nothing and says so."""
    with started(server.stub, inline(gate.source)) as run:
        reach(server.stub, run.run_id, "cell_started")
        assert [kill(server, run.run_id).already_ended for _ in range(3)] == [False, True, True]


def test_a_kill_that_does_not_wait(server: Server, gate: Gate) -> None:
    """It answers while the cell ignores the interrupt; a run that waits, or has ended, needs no waiting."""
    request = inline(STUBBORN_CELL.format(wait=gate.source))
    with started(server.stub, request) as run, started(server.stub, inline("1")) as waiting:
        reach(server.stub, run.run_id, "cell_output")
        answer = kill(server, run.run_id, grace_period=duration(500), no_wait=True)
        assert (answer.run.state, answer.already_ended) == (pb.RUN_STATE_KILLING, False)
        assert answer.processes_ended == 0
        answer = kill(server, waiting.run_id, grace_period=duration(500), no_wait=True)
        assert (answer.run.state, answer.already_ended) == (pb.RUN_STATE_KILLED, False)
        answer = kill(server, waiting.run_id, no_wait=True)
        assert (answer.run.state, answer.already_ended) == (pb.RUN_STATE_KILLED, True)
        gate.open()
        assert finish(server.stub, run.run_id).run.state == pb.RUN_STATE_KILLED
