"""The search for broken promises finds each kind of violation in a history that is made up for it."""

import copy
import re
from collections.abc import Callable

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.faults.replica_history import (
    BEGIN,
    END,
    TICK,
    Effect,
    Killed,
    Reading,
    ReplicaHistory,
    ReportedEnd,
    Started,
    effects,
    violations,
)

pytestmark = pytest.mark.unit

REPLICAS = ("first", "second", "third")
SECOND = 10**9


def _run(run_id: str, state: pb.RunState.ValueType, end: float = 0.0) -> pb.Run:
    run = pb.Run(run_id=run_id, request_id=f"request-{run_id}", state=state)
    run.create_time.FromNanoseconds(SECOND)
    if end:
        run.end_time.FromNanoseconds(int(end * SECOND))
    return run


def _events(run: pb.Run, *, texts: int = 2) -> list[pb.ProgressResponse]:
    """Some outputs, and the end."""
    outputs = [
        pb.ProgressResponse(
            sequence=number, cell_output=pb.CellOutput(stream=pb.StreamOutput(text=f"{number}"))
        )
        for number in range(1, texts + 1)
    ]
    events = [*outputs, pb.ProgressResponse(sequence=texts + 1, run_changed=run)]
    for event in events:
        event.time.FromNanoseconds(run.end_time.ToNanoseconds() + event.sequence)
    return events


def _sound() -> ReplicaHistory:
    """A history in which every promise is kept: a run that succeeds, one that is killed, one interrupted."""
    done = _run("done", pb.RUN_STATE_SUCCEEDED, 4)
    killed = _run("killed", pb.RUN_STATE_KILLED, 8)
    interrupted = _run("interrupted", pb.RUN_STATE_INTERRUPTED, 12)
    runs = [done, killed, interrupted]
    return ReplicaHistory(
        starts=[Started(run.request_id, run.run_id, "first", SECOND) for run in runs],
        ends=[ReportedEnd(run, "second", run.end_time.ToNanoseconds() + 1, {}) for run in runs],
        kills=[Killed(killed, "third", {})],
        kills_asked={"killed"},
        readings=[Reading(run.run_id, replica, _events(run)) for run in runs for replica in REPLICAS],
        effects=[
            Effect("done", "a", 1, BEGIN, 2 * SECOND),
            Effect("done", "a", 1, TICK, 3 * SECOND),
            Effect("done", "a", 1, END, 3 * SECOND + 1),
            Effect("killed", "a", 2, BEGIN, 6 * SECOND),
            Effect("killed", "a", 2, TICK, 7 * SECOND),
            Effect("interrupted", "b", 3, BEGIN, 7 * SECOND),
            Effect("interrupted", "b", 3, TICK, 8 * SECOND),
        ],
        listed={replica: copy.deepcopy(runs) for replica in REPLICAS},
        alive={"a"},
        ticks={"done": 1, "killed": 100, "interrupted": 100},
    )


def _lost(history: ReplicaHistory) -> None:
    del history.listed["second"][0]


def _unknown(history: ReplicaHistory) -> None:
    history.starts.append(Started("other", "other", "second"))


def _listed_twice(history: ReplicaHistory) -> None:
    history.listed["third"].append(history.listed["third"][0])


def _listed_differently(history: ReplicaHistory) -> None:
    history.listed["third"][0].cells_completed = 7


def _two_runs(history: ReplicaHistory) -> None:
    history.starts.append(Started("request-done", "killed", "second"))


def _two_listed_runs(history: ReplicaHistory) -> None:
    for runs in history.listed.values():
        runs[0].request_id = runs[1].request_id


def _unended(history: ReplicaHistory) -> None:
    for runs in history.listed.values():
        runs[1].state = pb.RUN_STATE_RUNNING


def _changed_end(history: ReplicaHistory) -> None:
    before = _run("killed", pb.RUN_STATE_SUCCEEDED, 8)
    history.ends.append(ReportedEnd(before, "first", 9 * SECOND, {}))


def _changed_answer(history: ReplicaHistory) -> None:
    history.kills.append(Killed(_run("done", pb.RUN_STATE_KILLED, 3), "first", {}))


def _answered_early(history: ReplicaHistory) -> None:
    history.kills.append(Killed(_run("killed", pb.RUN_STATE_KILLING), "first", {}))


def _gap(history: ReplicaHistory) -> None:
    events = list(history.readings[0].events)
    history.readings[0] = history.readings[0]._replace(events=[events[0], *events[2:]])


def _duplicate(history: ReplicaHistory) -> None:
    events = list(history.readings[0].events)
    history.readings[0] = history.readings[0]._replace(events=[events[0], *events])


def _two_terminal_events(history: ReplicaHistory) -> None:
    events = list(history.readings[0].events)
    again = pb.ProgressResponse(sequence=4, run_changed=events[-1].run_changed)
    history.readings[0] = history.readings[0]._replace(events=[*events, again])


def _no_terminal_event(history: ReplicaHistory) -> None:
    history.readings[0] = history.readings[0]._replace(events=history.readings[0].events[:-1])


def _another_terminal_event(history: ReplicaHistory) -> None:
    run = _run("done", pb.RUN_STATE_INTERRUPTED, 4)
    history.readings[0] = history.readings[0]._replace(events=_events(run))


def _another_event(history: ReplicaHistory) -> None:
    events = copy.deepcopy(list(history.readings[1].events))
    events[0].cell_output.stream.text = "other"
    history.readings[1] = history.readings[1]._replace(events=events)


def _earlier_event(history: ReplicaHistory) -> None:
    history.readings[0].events[1].time.FromNanoseconds(SECOND * 4)


def _ended_before_its_start(history: ReplicaHistory) -> None:
    history.readings[0].events[-1].run_changed.create_time.FromNanoseconds(SECOND * 5)


def _ended_after_its_last_event(history: ReplicaHistory) -> None:
    history.readings[0].events[-1].run_changed.end_time.FromNanoseconds(SECOND * 5)


def _executed_twice(history: ReplicaHistory) -> None:
    history.effects.append(Effect("interrupted", "c", 4, BEGIN, 9 * SECOND))


def _continued_elsewhere(history: ReplicaHistory) -> None:
    history.effects.append(Effect("interrupted", "c", 4, TICK, 9 * SECOND))


def _executed_unknown(history: ReplicaHistory) -> None:
    history.effects.append(Effect("other", "c", 4, BEGIN, 9 * SECOND))


def _executed_in_part(history: ReplicaHistory) -> None:
    history.effects = [one for one in history.effects if one.kind != END]


def _not_executed(history: ReplicaHistory) -> None:
    history.effects = [one for one in history.effects if one.run_id != "done"]


def _late_tick(history: ReplicaHistory) -> None:
    history.effects.append(Effect("interrupted", "b", 3, TICK, 12 * SECOND + 2))


def _tick_after_end(history: ReplicaHistory) -> None:
    history.effects.append(Effect("killed", "a", 2, TICK, 8 * SECOND + 1))


def _late_tick_by_a_right_clock(history: ReplicaHistory) -> None:
    _late_tick(history)
    history.ends = [one._replace(time=one.time + SECOND) for one in history.ends]
    history.wrong_clocks = [(0, SECOND - 1), (14 * SECOND, 15 * SECOND)]


def _late_tick_by_a_wrong_clock(history: ReplicaHistory) -> None:
    _late_tick(history)
    history.wrong_clocks = [(0, 15 * SECOND)]


def _left_by_kill(history: ReplicaHistory) -> None:
    history.kills[0] = history.kills[0]._replace(left={5: "sleep 1000"})


def _left_at_end(history: ReplicaHistory) -> None:
    history.ends[2] = history.ends[2]._replace(left={5: "sleep 1000"})


def _two_at_a_time(history: ReplicaHistory) -> None:
    history.effects = [one._replace(server="a") for one in history.effects]


def _crashed(history: ReplicaHistory) -> None:
    for runs in history.listed.values():
        runs[1].state = pb.RUN_STATE_CRASHED


def _killed_by_nobody(history: ReplicaHistory) -> None:
    history.kills_asked.clear()


def _interrupted_by_nobody(history: ReplicaHistory) -> None:
    history.alive.add("b")


CASES: list[tuple[Callable[[ReplicaHistory], None], str]] = [
    (_lost, "done is acknowledged, and second does not list it"),
    (_lost, "done is listed by first, and not by second"),
    (_unknown, "other is acknowledged, and first does not list it"),
    (_listed_twice, "done is listed 2 times by third"),
    (_listed_differently, "done is listed differently by first and third: cells_completed '0', '7'"),
    (_two_runs, "request request-done has several runs: done, killed"),
    (_two_listed_runs, "request request-killed has several runs: done, killed"),
    (_unended, "killed has not ended: RUN_STATE_RUNNING"),
    (_changed_end, "killed had ended, reported by first, and is different now: state"),
    (_changed_answer, "done had ended, reported by first, and is different now: state"),
    (_answered_early, "killed was answered by first as RUN_STATE_KILLING for a Kill"),
    (_gap, "done has a gap or a repeat for first: 3 after 1"),
    (_duplicate, "done has a gap or a repeat for first: 1 after 1"),
    (_two_terminal_events, r"done has terminal events at \[2, 3\] of 4 for first"),
    (_no_terminal_event, r"done has terminal events at \[\] of 2 for first"),
    (_another_terminal_event, "done: the terminal event for first is not the run that is listed"),
    (_another_event, "done has other events for second than for first"),
    (_earlier_event, "done has times out of order for first: event 2 is 0.000000 s before event 1"),
    (_ended_before_its_start, "done has times out of order for first: its end_time is 1.000000 s before its"),
    (_ended_after_its_last_event, "done has times out of order for first: event 3 is 1.000000 s before its"),
    (_executed_twice, r"interrupted was executed 2 times, by \[\('b', 3\), \('c', 4\)\]"),
    (_continued_elsewhere, r"interrupted was executed 1 times, by \[\('b', 3\), \('c', 4\)\]"),
    (_executed_unknown, "other was executed, and nobody lists it"),
    (_executed_in_part, "done succeeded, and its notebook wrote {'begin': 1, 'tick': 1}"),
    (_not_executed, "done succeeded, and its notebook wrote {}"),
    (_late_tick, "interrupted wrote a tick 0.000 ms after its end was reported"),
    (_tick_after_end, "killed wrote a tick 0.000 ms after its end_time"),
    (_late_tick_by_a_right_clock, "interrupted wrote a tick 0.000 ms after its end_time"),
    (_late_tick_by_a_wrong_clock, "interrupted wrote a tick 0.000 ms after its end was reported"),
    (_left_by_kill, "killed had processes when third had answered Kill: {5: 'sleep 1000'}"),
    (_left_at_end, "interrupted had processes when second had reported its end: {5: 'sleep 1000'}"),
    (_two_at_a_time, "killed and interrupted were executed by the one worker of a at a time"),
    (_crashed, "killed is RUN_STATE_CRASHED without a reason"),
    (_killed_by_nobody, "killed was killed, and nobody asked for that"),
    (_interrupted_by_nobody, "interrupted was interrupted, and its server lives"),
]


def test_a_sound_history_has_no_violation() -> None:
    """Nothing is found where nothing is wrong."""
    assert violations(_sound()) == []


@pytest.mark.parametrize(("spoil", "violation"), CASES, ids=lambda one: getattr(one, "__name__", ""))
def test_a_violation_is_found(spoil: Callable[[ReplicaHistory], None], violation: str) -> None:
    """A history with one flaw has a violation that names it."""
    history = _sound()
    spoil(history)
    found = violations(history)
    assert any(re.match(violation, one) for one in found), found


def test_the_end_time_of_a_wrong_clock_is_not_compared() -> None:
    """What a notebook writes has the time of the machine, and the run's end that of its server."""
    history = _sound()
    history.ends = [one._replace(time=20 * SECOND) for one in history.ends]
    _late_tick(history)
    assert violations(history) == ["interrupted wrote a tick 0.000 ms after its end_time"]
    history.wrong_clocks = [(5 * SECOND, 6 * SECOND)]
    assert violations(history) == []


def test_a_run_that_was_killed_in_the_queue_needs_no_effects() -> None:
    """Only of a run that succeeded is it known what its notebook has written."""
    history = _sound()
    history.effects = [one for one in history.effects if one.run_id == "done"]
    assert violations(history) == []


def test_the_file_of_effects_is_read() -> None:
    """Each line is an effect."""
    lines = ["run server 12 begin 100", "run server 12 tick 200"]
    assert list(effects(lines)) == [
        Effect("run", "server", 12, BEGIN, 100),
        Effect("run", "server", 12, TICK, 200),
    ]
