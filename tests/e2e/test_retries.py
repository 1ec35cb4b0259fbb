"""Runs that are repeated: each end has the repetitions of its policy, and a chain that can be followed."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
from _pytest.mark import ParameterSet

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, artefact, duration, executed, finish, inline, reach, start
from tests.support.errors import refused
from tests.support.gate import Gate
from tests.support.notebooks import printed
from tests.support.retries import EVERY, chain, check_chains, found, retry
from tests.support.server import Server

pytestmark = pytest.mark.guarantee

FOREVER = "import threading; _ = threading.Event().wait()"
CRASH = "import os; os.kill(os.getpid(), 9)"
SUCCEEDED, FAILED, KILLED = pb.RUN_STATE_SUCCEEDED, pb.RUN_STATE_FAILED, pb.RUN_STATE_KILLED
CRASHED, TIMED_OUT = pb.RUN_STATE_CRASHED, pb.RUN_STATE_TIMED_OUT


def count(path: Path) -> str:
    """A cell that says which run executes it, and counts the attempts."""
    return f"""
import os
with open({str(path)!r}, "a+") as file:
    file.write(os.environ["NOTEBOOK_RUNNER_RUN_ID"] + chr(10))
    file.seek(0)
    attempt = len(file.readlines())
print("attempt", attempt, flush=True)
"""


class Ending(NamedTuple):
    """What a cell does, and how its run ends."""

    source: str
    state: pb.RunState.ValueType
    states: tuple[pb.RunState.ValueType, ...] = ()


REPEATED = {
    "signal": Ending(CRASH, CRASHED),
    "exit code": Ending("import os; os._exit(7)", CRASHED),
    # It waits until it is seen: the cell would otherwise end first where the server is slow.
    "out of memory": Ending(f"x = bytearray(2**30); {FOREVER}", CRASHED),
    "time-out": Ending(FOREVER, TIMED_OUT, (TIMED_OUT,)),
}
NOT_REPEATED = {
    "success": Ending("1", SUCCEEDED, EVERY),
    "exception": Ending("raise ValueError('no')", FAILED, EVERY),
    "sys.exit": Ending("import sys; sys.exit(3)", FAILED, EVERY),
    "another state": Ending(CRASH, CRASHED, (TIMED_OUT,)),
    "time-out by default": Ending(FOREVER, TIMED_OUT),
}


def limits(source: str) -> dict[str, object]:
    """What a request for such a cell needs besides."""
    if source == FOREVER:
        # The cell that counts must end in this time as well.
        return {"cell_timeout": duration(4)}
    return {"memory_limit_bytes": 512 * 2**20} if "bytearray" in source else {}


def cases(endings: dict[str, Ending]) -> list[ParameterSet]:
    """The names of endings; those that take seconds are left to the long tests."""
    slow = {name for name, ending in endings.items() if ending.source == FOREVER}
    return [pytest.param(name, marks=[pytest.mark.long] if name in slow else []) for name in endings]


@pytest.mark.parametrize("name", cases(REPEATED))
def test_a_run_is_repeated_until_it_succeeds(name: str, server: Server, tmp_path: Path) -> None:
    """Each attempt is a run of its own with outputs of its own, and is executed once."""
    ending, effects = REPEATED[name], tmp_path / "effects"
    request = inline(
        count(effects),
        f"if attempt <= 2:\n    {ending.source}",
        retry=retry(5, *ending.states),
        **limits(ending.source),
    )
    runs = chain(server.stub, start(server.stub, request).run_id)
    assert [run.state for run in runs] == [ending.state, ending.state, SUCCEEDED]
    assert [run.attempt for run in runs] == [1, 2, 3]
    assert effects.read_text().split() == [run.run_id for run in runs]
    assert check_chains({run.run_id: run for run in runs}) == []
    assert [printed(executed(server.stub, run.run_id), 0) for run in runs] == [
        f"attempt {number}\n" for number in (1, 2, 3)
    ]


@pytest.mark.parametrize("name", cases(NOT_REPEATED))
def test_other_ends_are_final(name: str, server: Server) -> None:
    """A success, an exception and a state that the policy does not have make no further run."""
    ending = NOT_REPEATED[name]
    request = inline(ending.source, retry=retry(5, *ending.states), **limits(ending.source))
    run = finish(server.stub, start(server.stub, request).run_id).run
    assert (run.state, run.retried_by, run.attempt) == (ending.state, "", 1)
    assert server.stub.List(pb.ListRequest(page_size=1), timeout=SECONDS).runs[0].run_id == run.run_id


def test_retries_are_used_up(server: Server) -> None:
    """After the last repetition the chain ends, and each run but the last names its successor."""
    runs = chain(server.stub, start(server.stub, inline(CRASH, retry=retry(2))).run_id)
    assert [(run.state, run.attempt, bool(run.retried_by)) for run in runs] == [
        (CRASHED, 1, True),
        (CRASHED, 2, True),
        (CRASHED, 3, False),
    ]


def test_a_repetition_has_what_its_predecessor_had(server: Server) -> None:
    """Notebook, parameters, files, variables and options are there again, and no request id."""
    gone = "import os, sys; print(os.environ['NBR_A'], open('data.txt').read(), name, os.listdir())"
    request = inline(
        gone,
        "open('left', 'w').write('x')",
        CRASH,
        retry=retry(1),
        request_id="again-and-again",
        environment={"NBR_A": "secret"},
        files=[pb.InputFile(path="data.txt", content=b"given")],
        labels={"team": "a"},
        parameters_json='{"name": 1.0}',
        name="nightly",
        priority=7,
        retention=duration(5000),
        memory_limit_bytes=2**31,
    )
    first, second = chain(server.stub, start(server.stub, request).run_id)
    assert start(server.stub, request).run_id == first.run_id
    texts = [printed(executed(server.stub, run.run_id), 1) for run in (first, second)]
    assert texts[0] == texts[1] == "secret given 1.0 ['data.txt']\n"
    assert (first.request_id, second.request_id) == ("again-and-again", "")
    own = (
        "run_id",
        "request_id",
        "create_time",
        "start_time",
        "end_time",
        "attempt",
        "retry_of",
        "retried_by",
    )
    for run in (first, second):
        for field in (*own, "not_before", "peak_memory_bytes", "cpu_time"):
            run.ClearField(field)  # type: ignore[arg-type] # names of fields
    assert first == second
    assert first.retry == retry(1, CRASHED, pb.RUN_STATE_INTERRUPTED)


@pytest.mark.state_folder("it looks for the files of ended runs")
def test_nothing_secret_of_ended_attempts_is_left(server: Server) -> None:
    """Variables, files and URIs are removed from the folders of all attempts."""
    request = inline(
        CRASH,
        retry=retry(1),
        environment={"NBR_A": "secret"},
        files=[pb.InputFile(path="data.txt", content=b"given")],
    )
    for run in chain(server.stub, start(server.stub, request).run_id):
        left = {path.name for path in (server.state_dir / "runs" / run.run_id).iterdir()}
        assert left & {"environment", "output-uri", "input-files"} == set()


@pytest.mark.long
def test_a_repetition_waits_for_its_time(server: Server) -> None:
    """It is queued with the time of its earliest start; the backoff doubles, up to its limit."""
    policy = retry(3, backoff=duration(0.4), max_backoff=duration(0.6))
    runs = chain(server.stub, start(server.stub, inline(CRASH, retry=policy)).run_id)
    waits = []
    for before, after in pairwise(runs):
        waits.append((after.not_before.ToNanoseconds() - before.end_time.ToNanoseconds()) / 1e9)
        assert after.start_time.ToNanoseconds() >= after.not_before.ToNanoseconds()
    assert waits == pytest.approx([0.4, 0.6, 0.6])
    assert not runs[0].HasField("not_before")


def test_a_waiting_repetition_lets_others_pass_and_can_be_killed(make_server: Callable[..., Server]) -> None:
    """A full queue does not refuse it, and it leaves an idle worker to others; a kill ends the chain."""
    server = make_server("--queue", "0")
    request = inline(CRASH, retry=retry(1, backoff=duration(3600), max_backoff=duration(3600)))
    first = finish(server.stub, start(server.stub, request).run_id).run
    waiting = found(server.stub, first.retried_by)
    assert (waiting.state, waiting.queue_position) == (pb.RUN_STATE_QUEUED, 0)
    other = finish(server.stub, start(server.stub, inline("1")).run_id).run
    assert other.state == SUCCEEDED
    killed = server.stub.Kill(pb.KillRequest(run_id=waiting.run_id), timeout=SECONDS).run
    assert (killed.state, killed.retried_by) == (KILLED, "")


def test_a_killed_run_is_not_repeated(server: Server, gate: Gate) -> None:
    """Whatever the policy says."""
    run = start(server.stub, inline(gate.source, retry=retry(5, *EVERY)))
    reach(server.stub, run.run_id, "cell_started")
    killed = server.stub.Kill(pb.KillRequest(run_id=run.run_id), timeout=SECONDS).run
    assert (killed.state, killed.retried_by) == (KILLED, "")


def test_the_successor_is_there_when_it_is_named(server: Server) -> None:
    """Whoever reads the terminal event can follow the next run at once; its first event is QUEUED."""
    first = finish(server.stub, start(server.stub, inline(CRASH, retry=retry(1))).run_id)
    told = finish(server.stub, first.run.retried_by)
    queued = told.events[0].run_changed
    assert (queued.state, queued.retry_of, queued.attempt) == (pb.RUN_STATE_QUEUED, first.run.run_id, 2)
    assert queued.queue_position == 0
    assert artefact(server.stub, told.run.run_id) != b""


REFUSED = [
    (pb.RetryPolicy(), "retry.max_retries", "between 1 and 100 (got 0)"),
    (pb.RetryPolicy(max_retries=101), "retry.max_retries", "between 1 and 100 (got 101)"),
    (pb.RetryPolicy(max_retries=-1), "retry.max_retries", "got -1"),
    (retry(1, KILLED), "retry.states", "among TIMED_OUT, CRASHED, INTERRUPTED (got KILLED)"),
    (retry(1, CRASHED, FAILED), "retry.states", "got FAILED"),
    (retry(1, pb.RUN_STATE_RUNNING), "retry.states", "got RUNNING"),
    (retry(1, pb.RUN_STATE_UNSPECIFIED), "retry.states", "unknown state 0"),
    (retry(1, 99), "retry.states", "unknown state 99"),  # type: ignore[arg-type] # no state
    (retry(1, backoff=duration(-1)), "retry.backoff", "zero or more"),
    (retry(1, backoff=duration(400 * 86400)), "retry.backoff", "between 0 s and"),
    (retry(1, max_backoff=duration(-1)), "retry.max_backoff", "zero or more"),
]


@pytest.mark.parametrize(("policy", "field", "text"), REFUSED)
def test_a_bad_policy_is_refused(server: Server, policy: pb.RetryPolicy, field: str, text: str) -> None:
    """The error names the field and what is wrong with it."""
    refusal = refused(lambda: start(server.stub, inline("1", retry=policy)))
    assert refusal.kind == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert field in str(refusal)
    assert text in str(refusal)


def test_the_policy_is_part_of_the_request(server: Server) -> None:
    """A request id with another policy is refused; the defaults spelt out are the same policy."""
    request = inline("1", request_id="mine", retry=pb.RetryPolicy(max_retries=1))
    run_id = start(server.stub, request).run_id
    states = (pb.RUN_STATE_INTERRUPTED, CRASHED, CRASHED)
    request.retry.CopyFrom(retry(1, *states, backoff=duration(1), max_backoff=duration(300)))
    assert start(server.stub, request).run_id == run_id
    request.retry.max_retries = 2
    refusal = refused(lambda: start(server.stub, request))
    assert refusal.kind == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    request.ClearField("retry")
    refusal = refused(lambda: start(server.stub, request))
    assert refusal.kind == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
