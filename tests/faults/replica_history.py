"""What callers and notebooks recorded of a service with several replicas, and the search for broken promises.

`violations` knows nothing of servers and processes: it compares records, so that tests can make up a history
for each promise that a service may break.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.progress import TERMINAL, out_of_order

BEGIN, TICK, END = "begin", "tick", "end"
# What a run may end as while nothing happens to its kernel, its worker or its code.
EXPECTED = frozenset({pb.RUN_STATE_SUCCEEDED, pb.RUN_STATE_KILLED, pb.RUN_STATE_INTERRUPTED})


class Started(NamedTuple):
    """A Start that was acknowledged.

    Attributes:
        request_id: The id of the request; empty: it had none.
        run_id: The run that the answer has.
        replica: Which server answered.
        time: A moment before its caller first asked for it, in nanoseconds of the machine's clock.
    """

    request_id: str
    run_id: str
    replica: str
    time: int = 0


class ReportedEnd(NamedTuple):
    """A run in a terminal state, as an answer or a stream had it.

    Attributes:
        run: The run.
        replica: Which server reported it.
        time: When the caller had it, in nanoseconds of the machine's clock.
        left: The processes of the run that were alive then.
    """

    run: pb.Run
    replica: str
    time: int
    left: Mapping[int, str]


class Killed(NamedTuple):
    """A Kill that was answered, and that had to wait for the end of all processes.

    Attributes:
        run: The run in the answer.
        replica: Which server answered.
        left: The processes of the run that were alive then.
    """

    run: pb.Run
    replica: str
    left: Mapping[int, str]


class Reading(NamedTuple):
    """The events of a run as one reader has them, from one replica or joined over several.

    Attributes:
        run_id: The run.
        reader: Who read them, for people.
        events: The events, without heartbeats.
    """

    run_id: str
    reader: str
    events: Sequence[pb.ProgressResponse]


class Effect(NamedTuple):
    """A line that a notebook wrote while it was executed.

    Attributes:
        run_id: The run.
        server: The mark of the server whose worker executes it.
        pid: The process.
        kind: BEGIN, TICK or END.
        time: When it was written, in nanoseconds of the machine's clock.
    """

    run_id: str
    server: str
    pid: int
    kind: str
    time: int


@dataclass
class ReplicaHistory:
    """All records of a service.

    Attributes:
        starts: The acknowledged Starts.
        ends: The ends as they were reported.
        kills: The Kills that were answered.
        kills_asked: The runs that a Kill was sent for, answered or not.
        readings: What readers have.
        effects: What notebooks wrote, in the order of the file.
        listed: All runs as each replica lists them, when the service is at rest.
        alive: The marks of the servers that have not ended by then.
        ticks: How many ticks the notebook of each run writes.
        wrong_clocks: From when to when, in nanoseconds of the machine's clock, some server had a clock that
            was hours away from it.
    """

    starts: list[Started] = field(default_factory=list)
    ends: list[ReportedEnd] = field(default_factory=list)
    kills: list[Killed] = field(default_factory=list)
    kills_asked: set[str] = field(default_factory=set)
    readings: list[Reading] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    listed: dict[str, list[pb.Run]] = field(default_factory=dict)
    alive: set[str] = field(default_factory=set)
    ticks: dict[str, int] = field(default_factory=dict)
    wrong_clocks: list[tuple[int, int]] = field(default_factory=list)

    @property
    def runs(self) -> dict[str, pb.Run]:
        """The runs, as some replica lists them."""
        return {run.run_id: run for runs in self.listed.values() for run in runs}


def effects(lines: Iterable[str]) -> Iterator[Effect]:
    """Reads the file that the notebooks write."""
    for line in lines:
        run_id, server, pid, kind, time = line.split()
        yield Effect(run_id, server, int(pid), kind, int(time))


def violations(history: ReplicaHistory) -> list[str]:
    """Returns what is wrong with a history: a sentence for each broken promise."""
    return [
        *_lost_or_doubled(history),
        *_differently_listed(history),
        *_requests_with_several_runs(history),
        *_unended(history),
        *_changed_ends(history),
        *_unequal_streams(history),
        *_times_out_of_order(history),
        *_executions(history),
        *_late_effects(history),
        *_left_processes(history),
        *_shared_workers(history),
        *_unexplained_ends(history),
    ]


def _lost_or_doubled(history: ReplicaHistory) -> Iterator[str]:
    acknowledged = {start.run_id for start in history.starts}
    for replica, runs in history.listed.items():
        found = Counter(run.run_id for run in runs)
        for run_id in sorted(acknowledged - found.keys()):
            yield f"{run_id} is acknowledged, and {replica} does not list it"
        for run_id, count in found.items():
            if count > 1:
                yield f"{run_id} is listed {count} times by {replica}"


def _differently_listed(history: ReplicaHistory) -> Iterator[str]:
    seen: dict[str, tuple[str, pb.Run]] = {}
    for replica, runs in history.listed.items():
        for run in runs:
            other, first = seen.setdefault(run.run_id, (replica, run))
            if run != first:
                yield f"{run.run_id} is listed differently by {other} and {replica}: {_differing(first, run)}"
    for run_id, (other, _) in seen.items():
        for replica, runs in history.listed.items():
            if run_id not in {run.run_id for run in runs}:
                yield f"{run_id} is listed by {other}, and not by {replica}"


def _requests_with_several_runs(history: ReplicaHistory) -> Iterator[str]:
    found: dict[str, set[str]] = defaultdict(set)
    for start in history.starts:
        found[start.request_id].add(start.run_id)
    for run in history.runs.values():
        found[run.request_id].add(run.run_id)
    for request_id, run_ids in found.items():
        if request_id and len(run_ids) > 1:
            yield f"request {request_id} has several runs: {', '.join(sorted(run_ids))}"


def _unended(history: ReplicaHistory) -> Iterator[str]:
    for run in history.runs.values():
        if run.state not in TERMINAL:
            yield f"{run.run_id} has not ended: {pb.RunState.Name(run.state)}"


def _changed_ends(history: ReplicaHistory) -> Iterator[str]:
    runs = history.runs
    answers = [("an end", end.run, end.replica) for end in history.ends]
    answers += [("a Kill", kill.run, kill.replica) for kill in history.kills]
    for what, run, replica in answers:
        if run.state not in TERMINAL:
            yield f"{run.run_id} was answered by {replica} as {pb.RunState.Name(run.state)} for {what}"
        elif (now := runs.get(run.run_id)) is not None and now != run:
            now_differs = f"is different now: {_differing(run, now)}"
            yield f"{run.run_id} had ended, reported by {replica}, and {now_differs}"


def _unequal_streams(history: ReplicaHistory) -> Iterator[str]:
    runs = history.runs
    first: dict[str, Reading] = {}
    for reading in history.readings:
        numbers = [event.sequence for event in reading.events]
        if numbers != list(range(1, len(numbers) + 1)):
            yield f"{reading.run_id} has a gap or a repeat for {reading.reader}: {_jumps(numbers)}"
        ends = [n for n, event in enumerate(reading.events) if event.run_changed.state in TERMINAL]
        if ends != [len(numbers) - 1]:
            yield f"{reading.run_id} has terminal events at {ends} of {len(numbers)} for {reading.reader}"
        elif (run := runs.get(reading.run_id)) is not None and reading.events[-1].run_changed != run:
            yield f"{reading.run_id}: the terminal event for {reading.reader} is not the run that is listed"
        other = first.setdefault(reading.run_id, reading)
        if list(other.events) != list(reading.events):
            yield f"{reading.run_id} has other events for {reading.reader} than for {other.reader}"


def _times_out_of_order(history: ReplicaHistory) -> Iterator[str]:
    for reading in history.readings:
        if why := out_of_order(reading.events):
            yield f"{reading.run_id} has times out of order for {reading.reader}: {why}"


def _executions(history: ReplicaHistory) -> Iterator[str]:
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    processes: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for effect in history.effects:
        kinds[effect.run_id][effect.kind] += 1
        processes[effect.run_id].add((effect.server, effect.pid))
    runs = history.runs
    for run_id, found in kinds.items():
        if run_id not in runs:
            yield f"{run_id} was executed, and nobody lists it"
        if found[BEGIN] != 1 or len(processes[run_id]) != 1:
            yield f"{run_id} was executed {found[BEGIN]} times, by {sorted(processes[run_id])}"
    for run in runs.values():
        if run.state == pb.RUN_STATE_SUCCEEDED and run.run_id in history.ticks:
            whole = Counter({BEGIN: 1, TICK: history.ticks[run.run_id], END: 1})
            if kinds[run.run_id] != whole:
                yield f"{run.run_id} succeeded, and its notebook wrote {dict(kinds[run.run_id])}"


def _late_effects(history: ReplicaHistory) -> Iterator[str]:
    reported: dict[str, int] = {}
    for end in history.ends:
        reported[end.run.run_id] = min(end.time, reported.get(end.run.run_id, end.time))
    last: dict[str, Effect] = {}
    for effect in history.effects:
        if effect.run_id not in last or last[effect.run_id].time < effect.time:
            last[effect.run_id] = effect
    runs = history.runs
    for run_id, effect in last.items():
        if run_id in reported and effect.time > reported[run_id]:
            late = (effect.time - reported[run_id]) / 1e6
            yield f"{run_id} wrote a {effect.kind} {late:.3f} ms after its end was reported"
        run = runs.get(run_id)
        if run is None or not run.HasField("end_time") or _saw_wrong_clock(history, run_id, reported):
            continue
        if effect.time > _nanoseconds(run.end_time):
            late = (effect.time - _nanoseconds(run.end_time)) / 1e6
            yield f"{run_id} wrote a {effect.kind} {late:.3f} ms after its end_time"


def _saw_wrong_clock(history: ReplicaHistory, run_id: str, reported: Mapping[str, int]) -> bool:
    """Whether a clock was wrong while a run was there, so that its times are in order and no more."""
    asked = min((start.time for start in history.starts if start.run_id == run_id), default=0)
    ended = reported.get(run_id)
    return any(asked <= end and (ended is None or begin <= ended) for begin, end in history.wrong_clocks)


def _left_processes(history: ReplicaHistory) -> Iterator[str]:
    for kill in history.kills:
        if kill.left:
            yield f"{kill.run.run_id} had processes when {kill.replica} had answered Kill: {dict(kill.left)}"
    for end in history.ends:
        if end.left:
            yield f"{end.run.run_id} had processes when {end.replica} had reported its end: {dict(end.left)}"


def _shared_workers(history: ReplicaHistory) -> Iterator[str]:
    spans: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    for effect in history.effects:
        begin, end = spans[effect.server].get(effect.run_id, (effect.time, effect.time))
        spans[effect.server][effect.run_id] = min(begin, effect.time), max(end, effect.time)
    for server, found in spans.items():
        ordered = sorted(found.items(), key=lambda one: one[1])
        for (run_id, (_, end)), (next_id, (begin, _)) in pairwise(ordered):
            if begin <= end:
                yield f"{run_id} and {next_id} were executed by the one worker of {server} at a time"


def _unexplained_ends(history: ReplicaHistory) -> Iterator[str]:
    servers = {effect.run_id: effect.server for effect in history.effects}
    for run in history.runs.values():
        if run.state in TERMINAL and run.state not in EXPECTED:
            state = pb.RunState.Name(run.state)
            yield f"{run.run_id} is {state} without a reason: {run.failure.message}"
        if run.state == pb.RUN_STATE_KILLED and run.run_id not in history.kills_asked:
            yield f"{run.run_id} was killed, and nobody asked for that"
        if run.state == pb.RUN_STATE_INTERRUPTED and servers.get(run.run_id) in history.alive:
            yield f"{run.run_id} was interrupted, and its server lives: {run.failure.message}"


def _nanoseconds(time: Timestamp) -> int:
    return time.ToNanoseconds()


def _differing(one: pb.Run, other: pb.Run) -> str:
    """The fields that differ, with both values."""
    names = [name for name in pb.Run.DESCRIPTOR.fields_by_name if getattr(one, name) != getattr(other, name)]
    parts = [f"{name} {str(getattr(one, name))!r}, {str(getattr(other, name))!r}" for name in names]
    return "; ".join(parts) or "presence of a field"


def _jumps(numbers: Sequence[int]) -> str:
    """Where numbers do not count up by one from 1."""
    jumps = [(before, after) for before, after in pairwise([0, *numbers]) if after != before + 1]
    return ", ".join(f"{after} after {before}" for before, after in jumps[:3])
