"""Injects faults into a server, and holds its history against what callers were told."""

import contextlib
import os
import random
import signal
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

import grpc

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc
from notebook_runner_server.api.tokens import add_new
from tests.faults.crashing_server import POINTS, VARIABLE
from tests.support.calls import duration, executed, finish, follow, inline, listed, start
from tests.support.killable import (
    GONE_SECONDS,
    RUN_MARK,
    KillableServer,
    gone,
    kernel_of,
    new_mark,
    worker_of,
)
from tests.support.notebooks import printed
from tests.support.processes import outlived
from tests.support.progress import TERMINAL
from tests.support.retries import EVERY, check_chains, retry
from tests.support.secure import authorized

PROGRAM = [sys.executable, str(Path(__file__).with_name("crashing_server.py"))]
CELLS, LINES = 3, 5
# Until a fault at a random moment: from before the first Start to after the last run.
LONGEST_DELAY = 1.5
# How often a named point may be passed before the server dies there; a round comes to it so often.
HITS = {
    "before-commit": 24,
    "after-commit": 24,
    "after-answer": 2,
    "cell-finished": 6,
    "last-write": 2,
    "folder-begun": 3,
    "folder-written": 3,
    "inputs-left": 2,
}
# How many of the runs have a retry policy, and how many of those crash once.
RETRIED, CRASHES = 0.8, 0.5
TOKENS = "NOTEBOOK_RUNNER_TOKENS_FILE"
OWNERS = ("ada", "bob")
# Sees the runs of all owners.
EVERYONE = "everyone"
CRASH = "NBR_CRASH"
CELL = """
import os, subprocess, time
with open({path!r}, "a") as file:
    file.write(os.environ["NOTEBOOK_RUNNER_RUN_ID"] + " {index}\\n")
# A kernel ends by itself when its parent is gone; this does not.
{index} or subprocess.Popen(["sleep", os.environ["NBR_RUN_MARK"]], start_new_session=True)
for line in range({lines}):
    print("cell {index} line", line, flush=True)
    time.sleep(0.01)
# The first attempt that comes here crashes.
if {index} == 1 and "NBR_CRASH" in os.environ and not os.path.exists(os.environ["NBR_CRASH"]):
    open(os.environ["NBR_CRASH"], "x").close()
    os.kill(os.getpid(), 9)
"""


def reference(index: int) -> str:
    """All that a cell prints when nothing happens to it."""
    return "".join(f"cell {index} line {line}\n" for line in range(LINES))


@dataclass
class Received:
    """What callers were told of one run."""

    request: pb.StartRequest
    owner: str
    run_id: str = ""
    events: list[pb.ProgressResponse] = field(default_factory=list)
    successor: "Received | None" = None

    @property
    def last(self) -> pb.ProgressResponse:
        """The last event."""
        return self.events[-1] if self.events else pb.ProgressResponse()

    def attempts(self) -> Iterator["Received"]:
        """This run and those that repeat it, as far as callers were told."""
        yield self
        if self.successor is not None:
            yield from self.successor.attempts()


@dataclass
class Chaos:
    """A state folder whose servers die, what callers were told, and what was found wrong."""

    signals: ClassVar[Sequence[str]] = ("server", "worker", "kernel")

    folder: Path
    seed: int
    program: list[str] = field(default_factory=lambda: PROGRAM)
    options: tuple[str, ...] = ("--queue", "4")
    environment: Mapping[str, str] = field(default_factory=dict)
    has_retries: bool = False
    gone_seconds: float = GONE_SECONDS
    machine: int = 0
    rounds: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    acknowledged: dict[str, Received] = field(default_factory=dict)
    ended: dict[str, pb.Run] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 - no secret
        self._effects = self.folder / "effects"
        self._effects.touch()
        self._tokens_file = self.folder / "tokens"
        scopes = {EVERYONE: "read-all", **dict.fromkeys(OWNERS, "run")}
        self._tokens = {name: add_new(self._tokens_file, name, scope) for name, scope in scopes.items()}
        self._order = self.folder / "order"
        self._server: KillableServer | None = None

    def play(self, fault: str = "", hits: int = 0) -> None:
        """One round: two runs, one fault (this one, or any), and the check of all that is known.

        `hits` says at which passing of a named point the server dies; 0: at any.
        """
        fault = fault or self._random.choice([*self.signals, *POINTS])
        self.rounds += 1
        self.faults[fault] += 1
        before = len(self.violations)
        told = [self._told(), self._told()]
        self._injure(fault, hits, told)
        server = self._answering()
        for one in told:
            self._again(server, one)
        self._check(server, [attempt for one in told for attempt in one.attempts()])
        if len(self.violations) > before:
            self.violations.append(f"(round {self.rounds}, {fault})")

    def close(self) -> None:
        """Ends the last server as an operator does."""
        if self._server is not None:
            self._server.__exit__(None, None, None)
            self._server = None

    def summary(self) -> str:
        """Rounds, faults by kind, and what was found wrong."""
        kinds = ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items()))
        states = ", ".join(f"{name} {count}" for name, count in sorted(self.states.items()))
        retries = sum(bool(run.retry_of) for run in self.ended.values())
        lines = [f"chaos: seed {self.seed}, {self.rounds} rounds, {len(self.ended)} runs ({states})"]
        lines[0] += f", {retries} of them retries"
        lines += [f"  faults: {kinds}", f"  violations: {len(self.violations)}", *self.violations]
        return "\n".join(lines)

    def _told(self) -> Received:
        sources = [CELL.format(path=str(self._effects), index=n, lines=LINES) for n in range(CELLS)]
        mark = new_mark()
        request = inline(*sources, request_id=uuid4().hex, environment={RUN_MARK: mark})
        if self.has_retries and self._random.random() < RETRIED:
            backoff = duration(self._random.choice((0, 0.2)))
            states = self._random.choice(((), EVERY))
            policy = retry(self._random.randint(1, 3), *states, backoff=backoff, max_backoff=backoff)
            request.retry.CopyFrom(policy)
            if self._random.random() < CRASHES:
                request.environment[CRASH] = str(self.folder / f"crashed-{mark}")
        return Received(request, self._random.choice(OWNERS))

    def stub(self, server: KillableServer, caller: str = EVERYONE) -> rpc.NotebookRunnerStub:
        """What makes the calls of a caller."""
        return authorized(server.channel, self._tokens[caller])

    def _alive(self) -> KillableServer:
        """The server that goes on, or the next one."""
        if self._server is not None and self._server.process.poll() is not None:
            self._bury(self._server)
        if self._server is None:
            told = {VARIABLE: str(self._order), TOKENS: str(self._tokens_file), **self.environment}
            server = KillableServer(
                self.folder / f"state-{self.machine}", *self.options, program=self.program, environment=told
            )
            self._server = server.__enter__()
        return self._server

    def _answering(self) -> KillableServer:
        """The same, when one that is dying at this moment is dead."""
        server = self._alive()
        try:
            self.stub(server).List(pb.ListRequest(page_size=1), timeout=60)
        except grpc.RpcError:
            # Only of a server that dies may a call fail.
            server.process.wait(60)
        return self._alive()

    def _bury(self, server: KillableServer) -> None:
        """Looks whether anything is left of a server that died."""
        self._server = None
        with contextlib.ExitStack() as stack:
            stack.callback(server._end_by_force)
            try:
                server.buried(self.gone_seconds)
            except AssertionError as error:
                self.violations.append(f"processes outlived the server: {error}")

    def _injure(self, fault: str, hits: int, told: list[Received]) -> None:
        """Starts and follows the runs, and lets the fault happen meanwhile."""
        is_point = fault in POINTS
        server = self._alive()
        if is_point:
            draft = self._order.with_name("draft")
            draft.write_text(f"{fault}:{hits or self._random.randint(1, HITS[fault])}")
            draft.rename(self._order)
        delay = self._random.uniform(0, LONGEST_DELAY)
        calls = threading.Event()
        with ThreadPoolExecutor(len(told)) as pool:
            callers = [pool.submit(self._call, server, one) for one in told]
            if not is_point:
                # The moment is what is random here; nothing is waited for.
                calls.wait(delay)
                self._strike(server, fault)
            for caller in callers:
                caller.result()
        self._order.unlink(missing_ok=True)

    def _strike(self, server: KillableServer, fault: str) -> None:
        """SIGKILL for the server, its worker, or its kernel when there is one."""
        with contextlib.suppress(LookupError, ProcessLookupError):
            os.kill(_victim(server, fault), signal.SIGKILL)
        if fault == "server":
            server.process.wait(60)

    def _call(self, server: KillableServer, one: Received) -> None:
        """A caller: starts its run and follows it, as long as the server lives."""
        try:
            stub = self.stub(server, one.owner)
            one.run_id = start(stub, one.request).run_id
            self._follow(stub, one)
        except grpc.RpcError as error:
            self._failed(server, one, error)
        except AssertionError as error:
            self.violations.append(f"{one.run_id}: {error}")

    def _failed(self, server: KillableServer, _: Received, error: grpc.RpcError) -> None:
        """A call may fail only because the server died."""
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            self.violations.append(f"a caller was told {error.code()}: {error.details()}")
        assert outlived([server.process.pid], 60) == [], "the server lives, and a call failed"

    def _follow(self, stub: rpc.NotebookRunnerStub, one: Received) -> None:
        """Takes the events after those that the caller has, also of the runs that repeat this one."""
        over = one.last.run_changed.state in TERMINAL
        rest = follow(stub, one.run_id, after_terminal=over, after_sequence=one.last.sequence)
        with closing(rest) as events:
            one.events += (event for event in events if not event.HasField("heartbeat"))
        if next_id := one.last.run_changed.retried_by:
            one.successor = one.successor or Received(one.request, one.owner, next_id)
            self._follow(stub, one.successor)

    def _again(self, server: KillableServer, one: Received) -> None:
        """The caller comes back: starts once more what it may have started, and follows to the end."""
        stub = self.stub(server, one.owner)
        run = start(stub, one.request)
        if one.run_id not in {"", run.run_id}:
            self.violations.append(f"{one.run_id} is acknowledged, and its request made {run.run_id}")
        one.run_id = run.run_id
        try:
            self._follow(stub, one)
        except AssertionError as error:
            self.violations.append(f"{one.run_id}: {error}")
        self.acknowledged |= {attempt.run_id: attempt for attempt in one.attempts()}

    def _check(self, server: KillableServer, told: list[Received]) -> None:
        runs = {run.run_id: run for page in listed(self.stub(server)) for run in page.runs}
        if set(runs) != set(self.acknowledged):
            self.violations.append(f"found and acknowledged differ: {set(runs) ^ set(self.acknowledged)}")
        changed = [one for one, run in self.ended.items() if runs.get(one) != run]
        self.violations += [f"{one} had ended, and is another run now" for one in changed]
        for one in told:
            self.ended[one.run_id] = runs[one.run_id]
            self.states[pb.RunState.Name(runs[one.run_id].state).removeprefix("RUN_STATE_")] += 1
            try:
                self._check_run(server, one, runs[one.run_id])
            except AssertionError as error:
                self.violations.append(f"{one.run_id}, read again: {error}")
        self.violations += check_chains(runs)
        self._check_effects()
        try:
            for one in told:
                gone(one.request.environment[RUN_MARK], 0.5)
        except AssertionError as error:
            self.violations.append(f"processes outlived their run: {error}")

    def _check_run(self, server: KillableServer, one: Received, run: pb.Run) -> None:
        """What is in the history is what the caller saw, and outputs are a prefix of the reference."""
        stub = self.stub(server, one.owner)
        whole = finish(stub, one.run_id).events
        if run.owner != one.owner:
            self.violations.append(f"{one.run_id} of {one.owner} belongs to {run.owner!r}")
        if whole != one.events:
            self.violations.append(f"{one.run_id}: the events are not those that were seen")
        if whole[-1].run_changed != run:
            self.violations.append(f"{one.run_id}: the terminal event is not the run")
        told: dict[int, str] = defaultdict(str)
        for event in whole:
            told[event.cell_output.cell_index] += event.cell_output.stream.text
        outcomes = {
            event.cell_finished.cell_index: event.cell_finished.outcome
            for event in whole
            if event.HasField("cell_finished")
        }
        node = executed(stub, one.run_id)
        for index in range(CELLS):
            text, done = printed(node, index), outcomes.get(index) == pb.CELL_OUTCOME_SUCCEEDED
            holds = reference(index).startswith(text) and text.startswith(told[index])
            if not holds or (done and not reference(index) == text == told[index]):
                self.violations.append(f"{one.run_id}: cell {index} has {text!r}, told {told[index]!r}")

    def _check_effects(self) -> None:
        """No cell was executed twice, none out of order, none of a run that nobody knows."""
        cells: dict[str, list[int]] = defaultdict(list)
        for line in self._effects.read_text().splitlines():
            run_id, _, index = line.partition(" ")
            cells[run_id].append(int(index))
        for run_id, indexes in cells.items():
            if run_id not in self.acknowledged:
                self.violations.append(f"{run_id} was executed, and nobody knows it")
            elif indexes != list(range(len(indexes))):
                self.violations.append(f"{run_id} executed its cells as {indexes}")
            elif run_id in self.ended and len(indexes) < self.ended[run_id].cells_completed:
                self.violations.append(f"{run_id} tells of cells that were not executed: {indexes}")


def _victim(server: KillableServer, fault: str) -> int:
    if fault == "server":
        return server.process.pid
    return worker_of(server) if fault == "worker" else kernel_of(server)
