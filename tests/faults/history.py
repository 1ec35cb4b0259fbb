"""What callers were told of runs while their state folder failed, and the proof that it stays true."""

import contextlib
from collections import Counter, defaultdict
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import grpc

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import executed, finish, follow, inline, listed, perform, texts
from tests.support.killable import KillableServer
from tests.support.notebooks import printed
from tests.support.progress import TERMINAL

CELLS, LINES = 3, 6
CELL = """
import os, time
with open({path!r}, "a") as file:
    file.write(os.environ["NOTEBOOK_RUNNER_RUN_ID"] + " {index}\\n")
for line in range({lines}):
    print("cell {index} line", line, "x" * 200, flush=True)
    time.sleep(0.01)
"""


class Told:
    """A run, and the events that a caller was told."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.events: list[pb.ProgressResponse] = []

    @property
    def has_ended(self) -> bool:
        """Whether the caller was told so."""
        return bool(self.events) and self.events[-1].run_changed.state in TERMINAL

    def follow(self, server: KillableServer) -> None:
        """Takes the events after those that the caller has, until the run has ended or the server has."""
        last = self.events[-1].sequence if self.events else 0
        stream = follow(server.stub, self.run_id, after_terminal=self.has_ended, after_sequence=last)
        with closing(stream) as events:
            self.events += (event for event in events if not event.HasField("heartbeat"))

    def read(self, server: KillableServer) -> None:
        """The same, of a server whose streams may fail."""
        with contextlib.suppress(grpc.RpcError):
            self.follow(server)


class History:
    """The runs of one state folder that have ended, and how."""

    def __init__(self, effects: Path) -> None:
        self._effects = effects
        self.ended: dict[str, pb.Run] = {}
        self.states: Counter[str] = Counter()
        effects.touch()

    def request(self, end: str = "") -> pb.StartRequest:
        """A request for a run whose cells leave something behind; `end` is what its last cell ends with."""
        cells = [CELL.format(path=str(self._effects), index=index, lines=LINES) for index in range(CELLS)]
        return inline(*cells[:-1], cells[-1] + end, request_id=uuid4().hex)

    def see(self, run: pb.Run) -> None:
        """Takes a run as a caller was told it; one that has ended never changes."""
        if run.state in TERMINAL:
            known = self.ended.setdefault(run.run_id, run)
            assert known == run, f"{run.run_id} had ended, and is another run now"

    def check(self, server: KillableServer, told: list[Told]) -> None:
        """Compares all that was told with what a server tells that can read and write again."""
        runs: dict[str, pb.Run] = {}
        for page in listed(server.stub):
            assert not page.damaged_run_ids
            runs |= {run.run_id: run for run in page.runs}
        assert not self.ended.keys() - runs.keys(), "runs are gone"
        for run in runs.values():
            self.see(run)
        for one in told:
            whole = finish(server.stub, one.run_id)
            assert whole.events == one.events, f"{one.run_id}: the events are not those that were told"
            assert whole.run == runs[one.run_id]
            self.states[pb.RunState.Name(whole.run.state).removeprefix("RUN_STATE_")] += 1
            node = executed(server.stub, one.run_id)
            said = "".join(printed(node, index) for index in range(CELLS))
            assert said == texts(whole.events), f"{one.run_id}: text that was told is not in the notebook"
        cells: dict[str, list[int]] = defaultdict(list)
        for line in self._effects.read_text().splitlines():
            run_id, _, index = line.partition(" ")
            cells[run_id].append(int(index))
        for run_id, indexes in cells.items():
            assert indexes == list(range(len(indexes))), f"{run_id} executed its cells as {indexes}"
            done = self.ended[run_id].cells_completed
            assert len(indexes) >= done, f"{run_id} tells of {done} cells, and executed {indexes}"
        assert perform(server.stub, inline("1", labels={"extra": "yes"})).run.state == pb.RUN_STATE_SUCCEEDED
