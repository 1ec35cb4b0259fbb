"""A system clock that is set while runs go on: times stay in order, and durations are what passed."""

import sys
import time
from pathlib import Path

import pytest
from faults.odd_server import CLOCK
from support.calls import duration, finish, inline, perform, reach, start
from support.gate import Gate
from support.mortal import MortalServer

from notebook_runner.v1 import notebook_runner_pb2 as pb

PROGRAM = [sys.executable, str(Path(__file__).with_name("odd_server.py"))]
HOUR, DAY = 3600, 86400


@pytest.mark.parametrize("jump", [-HOUR, DAY], ids=["back by an hour", "forward by a day"])
def test_a_run_has_its_own_time(tmp_path: Path, gate: Gate, jump: int) -> None:
    """The times of a run stay in order, and between two of them lies the time that passed."""
    order = tmp_path / "clock"
    with MortalServer(tmp_path / "state", program=PROGRAM, environment={CLOCK: str(order)}) as server:
        before = perform(server.stub, inline("1")).run.run_id
        begin = time.monotonic()
        run = start(server.stub, inline(gate.source, "2"))
        reach(server.stub, run.run_id, "cell_started")
        _set(order, jump)
        gate.open()
        events = finish(server.stub, run.run_id).events
        passed = time.monotonic() - begin
        ended = events[-1].run_changed
        times = [event.time.ToNanoseconds() for event in events]
        assert times == sorted(times)
        known = [ended.create_time, ended.start_time, ended.end_time]
        assert [one.ToNanoseconds() for one in known] == sorted(one.ToNanoseconds() for one in known)
        assert 0 < ended.end_time.ToNanoseconds() - ended.start_time.ToNanoseconds() <= passed * 1e9
        taken = [
            event.cell_finished.duration.ToNanoseconds()
            for event in events
            if event.HasField("cell_finished")
        ]
        assert all(0 <= one <= passed * 1e9 for one in taken)
        after = perform(server.stub, inline("1")).run.run_id
        listed = [one.run_id for one in server.stub.List(pb.ListRequest(), timeout=60).runs]
        assert listed == [after, run.run_id, before]


def test_a_limit_is_of_the_time_that_passed(tmp_path: Path) -> None:
    """A clock that goes forward by a day times nothing out, and one that goes back does not save a run."""
    order = tmp_path / "clock"
    with MortalServer(tmp_path / "state", program=PROGRAM, environment={CLOCK: str(order)}) as server:
        request = inline("import time; time.sleep(1000)", cell_timeout=duration(1.5))
        run = start(server.stub, request)
        reach(server.stub, run.run_id, "cell_started")
        _set(order, -HOUR)
        ended = finish(server.stub, run.run_id).run
        assert ended.failure.cause == pb.FAILURE_CAUSE_CELL_TIMEOUT
        run = start(server.stub, inline("import time; time.sleep(0.3)", run_timeout=duration(600)))
        reach(server.stub, run.run_id, "cell_started")
        _set(order, DAY)
        assert finish(server.stub, run.run_id).run.state == pb.RUN_STATE_SUCCEEDED


def _set(order: Path, seconds: int) -> None:
    draft = order.with_suffix(".draft")
    draft.write_text(str(seconds))
    draft.rename(order)
