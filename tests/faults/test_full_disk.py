"""Full disks at random moments: what was told stays true, in this server and in the next.

`FULL_DISK_ROUNDS=500 pytest tests/faults/test_full_disk.py` plays longer; with FULL_DISK_SEED the same again.
"""

import contextlib
import os
import random
import resource
import secrets
import signal
import subprocess
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, executed, finish, follow, inline, perform, start, texts
from tests.support.errors import refusal_of
from tests.support.mortal import MortalServer, figure
from tests.support.notebooks import printed
from tests.support.progress import TERMINAL

pytestmark = pytest.mark.process_pool("a run that outlives its server is not told to have been interrupted")

ROUNDS = int(os.environ.get("FULL_DISK_ROUNDS", "12"))
SEED = int(os.environ.get("FULL_DISK_SEED", "0")) or secrets.randbits(32)
BATCH = 6
DISK_BYTES = 32 * 1024 * 1024
RUNS, CELLS, LINES = 3, 3, 6
LONGEST_DELAY = 1.0
FULL = (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL")
CELL = """
import os, time
with open({path!r}, "a") as file:
    file.write(os.environ["NOTEBOOK_RUNNER_RUN_ID"] + " {index}\\n")
for line in range({lines}):
    print("cell {index} line", line, "x" * 200, flush=True)
    time.sleep(0.01)
"""


class Disk:
    """A file system that can be filled, or, where none can be mounted, a limit that no file may pass."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        options = ["-o", f"size={DISK_BYTES},mode=700", "tmpfs", str(folder)]
        mounted = subprocess.run(["/bin/mount", "-t", "tmpfs", *options], capture_output=True, check=False)
        self.is_mounted = mounted.returncode == 0

    def fill(self, server: MortalServer, left: int) -> None:
        """Takes all room but some bytes."""
        if not self.is_mounted:
            _, most = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (left, most))
            return
        with (self.folder / "filler").open("ab", buffering=0) as file:
            size = 65536
            while size:
                try:
                    file.write(b"x" * size)
                except OSError:
                    size //= 2
            file.truncate(max(file.tell() - left, 0))

    def free(self, server: MortalServer) -> None:
        """Gives it back."""
        (self.folder / "filler").unlink(missing_ok=True)
        if not self.is_mounted:
            with contextlib.suppress(ProcessLookupError):
                _, most = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
                resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (most, most))

    def close(self) -> None:
        """Unmounts it."""
        if self.is_mounted:
            subprocess.run(["/bin/umount", str(self.folder)], check=True)


class Told:
    """A run, and the events that a caller was told."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.events: list[pb.ProgressResponse] = []

    @property
    def has_ended(self) -> bool:
        """Whether the caller was told so."""
        return bool(self.events) and self.events[-1].run_changed.state in TERMINAL

    def follow(self, server: MortalServer) -> None:
        """Takes the events after those that the caller has, until the run has ended or the server has."""
        last = self.events[-1].sequence if self.events else 0
        stream = follow(server.stub, self.run_id, after_terminal=self.has_ended, after_sequence=last)
        with closing(stream) as events:
            self.events += (event for event in events if not event.HasField("heartbeat"))


class Game:
    """A state folder on such a disk, its servers, and what they have told."""

    def __init__(self, disk: Disk, effects: Path) -> None:
        self._disk = disk
        self._effects = effects
        self._server: MortalServer | None = None
        self.ended: dict[str, pb.Run] = {}
        self.states: Counter[str] = Counter()
        effects.touch()

    def server(self) -> MortalServer:
        """The server that lives."""
        if self._server is None:
            options = ("--queue", str(RUNS), "--heartbeat-interval", "0.1", "--drain-timeout", "0.5")
            self._server = MortalServer(self._disk.folder / "state", *options)
            self._server.__enter__()
        return self._server

    def close(self) -> None:
        """Ends it as an operator does."""
        if self._server is not None:
            server, self._server = self._server, None
            server.__exit__()

    def play(self, chance: random.Random) -> None:
        """Runs, a full disk, and the end of the server or of the fullness; then all is compared."""
        server = self.server()
        told = [Told(start(server.stub, self._request()).run_id) for _ in range(RUNS)]
        moment = threading.Event()
        with ThreadPoolExecutor(RUNS + 1) as pool:
            readers = [pool.submit(self._read, server, one) for one in told]
            # The moments are what is random here; nothing is waited for.
            moment.wait(chance.uniform(0, LONGEST_DELAY))
            self._disk.fill(server, chance.choice([0, 0, 5000, 100_000, 1_000_000]))
            moment.wait(chance.uniform(0, LONGEST_DELAY))
            if chance.random() < 0.3:
                self._kill(server, chance.choice(told))
            self._refused(server)
            how = chance.choice(["room", "room", "stop", "kill"])
            if how == "stop":
                self.close()
            elif how == "kill":
                server.process.send_signal(signal.SIGKILL)
                server.buried()
                self._server = None
                server.__exit__()
            if chance.random() < 0.5:
                # It starts, and recovers what it can when there is room.
                self.server()
            self._disk.free(server)
            for reader in readers:
                reader.result()
        server = self.server()
        for one in told:
            one.follow(server)
        self._check(server, told)

    def _request(self) -> pb.StartRequest:
        cells = [CELL.format(path=str(self._effects), index=index, lines=LINES) for index in range(CELLS)]
        return inline(*cells, request_id=uuid4().hex)

    def _read(self, server: MortalServer, one: Told) -> None:
        # Only of a server that stops or dies may a stream fail.
        with contextlib.suppress(grpc.RpcError):
            one.follow(server)

    def _kill(self, server: MortalServer, one: Told) -> None:
        try:
            server.stub.Kill(pb.KillRequest(run_id=one.run_id), timeout=SECONDS)
        except grpc.RpcError as error:
            assert refusal_of(error).kind == FULL  # noqa: PT017 - it may also be answered

    def _refused(self, server: MortalServer) -> None:
        """A Start that is refused leaves nothing, which the check of effects and runs shows."""
        with contextlib.suppress(grpc.RpcError):
            server.stub.Start(inline("1", labels={"extra": "yes"}), timeout=SECONDS)

    def _check(self, server: MortalServer, told: list[Told]) -> None:
        runs = {
            run.run_id: run for run in server.stub.List(pb.ListRequest(page_size=1000), timeout=SECONDS).runs
        }
        for run_id, run in self.ended.items():
            assert runs[run_id] == run, f"{run_id} had ended, and is another run now"
        for one in told:
            whole = finish(server.stub, one.run_id)
            assert whole.events == one.events, f"{one.run_id}: the events are not those that were told"
            assert whole.run == runs[one.run_id]
            self.ended[one.run_id] = whole.run
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


@pytest.fixture(scope="module")
def game(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Game]:
    """One history for all rounds."""
    disk = Disk(tmp_path_factory.mktemp("disk"))
    one = Game(disk, tmp_path_factory.mktemp("effects") / "effects")
    try:
        yield one
    finally:
        figure(f"FULL_DISK_SEED={SEED} mounted={disk.is_mounted} {dict(one.states)}\n")
        one.close()
        disk.close()


@pytest.mark.parametrize("first", range(0, ROUNDS, BATCH))
def test_nothing_that_was_told_changes_on_a_full_disk(game: Game, first: int) -> None:
    """No end, no event and no text is another one later, and nothing that has ended is executed."""
    for number in range(first, min(first + BATCH, ROUNDS)):
        try:
            game.play(random.Random(f"{SEED} {number}"))  # noqa: S311 - no secret
        except (AssertionError, grpc.RpcError) as error:
            raise AssertionError(f"FULL_DISK_SEED={SEED}, round {number}: {error}") from error
