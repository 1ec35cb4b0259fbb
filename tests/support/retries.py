"""Requests that are repeated, and the chains of runs that they make."""

from collections.abc import Iterator
from typing import Any

from google.protobuf.duration_pb2 import Duration

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc
from tests.support.calls import SECONDS, duration, finish
from tests.support.progress import TERMINAL

EVERY = (pb.RUN_STATE_TIMED_OUT, pb.RUN_STATE_CRASHED, pb.RUN_STATE_INTERRUPTED)
AT_ONCE: dict[str, Duration] = {"backoff": duration(0), "max_backoff": duration(0)}


def retry(max_retries: int, *states: pb.RunState.ValueType, **fields: Any) -> pb.RetryPolicy:
    """A policy; without other fields, the repetitions do not wait."""
    return pb.RetryPolicy(max_retries=max_retries, states=states, **(fields or AT_ONCE))


def found(stub: rpc.NotebookRunnerStub, run_id: str) -> pb.Run:
    """A run as it is now."""
    return stub.Get(pb.GetRequest(run_id=run_id), timeout=SECONDS).run


def chain(stub: rpc.NotebookRunnerStub, run_id: str) -> list[pb.Run]:
    """The runs of a chain from this one on, each followed to its end."""
    runs = [finish(stub, run_id).run]
    while runs[-1].retried_by:
        runs.append(finish(stub, runs[-1].retried_by).run)
    return runs


def check_chains(runs: dict[str, pb.Run]) -> list[str]:
    """What is wrong with the chains of these runs, which are all that their servers have."""
    return [f"{run.run_id} {fault}" for run in runs.values() for fault in _faults(run, runs)]


def _faults(run: pb.Run, runs: dict[str, pb.Run]) -> Iterator[str]:
    policy, before, after = run.retry, runs.get(run.retry_of), runs.get(run.retried_by)
    if run.retried_by and (after is None or after.retry_of != run.run_id):
        yield f"is repeated by {run.retried_by}, which does not say so"
    is_due = run.state in policy.states and run.attempt <= policy.max_retries
    if run.state in TERMINAL and is_due != bool(run.retried_by):
        state = pb.RunState.Name(run.state)
        yield f"is {state} at attempt {run.attempt}, and {run.retried_by or 'nothing'} repeats it"
    if run.attempt > 1 + policy.max_retries:
        yield f"is attempt {run.attempt} of a run with {policy.max_retries} retries"
    if before is not None:
        yield from _faults_of_pair(before, run)
    elif run.retry_of or run.attempt != 1:
        yield f"is attempt {run.attempt}, and repeats {run.retry_of!r}, which is not there"


def _faults_of_pair(before: pb.Run, run: pb.Run) -> Iterator[str]:
    if before.retried_by != run.run_id or run.attempt != before.attempt + 1:
        yield f"is attempt {run.attempt} after {before.run_id}, which does not say so"
    if before.state not in before.retry.states:
        yield f"repeats a run that is {pb.RunState.Name(before.state)}"
    if run.HasField("start_time") and before.end_time.ToNanoseconds() > run.start_time.ToNanoseconds():
        yield f"started before {before.run_id} ended"
    if run.owner != before.owner:
        yield f"belongs to {run.owner!r}, and its predecessor to {before.owner!r}"
