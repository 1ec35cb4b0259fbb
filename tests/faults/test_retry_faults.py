"""Servers that die, stop or have no space while a run ends that is to be repeated."""

import signal
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.faults.crashing_server import VARIABLE
from tests.faults.test_storage import full_disk, told_to_wait
from tests.support.calls import SECONDS, duration, executed, finish, follow, inline, listed, reach, start
from tests.support.gate import Gate
from tests.support.killable import KillableServer
from tests.support.notebooks import printed
from tests.support.retries import EVERY, chain, check_chains, found, retry
from tests.support.server import Server

PROGRAM = [sys.executable, str(Path(__file__).with_name("crashing_server.py"))]
LONG = {"backoff": duration(3600), "max_backoff": duration(3600)}
INPUTS = {"environment", "output-uri", "input-files"}
# Of a run whose repetitions go in steps: the test lets each of their cells go on when it has seen it begin.
CELLS = 5
# How often the server comes to each point after the gate is opened, at least: with the end of the first run,
# with the start of the second one, with the start of each of its cells, and with its end.
STEPS = {
    "before-commit": 8,
    "after-commit": 8,
    "folder-begun": 1,
    "folder-written": 1,
    "last-write": 1,
    "inputs-left": 1,
}


def crashing(effects: Path, gate: Gate, steps: Gate | None = None) -> pb.StartRequest:
    """A run that crashes once the gate is open, and whose repetitions succeed if they have all they need.

    Each cell of a repetition waits at the gate `steps`, if there is one.
    """
    step = f"\nif attempt > 1:\n    {steps.source}" if steps else ""
    return inline(
        f"""
import os
with open({str(effects)!r}, "a+") as file:
    file.write(os.environ["NOTEBOOK_RUNNER_RUN_ID"] + chr(10))
    file.seek(0)
    attempt = len(file.readlines()){step}
print(os.environ["NBR_SECRET"], open("data.txt").read(), flush=True)
""",
        f"if attempt == 1:\n    {gate.source}\n    os.kill(os.getpid(), 9){step}",
        *[step] * (CELLS - 2 if steps else 0),
        environment={"NBR_SECRET": "secret"},
        files=[pb.InputFile(path="data.txt", content=b"given")],
        retry=retry(3, pb.RUN_STATE_CRASHED, pb.RUN_STATE_INTERRUPTED),
    )


def step_through(server: Server, first: str, steps: Gate) -> None:
    """Follows a chain to its end, and lets each cell of the repetitions go on when it has begun."""
    run_id = first
    while run_id:
        successor = ""
        with closing(follow(server.stub, run_id)) as events:
            for event in events:
                if event.HasField("cell_started") and run_id != first:
                    steps.open()
                successor = event.run_changed.retried_by
        run_id = successor


def check(server: Server, effects: Path, first: str) -> list[pb.Run]:
    """Follows a chain to its end, and checks it, the folders and that nothing was lost or run twice."""
    runs = chain(server.stub, first)
    known = {run.run_id: run for page in listed(server.stub) for run in page.runs}
    assert set(known) == {run.run_id for run in runs}
    assert check_chains(known) == []
    assert runs[-1].state == pb.RUN_STATE_SUCCEEDED
    assert printed(executed(server.stub, runs[-1].run_id), 0) == "secret given\n"
    executions = effects.read_text().split()
    assert len(executions) == len(set(executions))
    assert set(executions) <= set(known)
    folders = list((server.state_dir / "runs").iterdir())
    # A run that has ended is in the database, if there is one.
    assert {path.name for path in folders} == (set(known) if Server.databases is None else set())
    for folder in folders:
        assert INPUTS & {path.name for path in folder.iterdir()} == set()
    # No start took what was left for damage.
    assert list(server.state_dir.glob("damaged-*")) == []
    assert server.said("run_damaged") == server.said("damaged_file_moved") == []
    return runs


@pytest.mark.state_folder("it dies at steps of SQLite and of a state folder")
@pytest.mark.parametrize(
    ("point", "hits"), [(point, hits) for point, most in STEPS.items() for hits in range(1, most + 1)]
)
def test_a_server_that_dies_at_any_step_of_the_end(tmp_path: Path, gate: Gate, point: str, hits: int) -> None:
    """Run and repetition end up both or neither in the history, and the chain goes on with all inputs."""
    effects, order, state = tmp_path / "effects", tmp_path / "order", tmp_path / "state"
    environment, steps = {VARIABLE: str(order)}, Gate(tmp_path, "steps")
    with closing(steps), KillableServer(state, program=PROGRAM, environment=environment) as server:
        first = start(server.stub, crashing(effects, gate, steps)).run_id
        reach(server.stub, first, "cell_started", cell=1)
        draft = tmp_path / "draft"
        draft.write_text(f"{point}:{hits}")
        draft.rename(order)
        gate.open()
        try:
            step_through(server, first, steps)
        except grpc.RpcError:
            server.buried()
            has_died = True
        else:
            has_died = False
        order.unlink()
        steps.open(3 * CELLS)
        with KillableServer(state) as again:
            runs = check(again, effects, first)
            assert len(runs) <= 3
            assert has_died


def test_runs_that_a_stop_interrupts_are_repeated_after_the_next_start(tmp_path: Path, gate: Gate) -> None:
    """The repetition is queued by the server that stops, and executed by the next one."""
    effects, state = tmp_path / "effects", tmp_path / "state"
    with KillableServer(state, "--drain-timeout", "0") as server:
        first = start(server.stub, crashing(effects, gate)).run_id
        reach(server.stub, first, "cell_started", cell=1)
        server.process.send_signal(signal.SIGTERM)
        ended = None if server.is_on_cluster else finish(server.stub, first).run
        assert server.process.wait(60) == 0
    if ended is None:
        # The run outlives its server on a cluster.
        gate.open()
    with KillableServer(state) as again:
        runs = check(again, effects, first)
        assert len(runs) == 2
        if ended is not None:
            assert runs[0] == ended
            assert ended.state == pb.RUN_STATE_INTERRUPTED
            assert runs[1].create_time == ended.end_time


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_rest_of_a_backoff_counts_after_a_restart(tmp_path: Path, number: signal.Signals) -> None:
    """A repetition that waits is queued again with the same time, and does not start before it."""
    state = tmp_path / "state"
    crash = inline("import os; os.kill(os.getpid(), 9)", retry=retry(1, **LONG))
    with KillableServer(state, "--queue", "1") as server:
        first = finish(server.stub, start(server.stub, crash).run_id).run
        waiting = found(server.stub, first.retried_by)
        server.process.send_signal(number)
        server.process.wait(60)
    with KillableServer(state, "--queue", "1") as again:
        assert found(again.stub, waiting.run_id) == waiting
        assert waiting.not_before.ToSeconds() - first.end_time.ToSeconds() == 3600
        # Others do not wait for it.
        other = start(again.stub, inline("1"))
        assert finish(again.stub, other.run_id).run.state == pb.RUN_STATE_SUCCEEDED
        assert found(again.stub, waiting.run_id).state == pb.RUN_STATE_QUEUED


@pytest.mark.state_folder("it fills the disk of a state folder")
def test_an_end_that_waits_for_space_has_its_repetition(
    make_server: Callable[..., Server], tmp_path: Path, gate: Gate
) -> None:
    """Neither is recorded while the disk is full, and both once it has space."""
    server = make_server("--heartbeat-interval", "0.1")
    effects = tmp_path / "effects"
    first = start(server.stub, crashing(effects, gate)).run_id
    last = reach(server.stub, first, "cell_started", cell=1).sequence
    with full_disk(server):
        gate.open()
        told_to_wait(server, first, last)
        assert [run.run_id for page in listed(server.stub) for run in page.runs] == [first]
    assert len(check(server, effects, first)) == 2


@pytest.mark.state_folder("it fills the disk of a state folder")
def test_a_repetition_that_cannot_be_written_does_not_keep_the_run_from_its_end(
    make_server: Callable[..., Server], gate: Gate
) -> None:
    """The run ends without a successor, and the log says so; the next run works."""
    server = make_server()
    request = inline(gate.source, "os.kill(os.getpid(), 9)", retry=retry(1))
    run_id = start(server.stub, request).run_id
    reach(server.stub, run_id, "cell_started")
    (server.state_dir / "runs" / run_id / "segments").unlink()
    gate.open()
    run = finish(server.stub, run_id).run
    assert (run.state, run.retried_by) == (pb.RUN_STATE_CRASHED, "")
    server.logged("run_not_retried", run_id)
    assert [one.run_id for page in listed(server.stub) for one in page.runs] == [run_id]
    assert finish(server.stub, start(server.stub, inline("1")).run_id).run.state == pb.RUN_STATE_SUCCEEDED


def test_a_killed_run_is_not_repeated_by_the_next_server(tmp_path: Path, gate: Gate) -> None:
    """A kill that the server had recorded when it died still ends the chain."""
    state = tmp_path / "state"
    stubborn = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    with KillableServer(state) as server:
        run = start(server.stub, inline(stubborn, gate.source, retry=retry(5, *EVERY)))
        reach(server.stub, run.run_id, "cell_started", cell=1)
        kill = pb.KillRequest(run_id=run.run_id, grace_period=duration(600), no_wait=True)
        server.stub.Kill(kill, timeout=SECONDS)
        server.die()
    gate.open()
    with KillableServer(state) as again:
        ended = finish(again.stub, run.run_id).run
        assert ended.retried_by == ""
        assert ended.state in {pb.RUN_STATE_INTERRUPTED, pb.RUN_STATE_KILLED}
