"""List: newest first, in pages that hold still, filtered by state and label."""

from functools import partial
from typing import Any
from uuid import uuid4

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, inline, perform, reach, started
from tests.support.errors import refused
from tests.support.gate import Gate
from tests.support.server import Server

INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


@pytest.fixture(scope="module")
def label() -> str:
    """Marks the runs of this module."""
    return uuid4().hex


@pytest.fixture(scope="module")
def runs(server: Server, label: str) -> list[pb.Run]:
    """Seven runs, newest first; every third has failed."""
    sources = ["1 / 0" if number % 3 == 0 else "1" for number in range(7)]
    requests = [inline(s, labels={"suite": label, "n": str(n % 2)}) for n, s in enumerate(sources)]
    return [perform(server.stub, request).run for request in requests][::-1]


def ask(server: Server, **fields: Any) -> pb.ListResponse:
    """One page."""
    return server.stub.List(pb.ListRequest(**fields), timeout=SECONDS)


def test_newest_first(server: Server, label: str, runs: list[pb.Run]) -> None:
    """Runs come whole, and the newest first."""
    answer = ask(server, labels={"suite": label})
    assert list(answer.runs) == runs
    assert answer.next_page_token == ""
    times = [run.create_time.ToNanoseconds() for run in ask(server).runs]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_pages(server: Server, label: str, runs: list[pb.Run], size: int) -> None:
    """Pages of any size give every run once, in order."""
    found: list[pb.Run] = []
    token, more = "", True
    while more:
        answer = ask(server, page_size=size, page_token=token, labels={"suite": label})
        assert len(answer.runs) == min(size, len(runs) - len(found))
        found += answer.runs
        token, more = answer.next_page_token, bool(answer.next_page_token)
    assert found == runs


def test_pages_hold_still_while_runs_are_started(server: Server) -> None:
    """A run that is started between two pages shifts nothing."""
    label = uuid4().hex
    ids = [perform(server.stub, inline("1", labels={"held": label})).run.run_id for _ in range(3)][::-1]
    first = ask(server, page_size=2, labels={"held": label})
    perform(server.stub, inline("1", labels={"held": label}))
    second = ask(server, page_size=2, labels={"held": label}, page_token=first.next_page_token)
    assert [run.run_id for run in [*first.runs, *second.runs]] == ids


def test_filter_by_state(server: Server, label: str, runs: list[pb.Run], gate: Gate) -> None:
    """Only runs in one of the asked states are answered, ended or not."""
    suite = {"suite": label}
    failed = ask(server, labels=suite, states=[pb.RUN_STATE_FAILED]).runs
    either = ask(server, labels=suite, states=[pb.RUN_STATE_FAILED, pb.RUN_STATE_SUCCEEDED]).runs
    assert list(failed) == [run for run in runs if run.state == pb.RUN_STATE_FAILED]
    assert list(either) == runs
    with started(server.stub, inline(gate.source, labels={"now": label})) as run:
        reach(server.stub, run.run_id, "cell_started")
        running = ask(server, states=[pb.RUN_STATE_RUNNING]).runs
    assert [each.run_id for each in running] == [run.run_id]


def test_filter_by_all_labels(server: Server, label: str, runs: list[pb.Run]) -> None:
    """A run has to carry every label that is asked for, with its value."""
    even = ask(server, labels={"suite": label, "n": "0"}).runs
    assert list(even) == [run for run in runs if run.labels["n"] == "0"]
    assert list(ask(server, labels={"suite": label, "n": "5"}).runs) == []
    assert list(ask(server, labels={"suite": label, "other": ""}).runs) == []


def test_a_page_token_belongs_to_its_filter(server: Server, label: str, runs: list[pb.Run]) -> None:
    """A token is refused with another filter, and so is one that the server never gave."""
    answer = ask(server, page_size=len(runs) - 1, labels={"suite": label})
    other = refused(lambda: ask(server, page_token=answer.next_page_token))
    assert other.kind == INVALID
    for token in ("x", "AAAA", answer.next_page_token + "x", answer.next_page_token + "!", "☃" * 1000):
        refusal = refused(partial(ask, server, page_token=token, labels={"suite": label}))
        assert refusal.kind == INVALID
        assert refusal.fields == ["page_token"]
