"""Who gets in when many callers start at once, and what a repeated request answers."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Barrier
from uuid import uuid4

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, finish, inline, perform, reach, start, started, struct
from tests.support.errors import Refusal, refusal_of, refused
from tests.support.gate import Gate
from tests.support.server import Server

BUSY = (grpc.StatusCode.RESOURCE_EXHAUSTED, "RUNNER_BUSY")
CALLERS = 20


def at_once(callers: int, call: Callable[[], pb.Run]) -> tuple[list[pb.Run], list[Refusal]]:
    """Lets all callers loose at the same moment; answers who got a run and who was refused."""
    barrier = Barrier(callers)

    def caller() -> pb.Run | Refusal:
        barrier.wait(SECONDS)
        try:
            return call()
        except grpc.RpcError as error:
            return refusal_of(error)

    with ThreadPoolExecutor(callers) as pool:
        answers = [future.result() for future in [pool.submit(caller) for _ in range(callers)]]
    runs = [answer for answer in answers if isinstance(answer, pb.Run)]
    return runs, [answer for answer in answers if isinstance(answer, Refusal)]


@pytest.mark.parametrize("queue", [0, 3])
def test_exactly_as_many_are_admitted_as_there_is_room_for(
    make_server: Callable[..., Server], gate: Gate, queue: int
) -> None:
    """One worker and its queue admit 1 + queue of twenty callers; the others learn who is in."""
    server = make_server("--queue", str(queue))
    runs, refusals = at_once(CALLERS, lambda: start(server.stub, inline(gate.source)))
    assert len({run.run_id for run in runs}) == 1 + queue
    assert len(refusals) == CALLERS - 1 - queue
    assert {refusal.kind for refusal in refusals} == {BUSY}
    assert {refusal.metadata["run_id"] for refusal in refusals} <= {run.run_id for run in runs}
    assert all(refusal.retry_seconds > 0 for refusal in refusals)
    gate.open(len(runs))
    states = [finish(server.stub, run.run_id).run.state for run in runs]
    assert states == [pb.RUN_STATE_SUCCEEDED] * len(runs)
    assert perform(server.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED


def test_queued_runs_start_in_order(server: Server, gate: Gate) -> None:
    """A waiting run tells how many are to start before it, and they start as they came."""
    requests = [inline(gate.source) for _ in range(3)]
    with started(server.stub, requests[0]) as first, ExitStack() as others:
        reach(server.stub, first.run_id, "cell_started")
        second, third = (others.enter_context(started(server.stub, request)) for request in requests[1:])
        assert [second.queue_position, third.queue_position] == [0, 1]
        assert {second.state, third.state} == {pb.RUN_STATE_QUEUED}
        gate.open(3)
        ends = [finish(server.stub, run.run_id).run for run in (first, second, third)]
    times = [moment.ToNanoseconds() for run in ends for moment in (run.start_time, run.end_time)]
    assert times == sorted(times)


def test_a_repeated_request_id_answers_the_same_run(server: Server) -> None:
    """The same id with the same payload starts nothing new, also when the run has ended."""
    request = inline("1", request_id=f"again-{uuid4().hex}", parameters=struct({"a": 1, "b": [1, 2]}))
    ended = perform(server.stub, request).run
    again = start(server.stub, request)
    assert (again.run_id, again.request_id) == (ended.run_id, request.request_id)
    assert again.state == pb.RUN_STATE_SUCCEEDED


@pytest.mark.parametrize("other", ["notebook", "parameters", "labels", "allow_errors"])
def test_a_request_id_with_another_payload_is_refused(server: Server, other: str) -> None:
    """The same id with anything else in the request is a mistake of the caller."""
    request_id = f"other-{uuid4().hex}"
    perform(server.stub, inline("1", request_id=request_id))
    changed = {
        "notebook": inline("2"),
        "parameters": inline("1", parameters=struct({"a": 1})),
        "labels": inline("1", labels={"a": "b"}),
        "allow_errors": inline("1", allow_errors=True),
    }[other]
    changed.request_id = request_id
    refusal = refused(lambda: start(server.stub, changed))
    assert refusal.kind == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


def test_a_hundred_callers_with_one_request_id_get_one_run(server: Server) -> None:
    """However many repeat a request at once, one run is started and all are told its id."""
    mark = uuid4().hex
    request = inline("1", request_id=f"hundred-{mark}", labels={"mark": mark})
    runs, refusals = at_once(100, lambda: start(server.stub, request))
    assert (len(runs), refusals) == (100, [])
    assert len({run.run_id for run in runs}) == 1
    assert finish(server.stub, runs[0].run_id).run.state == pb.RUN_STATE_SUCCEEDED
    found = server.stub.List(pb.ListRequest(labels={"mark": mark}), timeout=SECONDS).runs
    assert [run.run_id for run in found] == [runs[0].run_id]


def test_a_repeated_request_is_answered_while_the_server_is_full(
    make_server: Callable[..., Server], gate: Gate
) -> None:
    """A caller that repeats its own Start is answered its run, and not that the runner is busy."""
    server = make_server()
    request = inline(gate.source, request_id="mine")
    with started(server.stub, request) as run:
        assert start(server.stub, request).run_id == run.run_id
        assert refused(lambda: start(server.stub, inline("1"))).kind == BUSY
