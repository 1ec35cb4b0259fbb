"""An owner with a thousand waiting runs does not delay the run of another."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, inline
from tests.support.gate import Gate
from tests.support.secure import bearer, new_token
from tests.support.server import Server

RUNS = 1000
# One commit serves several of them.
CALLERS = 16


@pytest.mark.parametrize("workers", [1, 2])
def test_a_thousand_runs_of_another_owner(tmp_path: Path, gate: Gate, workers: int) -> None:
    """One run a worker has to end before it starts: each of the others waits until the test lets it go on."""
    tokens = tmp_path / "tokens"
    many, one = bearer(new_token(tokens, "many")), bearer(new_token(tokens, "one"))
    options = ("--tokens-file", str(tokens), "--workers", str(workers), "--queue", "2000")
    with Server(tmp_path / "state", *options, "--drain-timeout", "0") as server:
        request = inline(gate.source)
        with ThreadPoolExecutor(CALLERS) as pool:
            calls = [
                pool.submit(server.stub.Start, request, metadata=many, timeout=SECONDS) for _ in range(RUNS)
            ]
        assert all(call.result().run.run_id for call in calls)
        for _ in range(3):
            run = server.stub.Start(inline("1"), metadata=one, timeout=SECONDS).run
            # As many as have a worker; those that follow them wait as well.
            gate.open(workers)
            progress = pb.ProgressRequest(run_id=run.run_id)
            ended = list(server.stub.Progress(progress, metadata=one, timeout=SECONDS))[-1].run_changed
            assert ended.state == pb.RUN_STATE_SUCCEEDED
            listed = server.stub.List(pb.ListRequest(page_size=1000), metadata=many, timeout=SECONDS).runs
            created, started = (at.ToNanoseconds() for at in (ended.create_time, ended.start_time))
            between = [other for other in listed if created < other.start_time.ToNanoseconds() < started]
            assert len(between) <= workers
