"""Injects faults into several replicas on one database, and records what callers and notebooks see meanwhile.

A round has callers that start, follow and kill runs at random replicas, and mischief that strikes replicas,
the database and the way between them. At its end everything works again: what was acknowledged must come to
an end, and `tests.faults.replica_history` looks for broken promises in all records so far.
"""

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TypeVar
from uuid import uuid4

import grpc

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc
from tests.faults.odd_clock import HOUR, PROGRAM, OddClock
from tests.faults.replica_history import (
    Killed,
    Reading,
    ReplicaHistory,
    ReportedEnd,
    Started,
    effects,
    violations,
)
from tests.support.calls import duration, executed, finish, inline, listed, texts
from tests.support.database_server import DatabaseServer, serves, until
from tests.support.killable import RUN_MARK, gone, new_mark, remains
from tests.support.network import Wire, lacking
from tests.support.notebooks import printed
from tests.support.postgres import Postgres
from tests.support.postgres_proxy import PLAIN, PostgresProxy
from tests.support.progress import TERMINAL, BrokenStreamError, checked
from tests.support.server import MARK_VARIABLE
from tests.support.tcp_proxy import HOST

# A busy machine must not take one away, which no fault would excuse; `make chaos` has shorter ones.
LEASE = float(os.environ.get("CHAOS_LEASE", "10"))
REPLICAS, CALLERS, MISCHIEVOUS = 3, 4, 2
# How long faults happen in a round, at least.
FAULT_SECONDS = 5.0
# When this process is so late for something, or so many threads want each processor over a lease, servers may
# be too late to renew theirs.
STARVED_SECONDS, STARVED_THREADS = 0.15 * LEASE, 5.0
# Within this time, a run comes to its end when everything works again.
END_SECONDS = 90.0
# Of a paused replica, or one without its database: with a lease that goes on, and with one that is lost.
SHORT, LONG = (0.1, 0.5 * LEASE), (1.0 * LEASE, 1.5 * LEASE)
DATABASE_SECONDS = (0.05, 0.4 * LEASE)
LOSS, LOSS_SECONDS = 0.4, 1.0
RESTARTS = {
    "database stopped": signal.SIGINT,
    "database crashed": signal.SIGQUIT,
    "database killed": signal.SIGKILL,
}
DATABASE_FAULTS = (*RESTARTS, "database paused")
REPLICA_FAULTS = (
    *("killed", "killed", "terminated", "paused", "paused past its lease", "replaced while paused"),
    *("cut off", "silent", "silent past its lease", "answers lost", "clock set"),
)
# Those of the network, which not every machine can have.
WIRE_FAULTS = ("wire cut", "wire cut past its lease")
# Those that last longer than a lease.
LONG_FAULTS = {
    *("paused past its lease", "replaced while paused"),
    *("silent past its lease", "wire cut past its lease"),
}
# By how many hours a clock may be wrong.
HOURS = (-30, -5, -1, 1, 5, 30)
# How many ticks a run has, 50 a second. The longest go on when others have taken over the runs of a server.
TICK_COUNTS = (0, 5, 30, 60, 150, 300)
# What nobody does on purpose.
STARVED = "machine starved"
# How much rarer a fault of the database is, which strikes all replicas.
DATABASE_SHARE = 0.2
# Runs of earlier rounds that are read again in each round.
READ_AGAIN = 5
# The errors that a caller may get while faults happen, apart from UNAVAILABLE.
TOLERATED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
BUSY, STOPPING = "RUNNER_BUSY", "CANCELLED"
FIRST_CELL = """
import os, subprocess, time
def leave(kind):
    with open({path!r}, "a") as file:
        run_id, server = os.environ["NOTEBOOK_RUNNER_RUN_ID"], os.environ[{server!r}]
        file.write(f"{{run_id}} {{server}} {{os.getpid()}} {{kind}} {{time.time_ns()}}\\n")
leave("begin")
# A kernel ends by itself when its parent is gone; this does not.
subprocess.Popen(["sleep", os.environ[{mark!r}]], start_new_session=True)
print("first", flush=True)
"""
TICKS = """
for number in range({ticks}):
    leave("tick")
    print("tick", number, flush=True)
    time.sleep(0.02)
"""
LAST_CELL = """
leave("end")
print("last", flush=True)
"""
_T = TypeVar("_T")


class Replica:
    """One of the servers, and those that come after it in its place.

    Args:
        number: Which one.
        folder: For its state folders.
        database: The database of all.
        name: The database's name.
        seed: Decides which answers of the database are lost.
        wire: The way to it, for its callers and to the database; None: it is on this side.
    """

    def __init__(
        self, number: int, folder: Path, database: Postgres, name: str, seed: int, wire: Wire | None
    ) -> None:
        self.number = number
        self.wire = wire
        here, self._there = (wire.here, wire.there) if wire else (HOST, HOST)
        self._program = (*(wire.prefix if wire else ()), *PROGRAM)
        self.proxy = PostgresProxy(database.port, seed, here)
        # Held while something is done to it.
        self.busy = threading.Lock()
        self._folder = folder
        self._url = database.url(name, host=here, port=self.proxy.port, options=PLAIN)
        clock = folder / f"clock-{number}"
        clock.mkdir()
        self.clock = OddClock(clock)
        self._folders = 0
        self._lives = 0
        self._channels: list[grpc.Channel] = []
        self.server: DatabaseServer
        self.stub: rpc.NotebookRunnerStub
        self.name = ""

    def start(self, *, elsewhere: bool = False) -> None:
        """Starts the next server, with the same state folder or, as on another machine, with another one."""
        self._folders += elsewhere
        self._lives += 1
        state = self._folder / f"state-{self.number}-{self._folders}"
        options = ("--queue", "3", "--drain-timeout", "0.5", "--heartbeat-interval", "0.5")
        place = ("--listen", f"{self._there}:0", *(("--insecure",) if self.wire else ()))
        server = DatabaseServer(
            *(state, self._url, *options, *place),
            lease=LEASE,
            program=self._program,
            environment=self.clock.environment,
        ).__enter__()
        # One that is never closed while callers use it, unlike the server's own.
        channel = grpc.insecure_channel(server.target)
        self._channels.append(channel)
        self.server, self.stub = server, rpc.NotebookRunnerStub(channel)
        self.name = f"replica {self.number}.{self._lives}"

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """Lets all vanish that is sent to it or by it while the block goes on."""
        assert self.wire is not None
        self.wire.cut()
        try:
            yield
        finally:
            self.wire.mend()

    @property
    def is_alive(self) -> bool:
        """Whether its process exists."""
        return self.server.process.poll() is None

    def close_channels(self) -> None:
        """Closes the connections of servers that are gone; no caller may have a call."""
        for channel in self._channels[:-1]:
            channel.close()
        self._channels = self._channels[-1:]

    def close(self) -> None:
        """Ends the server as an operator does."""
        self.close_channels()
        self._channels.pop().close()
        self.server.__exit__(None, None, None)


@dataclass
class Draft:
    """A run that a caller wants.

    Attributes:
        request: What starts it.
        mark: What its processes carry.
        ticks: How many ticks it writes.
        time: When it was made, in nanoseconds.
    """

    request: pb.StartRequest
    mark: str
    ticks: int
    time: int


@dataclass
class ReplicaChaos:
    """Replicas whose processes and connections fail, and what callers and notebooks recorded.

    Args:
        folder: For the state folders, and what the notebooks write.
        seed: Decides what happens; when it happens is also chance.
        database: The database server of the replicas.
    """

    folder: Path
    seed: int
    database: Postgres
    rounds: int = 0
    starved_seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    exits: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    history: ReplicaHistory = field(default_factory=ReplicaHistory)

    def __post_init__(self) -> None:
        self._effects = self.folder / "effects"
        self._effects.touch()
        self._trace = self.folder / "trace"
        self._known: set[str] = set()
        self._marks: dict[str, str] = {}
        self._reported: set[str] = set()
        self._read: dict[str, Reading] = {}
        self._lock = threading.Lock()
        self._calm = threading.Event()
        # Nobody goes on, whatever has not ended.
        self.is_over = threading.Event()
        self._database_busy = threading.Lock()
        # Why servers may exit by themselves: faults that a lease does not outlast.
        self._excuses: dict[str, set[str]] = {}
        self._database_faults = 0
        # The database ends with the thread that has started it.
        self._operator = ThreadPoolExecutor(1)
        self.replicas: list[Replica] = []
        self._replica_faults = REPLICA_FAULTS if lacking() else (*REPLICA_FAULTS, *WIRE_FAULTS)
        self._stack = ExitStack()

    def open(self) -> None:
        """Starts the replicas, each on a machine of its own as far as the network goes, where that can be."""
        name = self.database.create_database()
        for number in range(REPLICAS):
            wire = None if lacking() else self._stack.enter_context(Wire())
            replica = Replica(number, self.folder, self.database, name, self.seed, wire)
            self._stack.enter_context(replica.proxy)
            replica.start()
            self._stack.callback(replica.close)
            self.replicas.append(replica)

        watch = threading.Thread(target=self._watch_starvation, daemon=True)
        watch.start()
        self._stack.callback(watch.join)

    def close(self) -> None:
        """Ends the replicas as an operator does."""
        self.is_over.set()
        self._stack.close()
        self._operator.shutdown()

    def summary(self) -> str:
        """Rounds, faults by kind, how runs ended, and what was found wrong."""

        def counts(of: Counter[str]) -> str:
            return ", ".join(f"{name} {count}" for name, count in sorted(of.items()))

        states = Counter(
            pb.RunState.Name(run.state).removeprefix("RUN_STATE_") for run in self.history.runs.values()
        )
        lines = [
            f"chaos: seed {self.seed}, {self.rounds} rounds, {states.total()} runs ({counts(states)})",
            f"  answers: {len(self.history.starts)} of Start, {len(self.history.kills)} of Kill",
            f"  faults: {counts(self.faults)}",
            *([f"  never: {', '.join(WIRE_FAULTS)}: {lacking()}"] if lacking() else []),
            f"  machine starved: {self.starved_seconds:.0f} s",
            f"  servers that ended: {counts(self.exits)}",
            f"  refusals and lost calls: {counts(self.refusals)}",
            f"  violations: {len(self.violations)}",
            *self.violations,
        ]
        return "\n".join(lines)

    def play(self) -> None:
        """One round: runs and faults, then the end of both, and the check of all that is recorded."""
        self.rounds += 1
        self.note(f"round {self.rounds}")
        before = len(self.violations)
        self._calm.clear()
        with ThreadPoolExecutor(CALLERS + MISCHIEVOUS) as pool:
            callers = [pool.submit(_Caller(self, self._random(f"caller {n}")).act) for n in range(CALLERS)]
            faults = [pool.submit(self._do_mischief, self._random(f"fault {n}")) for n in range(MISCHIEVOUS)]
            try:
                # What is waited for here is the duration of a round.
                threading.Event().wait(FAULT_SECONDS)
                self._calm.set()
                for fault in faults:
                    fault.result()
                self._keep_alive(callers)
            except KeyboardInterrupt:
                self.is_over.set()
                raise
            finally:
                self._calm.set()
        self.note("the callers are done")
        self._check()
        if len(self.violations) > before:
            self.violations.append(f"(round {self.rounds})")

    def _random(self, name: str) -> random.Random:
        return random.Random(f"{self.seed} {self.rounds} {name}")  # noqa: S311 - no secret

    # What callers use

    @property
    def is_calm(self) -> bool:
        """Whether the faults of this round are over."""
        return self._calm.is_set()

    def pause(self, seconds: float) -> None:
        """Lets time pass: the moment of what follows is chance. Ends early when faults are over."""
        self._calm.wait(seconds)

    def draft(self, chance: random.Random) -> Draft:
        """A run of some length."""
        ticks, mark = chance.choice(TICK_COUNTS), new_mark()
        begin = FIRST_CELL.format(path=str(self._effects), server=MARK_VARIABLE, mark=RUN_MARK)
        cells = (begin, TICKS.format(ticks=ticks), LAST_CELL)
        # Without an id, a call whose answer is lost cannot be repeated.
        request_id = uuid4().hex if chance.random() < 0.85 else ""
        request = inline(*cells, request_id=request_id, environment={RUN_MARK: mark})
        return Draft(request, mark, ticks, time.time_ns())

    def started(self, draft: Draft, run: pb.Run, replica: str) -> None:
        """Records the answer of a Start."""
        self.note(f"{run.run_id} started at {replica}: {pb.RunState.Name(run.state)}")
        with self._lock:
            started = Started(draft.request.request_id, run.run_id, replica, draft.time)
            self.history.starts.append(started)
            self.history.ticks[run.run_id] = draft.ticks
            self._marks[run.run_id] = draft.mark
        self.see(run, replica)

    def see(self, run: pb.Run, replica: str) -> None:
        """Records the end of a run, if it has ended, and looks for processes when it is new."""
        now = time.time_ns()
        if run.state not in TERMINAL:
            return
        with self._lock:
            is_new = run.run_id not in self._reported and run.run_id in self._marks
            self._reported.add(run.run_id)
        left = remains(self._marks[run.run_id]) if is_new else {}
        if is_new:
            self.note(f"{run.run_id} has ended at {replica}: {pb.RunState.Name(run.state)}")
        with self._lock:
            self.history.ends.append(ReportedEnd(run, replica, now, left))

    def kill_asked(self, run_id: str) -> None:
        """Records that a Kill is sent."""
        with self._lock:
            self.history.kills_asked.add(run_id)

    def killed(self, draft: Draft, run: pb.Run, replica: str) -> None:
        """Records the answer of a Kill that waits."""
        left = remains(draft.mark)
        self.note(f"{run.run_id} killed at {replica}: {pb.RunState.Name(run.state)}")
        with self._lock:
            self.history.kills.append(Killed(run, replica, left))

    def read(self, reading: Reading) -> None:
        """Records what a reader has."""
        with self._lock:
            self.history.readings.append(reading)

    def object_to(self, violation: str) -> None:
        """Records what is wrong at first sight."""
        self.note(violation)
        with self._lock:
            self.violations.append(violation)

    def note(self, text: str) -> None:
        """Writes down what happened, to find the cause of a violation."""
        with self._lock, self._trace.open("a") as file:
            file.write(f"{time.time():.3f} {text}\n")

    def failed(self, call: str, replica: str, error: grpc.RpcError, *tolerated: str) -> None:
        """Records a call that failed; only faults and these reasons may be why."""
        self.note(f"{call} at {replica} failed: {error.code()}: {error.details()}")
        reasons = str(error.trailing_metadata() or "")
        reason = next((one for one in (*tolerated, STOPPING) if one in reasons), "")
        with self._lock:
            self.refusals[f"{call} {reason or error.code().name}"] += 1
        if error.code() not in TOLERATED and not reason:
            self.object_to(f"{call} at {replica} failed: {error.code()}: {error.details()}")

    # Faults

    def _do_mischief(self, chance: random.Random) -> None:
        while not self.is_calm:
            self.pause(chance.uniform(0, 1.0))
            if chance.random() < DATABASE_SHARE:
                fault = chance.choice(DATABASE_FAULTS)
                with _unless_busy(self._database_busy) as mine:
                    if mine:
                        self._strike_database(fault, chance)
            else:
                replica, fault = chance.choice(self.replicas), chance.choice(self._replica_faults)
                with _unless_busy(replica.busy) as mine:
                    if mine and replica.is_alive:
                        self._strike(replica, fault, chance)

    def _count(self, fault: str, whose: str = "") -> None:
        self.note(f"{fault} {whose}")
        with self._lock:
            self.faults[fault] += 1

    def _strike_database(self, fault: str, chance: random.Random) -> None:
        self._count(fault)
        self._database_faults += 1
        for replica in self.replicas:
            self._excuse(replica.server, fault)
        if fault in RESTARTS:
            self._operator.submit(self.database.restart, RESTARTS[fault]).result()
        else:
            with self.database.paused():
                threading.Event().wait(chance.uniform(*DATABASE_SECONDS))
        self._database_faults += 1

    def _excuse(self, server: DatabaseServer, fault: str) -> None:
        self._excuses.setdefault(server.mark, set()).add(fault)

    def _watch_starvation(self) -> None:
        step = STARVED_SECONDS / 3
        wanting: deque[float] = deque(maxlen=round(LEASE / step))
        begin = time.monotonic()
        while not self.is_over.wait(step):
            late = time.monotonic() - begin - step
            wanting.append(_threads_per_processor())
            if late > STARVED_SECONDS or fmean(wanting) > STARVED_THREADS:
                for replica in self.replicas:
                    self._excuse(replica.server, STARVED)
                self.starved_seconds += late + step
            begin = time.monotonic()

    def _strike(self, replica: Replica, fault: str, chance: random.Random) -> None:
        self._count(fault, replica.name)
        server, pid = replica.server, replica.server.process.pid
        elsewhere = chance.random() < 0.5
        self._excuse(server, fault)
        nap = threading.Event().wait
        seconds = chance.uniform(*(LONG if fault in LONG_FAULTS else SHORT))
        match fault:
            case "killed" | "terminated":
                server.process.send_signal(signal.SIGKILL if fault == "killed" else signal.SIGTERM)
                server.process.wait(60)
                nap(chance.choice((0.0, 0.0, chance.uniform(0, LEASE))))
                self._revive(replica, elsewhere=elsewhere)
            case "paused" | "paused past its lease":
                with _paused(pid):
                    nap(seconds)
            case "replaced while paused":
                with _paused(pid):
                    self._start(replica, elsewhere=True)
                    nap(seconds)
                server.process.wait(60)
                self._bury(server)
            case "silent" | "silent past its lease":
                with replica.proxy.silent():
                    nap(seconds)
            case "cut off":
                replica.proxy.reset()
            case "wire cut" | "wire cut past its lease":
                with replica.cut_off():
                    nap(seconds)
            case "clock set":
                self._set_clock(replica, chance)
            case "answers lost":
                replica.proxy.chance = LOSS
                nap(LOSS_SECONDS)
                replica.proxy.chance = 0.0
            case _:
                raise ValueError(fault)

    def _set_clock(self, replica: Replica, chance: random.Random) -> None:
        """Has a clock jump to wrong times, and back to the right one."""
        begin = time.time_ns()
        for hours in (*chance.sample(HOURS, 2), 0):
            replica.clock.set(hours * HOUR)
            threading.Event().wait(chance.uniform(*SHORT))
        with self._lock:
            self.history.wrong_clocks.append((begin, time.time_ns()))

    def _keep_alive(self, callers: Sequence[Future[None]]) -> None:
        """Starts anew whatever ends, until all callers have come to their ends."""
        rest: set[Future[None]] = set(callers)
        while rest:
            for replica in self.replicas:
                self._revive(replica)
            done, rest = wait(rest, timeout=0.2)
            for caller in done:
                caller.result()

    def _revive(self, replica: Replica, *, elsewhere: bool = False) -> None:
        """Starts the next server where one has ended."""
        if not replica.is_alive:
            self._bury(replica.server)
            self._start(replica, elsewhere=elsewhere)

    def _start(self, replica: Replica, *, elsewhere: bool = False) -> None:
        """Starts a server, again if the database could not be reached."""
        while not self.is_over.is_set():
            faults = self._database_faults
            try:
                replica.start(elsewhere=elsewhere)
            except AssertionError as error:
                if faults == self._database_faults and not self._database_busy.locked():
                    self.object_to(f"replica {replica.number} does not start: {error}")
                self._count("(no start without the database)")
                elsewhere = False
            else:
                self.note(f"{replica.name} is {replica.server.mark}, process {replica.server.process.pid}")
                return

    def _bury(self, server: DatabaseServer) -> None:
        """Looks how a server has ended, and whether anything is left of it."""
        code = server.process.wait(60)
        excuses = self._excuses.get(server.mark, set())
        match code:
            case -9:
                holds = "killed" in excuses
            case 0:
                holds = "terminated" in excuses
            case 1:
                holds = bool(excuses) and bool(server.said("lease_lost"))
            case _:
                holds = False
        self.note(f"{server.mark} ended with {code}")
        with self._lock:
            self.exits[f"{code}"] += 1
        if not holds:
            self.object_to(f"a server ended with {code} after {sorted(excuses)}: {server.tail()}")
        try:
            server.buried()
        except AssertionError as error:
            self.object_to(f"processes outlived the server: {error}")
        finally:
            self._look_at_log(server)
            server._end_by_force()

    def _look_at_log(self, server: DatabaseServer) -> None:
        """Keeps what the server has written, and objects to errors of its own."""
        entries = list(server.log)
        server.log.clear()
        with (self.folder / f"log-{server.mark}").open("a") as file:
            file.writelines(f"{entry}\n" for entry in [*entries, *server.noise])
        for entry in entries:
            if "exc_info" in entry or "exception" in entry:
                self.object_to(f"{server.mark} logged {entry}")
        # A worker whose server is gone may complain about a closed connection.
        if server.process.poll() in {None, 0} and any("Traceback" in line for line in server.noise):
            self.object_to(f"{server.mark} printed {''.join(server.noise)}")
        server.noise.clear()

    # The end of a round

    def _at_rest(self, replica: Replica, call: Callable[[Replica], _T]) -> _T:
        """Calls a replica that no fault strikes any more; earlier ones may still make it exit."""
        while True:
            try:
                return call(replica)
            except grpc.RpcError as error:
                end = time.monotonic() + 10
                while replica.is_alive and time.monotonic() < end:
                    threading.Event().wait(0.05)
                if replica.is_alive:
                    details = f"{error.code()}: {error.details()}"
                    raise AssertionError(f"{replica.name} lives, and a call failed: {details}") from error
                self.note(f"{replica.name} ended at rest: {error.code()}: {error.details()}")
                self._revive(replica)

    def _check(self) -> None:
        for replica in self.replicas:
            self._at_rest(replica, lambda one: until(lambda: serves(one.server), one.server.tail))
        chance = self._random("check")
        self._follow(chance.sample(sorted(self._read), min(READ_AGAIN, len(self._read))), chance)
        self._follow_new(chance)
        for mark in self._marks.values():
            try:
                gone(mark, 0)
            except AssertionError as error:
                self.object_to(f"processes outlived their run: {error}")
        # The workers of a starved server may end a run although it has renewed its lease at last.
        starved = {mark for mark, excuses in self._excuses.items() if STARVED in excuses}
        alive = {replica.server.mark for replica in self.replicas if replica.is_alive}
        self.history.alive = alive - starved
        for replica in self.replicas:
            self._look_at_log(replica.server)
            replica.close_channels()
        found = [one for one in violations(self.history) if one not in self._known]
        self._known |= set(found)
        for violation in found:
            self.object_to(violation)
        # One reading of each run is kept, for those of later rounds.
        self._read = {one.run_id: one for one in reversed(self.history.readings)}
        self.history.readings = list(self._read.values())
        self._marks.clear()

    def _lists(self) -> Iterator[tuple[Replica, list[pb.Run]]]:
        for replica in self.replicas:
            runs = self._at_rest(replica, lambda one: [run for page in listed(one.stub) for run in page.runs])
            yield replica, runs

    def _follow_new(self, chance: random.Random) -> None:
        """Reads all runs of this round, until there is no other one.

        A Start whose caller has given up may still be on its way to the database.
        """
        followed = set(self._read)
        while True:
            # First the effects: each of them is of a run that is listed then.
            self.history.effects = list(effects(self._effects.read_text().splitlines()))
            self.history.listed = {replica.name: runs for replica, runs in self._lists()}
            new = self.history.runs.keys() - followed
            if not new:
                return
            self._follow(sorted(new), chance)
            followed |= new

    def _follow(self, run_ids: Sequence[str], chance: random.Random) -> None:
        """Reads runs at each replica."""
        for run_id in run_ids:
            for replica in self.replicas:
                try:
                    run, events = self._at_rest(replica, lambda one, it=run_id: finish(one.stub, it))  # type: ignore[misc] # the default is a run id
                except AssertionError as error:
                    self.object_to(f"{run_id} at {replica.name}: {error}")
                    continue
                self.see(run, replica.name)
                self.read(Reading(run_id, replica.name, events))
            self._compare_notebook(chance.choice(self.replicas), run_id)

    def _compare_notebook(self, replica: Replica, run_id: str) -> None:
        """The notebook has all text that readers have."""
        node = self._at_rest(replica, lambda one: executed(one.stub, run_id))
        whole = "".join(printed(node, index) for index in range(len(node.cells)))
        events = next((one.events for one in self.history.readings if one.run_id == run_id), ())
        if whole != texts(list(events)):
            self.object_to(f"{run_id}: the notebook of {replica.name} has other text than the events")


class _Caller:
    """Starts runs, follows them and kills some of them, at replicas that it chooses by chance.

    Args:
        chaos: The replicas, and the records.
        chance: Decides what it does.
    """

    def __init__(self, chaos: ReplicaChaos, chance: random.Random) -> None:
        self._chaos = chaos
        self._chance = chance

    def act(self) -> None:
        """Handles one run after the other, until the faults are over."""
        while not self._chaos.is_calm:
            draft = self._chaos.draft(self._chance)
            if (run_id := self._start(draft)) is None:
                self._chaos.pause(self._chance.uniform(0, 0.5))
                continue
            self._handle(draft, run_id)

    def _replica(self) -> Replica:
        return self._chance.choice(self._chaos.replicas)

    def _start(self, draft: Draft) -> str | None:
        """Starts a run, at several replicas if it must; None: no answer, or the service is busy."""
        run_id = None
        for _ in range(self._chance.randint(1, 6)):
            # Two callers may send the same request, or one after it has lost its patience.
            count = 2 if draft.request.request_id and self._chance.random() < 0.25 else 1
            replicas = self._chance.sample(self._chaos.replicas, count)
            calls = [
                (replica.name, replica.stub.Start.future(draft.request, timeout=self._chance.uniform(0.5, 8)))
                for replica in replicas
            ]
            for name, call in calls:
                try:
                    run = call.result().run
                except grpc.RpcError as error:
                    self._chaos.failed("Start", name, error, BUSY)
                else:
                    self._chaos.started(draft, run, name)
                    run_id = run.run_id
            if run_id is not None and self._chance.random() < 0.8:
                return run_id
            if not draft.request.request_id:
                return run_id
            self._chaos.pause(self._chance.uniform(0, 0.3))
        return run_id

    def _handle(self, draft: Draft, run_id: str) -> None:
        """Follows a run to its end, and kills it on the way, or does not."""
        kills = self._chance.random() < 0.4
        with ThreadPoolExecutor(1) as pool:
            seconds, other = self._chance.uniform(0, 2.0), random.Random(self._chance.random())  # noqa: S311 - no secret
            killing = pool.submit(self._kill, draft, run_id, seconds, other) if kills else None
            self._follow(run_id)
            if killing is not None:
                killing.result()

    def _kill(self, draft: Draft, run_id: str, seconds: float, chance: random.Random) -> None:
        self._chaos.pause(seconds)
        grace, no_wait = chance.choice((0.0, 0.0, 0.3)), chance.random() < 0.2
        request = pb.KillRequest(run_id=run_id, grace_period=duration(grace), no_wait=no_wait)
        for _ in range(chance.randint(1, 8)):
            replica = chance.choice(self._chaos.replicas)
            name, stub = replica.name, replica.stub
            self._chaos.kill_asked(run_id)
            try:
                answer = stub.Kill(request, timeout=chance.uniform(1, 3 * LEASE))
            except grpc.RpcError as error:
                self._chaos.failed("Kill", name, error)
                self._chaos.pause(chance.uniform(0, 0.3))
                continue
            if not no_wait:
                self._chaos.killed(draft, answer.run, name)
            self._chaos.see(answer.run, name)
            return

    def _follow(self, run_id: str) -> None:
        """Follows a run to its end, at another replica whenever a stream breaks or takes long."""
        events: list[pb.ProgressResponse] = []
        end: float | None = None
        while not events or events[-1].run_changed.state not in TERMINAL:
            if self._chaos.is_over.is_set():
                return
            if self._chaos.is_calm:
                end = end or time.monotonic() + END_SECONDS
                if time.monotonic() > end:
                    self._chaos.object_to(f"{run_id} does not end: {events[-1:]}")
                    return
            replica = self._replica()
            try:
                self._read(run_id, replica.name, replica.stub, events)
            except grpc.RpcError as error:
                self._chaos.failed("Progress", replica.name, error)
                threading.Event().wait(self._chance.uniform(0, 0.1))
            except BrokenStreamError as error:
                self._chaos.object_to(f"{run_id} at {replica.name}: {error}")
                return
        self._chaos.read(Reading(run_id, "a caller", events))

    def _read(
        self, run_id: str, name: str, stub: rpc.NotebookRunnerStub, events: list[pb.ProgressResponse]
    ) -> None:
        after = events[-1].sequence if events else 0
        request = pb.ProgressRequest(run_id=run_id, after_sequence=after)
        stream = stub.Progress(request, timeout=self._chance.uniform(0.2, 3.0))
        try:
            for event in checked(stream, request):
                if event.HasField("heartbeat"):
                    continue
                events.append(event)
                self._chaos.see(event.run_changed, name)
        finally:
            stream.cancel()


def _threads_per_processor() -> float:
    """How many threads of the machine run or could, for each processor."""
    running, _, _ = Path("/proc/loadavg").read_text().split()[3].partition("/")
    return int(running) / (os.cpu_count() or 1)


@contextmanager
def _unless_busy(lock: threading.Lock) -> Iterator[bool]:
    """Holds a lock if nobody has it, and says whether that is so."""
    is_mine = lock.acquire(blocking=False)
    try:
        yield is_mine
    finally:
        if is_mine:
            lock.release()


@contextmanager
def _paused(pid: int) -> Iterator[None]:
    """Keeps a process from doing anything while the block goes on, unless it is dead."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
