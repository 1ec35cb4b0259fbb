"""List when what it has to tell is large."""

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import inline, perform
from tests.support.server import Server

pytestmark = pytest.mark.long

# A traceback of a failure has 128 KiB at the most, and a client takes messages of 4 MiB.
RUNS = 36
LONG = "raise ValueError('x' * 200_000)"


def test_long_failures_are_listed_in_pages_that_clients_take(server: Server) -> None:
    """A page ends before its message is too large, and the pages together have every run once."""
    request = inline(LONG, labels={"about": "size"})
    made = [perform(server.stub, request).run.run_id for _ in range(RUNS)]
    wanted = pb.ListRequest(page_size=1000, labels={"about": "size"})
    listed: list[str] = []
    pages = 0
    while not pages or wanted.page_token:
        answer = server.stub.List(wanted, timeout=60)
        assert all(len(run.failure.traceback) > 100_000 for run in answer.runs)
        listed += [run.run_id for run in answer.runs]
        wanted.page_token = answer.next_page_token
        pages += 1
    assert listed == made[::-1]
    assert pages > 1
