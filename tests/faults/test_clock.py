"""A system clock that is set while runs go on: times stay in order, and durations are what passed."""

import time
from contextlib import closing
from pathlib import Path
from typing import Literal, NamedTuple

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.faults.odd_clock import DAY, HOUR, PROGRAM, OddClock
from tests.support.calls import duration, finish, follow, history, inline, perform, reach, start, texts
from tests.support.gate import Gate
from tests.support.killable import KillableServer, figure
from tests.support.progress import out_of_order

# Seconds; the limit of a run counts the start of its kernel, which takes some of them on a busy machine.
LIMITS = {"cell_timeout": 1.5, "run_timeout": 8.0, "output_timeout": 1.5}
QUIET = 0.5
# When the clock is set; each is well before the limit, unless the machine is very busy.
WHEN: dict[str, Literal["cell_started", "cell_output"]] = {
    "cell_timeout": "cell_output",
    "run_timeout": "cell_started",
    "output_timeout": "cell_output",
}
jumps = pytest.mark.parametrize("jump", [-HOUR, DAY], ids=["back by an hour", "forward by a day"])


class Seen(NamedTuple):
    """An event, and when the test saw it by a clock that nobody sets."""

    event: pb.ProgressResponse
    moment: float


def _server(folder: Path, clock: OddClock, *options: str) -> KillableServer:
    return KillableServer(folder / "state", *options, program=PROGRAM, environment=clock.environment)


def _seconds(value: Timestamp | Duration) -> float:
    return value.ToNanoseconds() / 1e9


def _in_order(events: list[pb.ProgressResponse]) -> pb.Run:
    """The run of these events, when none of its times goes backwards."""
    assert out_of_order(events) == ""
    return events[-1].run_changed


@jumps
def test_a_run_has_its_own_time(tmp_path: Path, gate: Gate, jump: int) -> None:
    """Times of a run and of its cells are what passed, though the clock is set while a cell goes on."""
    clock = OddClock(tmp_path)
    with _server(tmp_path, clock) as server:
        begin = time.monotonic()
        seen: list[Seen] = []
        run_id = start(server.stub, inline("0", gate.source, "2")).run_id
        jumped = 0.0
        with closing(follow(server.stub, run_id)) as events:
            for event in events:
                seen.append(Seen(event, time.monotonic()))
                if event.cell_started.cell_index == 1 and not jumped:
                    clock.set(jump)
                    jumped = time.monotonic()
                    gate.open()
        run = _in_order([one.event for one in seen])
        passed = seen[-1].moment - begin
        began = {one.event.cell_started.cell_index: one for one in seen if one.event.HasField("cell_started")}
        taken = {
            one.event.cell_finished.cell_index: one for one in seen if one.event.HasField("cell_finished")
        }
        assert sorted(began) == sorted(taken) == [0, 1, 2]
        # The cell at the gate went on at least from when it was seen to have begun to the jump.
        waited = jumped - began[1].moment
        assert _seconds(taken[1].event.cell_finished.duration) >= waited
        assert waited <= _seconds(run.end_time) - _seconds(run.start_time) <= passed
        for one in taken.values():
            assert 0 < _seconds(one.event.cell_finished.duration) <= one.moment - begin


@jumps
def test_the_newest_run_comes_first_in_the_list(tmp_path: Path, gate: Gate, jump: int) -> None:
    """List goes by the order of the Starts, also when a later run has an earlier time."""
    clock = OddClock(tmp_path)
    with _server(tmp_path, clock) as server:
        runs = [perform(server.stub, inline("1")).run]
        runs.append(start(server.stub, inline(gate.source)))
        reach(server.stub, runs[1].run_id, "cell_started")
        clock.set(jump)
        gate.open()
        finish(server.stub, runs[1].run_id)
        runs.append(perform(server.stub, inline("1")).run)
        away = _seconds(runs[2].create_time) - _seconds(runs[1].create_time) - jump
        assert 0 <= away < HOUR / 2, "the clock of the server was not set"
        assert history(server.stub) == [run.run_id for run in reversed(runs)]


@jumps
@pytest.mark.parametrize("limit", ["cell_timeout", "run_timeout", "output_timeout"])
def test_a_limit_is_of_the_time_that_passed(tmp_path: Path, jump: int, limit: str) -> None:
    """No jump makes it end the run earlier, and none puts that off by an hour or a day."""
    clock = OddClock(tmp_path)
    with _server(tmp_path, clock) as server:
        # What is printed meanwhile makes the limit of silence be counted again.
        source = f"import time; time.sleep({QUIET}); print('x', flush=True); time.sleep(1000)"
        begin = time.monotonic()
        run = start(server.stub, inline(source, **{limit: duration(LIMITS[limit])}))
        with closing(follow(server.stub, run.run_id)) as events:
            # If it ends first, it has to do so as without a jump.
            next((event for event in events if event.HasField(WHEN[limit])), None)
        clock.set(jump)
        ended = finish(server.stub, run.run_id)
        passed = time.monotonic() - begin
        figure(f"{limit} of {LIMITS[limit]} s: {passed:.2f} s after Start")
        failure = _in_order(ended.events).failure
        assert failure.cause == pb.FailureCause.Value(f"FAILURE_CAUSE_{limit.upper()}")
        lasted = _seconds(ended.run.end_time) - _seconds(ended.run.start_time)
        assert 0 < lasted <= passed
        # The silence before the text counts for each limit but the one of silence.
        is_quiet = limit == "output_timeout" and texts(ended.events)
        assert passed >= LIMITS[limit] + (QUIET if is_quiet else 0)
        if limit == "cell_timeout":
            finished = [event.cell_finished for event in ended.events if event.HasField("cell_finished")]
            assert LIMITS[limit] <= _seconds(finished[0].duration) <= passed


@jumps
def test_a_run_that_goes_on_in_the_next_server_has_its_own_time(
    tmp_path: Path, gate: Gate, jump: int
) -> None:
    """Times stay in order when the clock is set while no server is there, for queued and for started runs."""
    clock = OddClock(tmp_path)
    with _server(tmp_path, clock, "--queue", "1") as server:
        running = start(server.stub, inline(gate.source)).run_id
        reach(server.stub, running, "cell_started")
        queued = start(server.stub, inline("1")).run_id
        server.die()
    clock.set(jump)
    # It goes on where runs outlive their server.
    gate.open()
    with _server(tmp_path, clock, "--queue", "1") as server:
        states = [_in_order(finish(server.stub, one).events).state for one in (running, queued)]
        assert states[0] in {pb.RUN_STATE_INTERRUPTED, pb.RUN_STATE_SUCCEEDED}
        assert states[1] == pb.RUN_STATE_SUCCEEDED
        assert history(server.stub) == [queued, running]
