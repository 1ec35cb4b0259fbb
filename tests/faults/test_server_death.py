"""SIGKILL of the server: nothing outlives it, and nothing that it had acknowledged is lost."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import artefact, executed, finish, follow, history, inline, start, texts
from tests.support.killable import RUN_MARK, KillableServer, figure, gone, new_mark, remains
from tests.support.notebooks import printed
from tests.support.server import PROGRAM

pytestmark = pytest.mark.process_pool("on a cluster runs outlive their server: tests/cluster has its deaths")

PRINTING = """
import itertools, os, subprocess, time
subprocess.Popen(["sleep", os.environ["NBR_RUN_MARK"]], env={}, start_new_session=True)
subprocess.run(["sh", "-c", "setsid sleep $NBR_RUN_MARK &"], check=True)
for number in itertools.count():
    print(number, flush=True)
    time.sleep(0.01)
"""


class Life(NamedTuple):
    """What a caller knew when the server died, and the server that came after it."""

    server: KillableServer
    requests: list[pb.StartRequest]
    runs: list[pb.Run]
    seen: list[pb.ProgressResponse]
    listed: list[pb.Run]


def _until_it_prints(server: KillableServer, run_id: str) -> list[pb.ProgressResponse]:
    """The events of the run up to its tenth output."""
    with closing(follow(server.stub, run_id)) as events:
        seen: list[pb.ProgressResponse] = []
        while sum(event.HasField("cell_output") for event in seen) < 10:
            seen += islice(events, 1)
    return seen


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    """A server that died while one run printed and one was queued, started again."""
    state, mark = tmp_path_factory.mktemp("state"), new_mark()
    marked = {RUN_MARK: mark}
    requests = [
        inline("print('done')", PRINTING, "print('never')", request_id="printing", environment=marked),
        inline("print('later')", request_id="queued"),
    ]
    with KillableServer(state, "--queue", "3") as first:
        runs = [start(first.stub, request) for request in requests]
        seen = _until_it_prints(first, runs[0].run_id)
        # Two children; a kernel that was kept warm has the mark of no run.
        assert len(remains(mark)) >= 2
        seconds = first.die()
        figure(f"no process left {max(seconds, gone(mark)):.3f} s after the death of the server")
    begin = time.monotonic()
    with KillableServer(state, "--queue", "3") as second:
        figure(f"ready {time.monotonic() - begin:.3f} s after its start")
        listed = list(second.stub.List(pb.ListRequest(), timeout=60).runs)
        yield Life(second, requests, runs, seen, listed)


def test_the_run_that_went_on_is_interrupted_before_anyone_can_ask(life: Life) -> None:
    """The first answer of the new server has it INTERRUPTED, for the death of the server."""
    run = next(one for one in life.listed if one.run_id == life.runs[0].run_id)
    assert run.state == pb.RUN_STATE_INTERRUPTED
    assert run.failure.cause == pb.FAILURE_CAUSE_SERVER_DIED
    assert (run.failure.cell_index, run.cells_completed) == (1, 1)
    assert run.failure.message in artefact(life.server.stub, run.run_id, format="error").decode()


def test_a_reader_goes_on_after_the_last_event_it_had(life: Life) -> None:
    """What follows the last sequence has no gap and no repeat, and the whole is what was seen and more."""
    run_id, last = life.runs[0].run_id, life.seen[-1].sequence
    rest = list(follow(life.server.stub, run_id, after_sequence=last))
    whole = finish(life.server.stub, run_id).events
    assert whole == life.seen + rest
    assert [event.sequence for event in whole] == list(range(1, len(whole) + 1))


def test_what_the_interrupted_run_had_is_in_its_notebook(life: Life) -> None:
    """The finished cell, and all that the current one was told to have printed."""
    node = executed(life.server.stub, life.runs[0].run_id)
    events = finish(life.server.stub, life.runs[0].run_id).events
    assert printed(node, 0) == "done\n"
    assert printed(node, 0) + printed(node, 1) == texts(events)
    assert node.cells[2].outputs == []


def test_the_queued_run_goes_on_by_itself(life: Life) -> None:
    """A run that was queued when the server died is executed by the next one."""
    ended = finish(life.server.stub, life.runs[1].run_id)
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED
    assert texts(ended.events) == "later\n"


def test_a_request_id_answers_the_same_run_after_the_death(life: Life) -> None:
    """Starting again what was acknowledged starts nothing."""
    again = [start(life.server.stub, request).run_id for request in life.requests]
    assert again == [run.run_id for run in life.runs]
    assert sorted(history(life.server.stub)) == sorted(again)


def test_two_servers_never_share_a_state_folder(life: Life) -> None:
    """A second server on the same folder refuses to start, and says why."""
    command = [str(PROGRAM), "--listen", "127.0.0.1:0", "--state-dir", str(life.server.state_dir)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 1
    assert "another server uses" in second.stderr


def test_a_server_that_dies_while_a_run_starts_leaves_nothing(tmp_path: Path) -> None:
    """Death in the middle of the start of a kernel: no process is left, and the run is told of."""
    mark = new_mark()
    with KillableServer(tmp_path / "state") as first:
        run = start(first.stub, inline("print('never')", environment={RUN_MARK: mark}))
        first.die()
        gone(mark)
    with KillableServer(tmp_path / "state") as second:
        ended = finish(second.stub, run.run_id).run
    assert ended.state in {pb.RUN_STATE_INTERRUPTED, pb.RUN_STATE_SUCCEEDED}
