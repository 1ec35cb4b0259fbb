"""A state folder whose file operations fail at random calls: what was told stays true in every later server.

`IO_FAULT_ROUNDS=500 pytest tests/faults/test_io_faults.py` plays longer; with IO_FAULT_SEED the same again.
"""

import contextlib
import errno
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.faults.history import History, Told
from tests.faults.io_faults import ANSWERS, FOR_EVER, IoFaults, Kind, Way, needs_compiler
from tests.support.calls import SECONDS, finish, inline, listed, perform, start
from tests.support.errors import refusal_of
from tests.support.killable import KillableServer, figure

pytestmark = [
    pytest.mark.process_pool("a run outlives its server there, so it does not end as interrupted"),
    needs_compiler,
    pytest.mark.state_folder("it lets operations on the files of a state folder fail"),
]

ROUNDS = int(os.environ.get("IO_FAULT_ROUNDS", "12"))
SEED = int(os.environ.get("IO_FAULT_SEED", "0")) or secrets.randbits(32)
BATCH = 6
QUEUE = 3
LONGEST_DELAY = 1.0
PROGRAM = [sys.executable, "-m", "notebook_runner_server"]
OPTIONS = ("--queue", str(QUEUE), "--heartbeat-interval", "0.1", "--drain-timeout", "0.5")
_T = TypeVar("_T")
# A run is started with one of these at the end of its last cell.
ENDS = ["", "", "1 / 0", "import os; os._exit(3)"]
# A disk that does not answer to a read is as damaged to SQLite as one that answers something else.
REFUSALS = {
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL"),
    (grpc.StatusCode.DATA_LOSS, "RUN_DAMAGED"),
}


class Game:
    """A state folder, its servers, and what they have told."""

    def __init__(self, folder: Path) -> None:
        self._state = folder / "state"
        self._faults = IoFaults(folder, self._state)
        self._server: KillableServer | None = None
        self.history = History(folder / "effects")
        self.struck: Counter[str] = Counter()
        self.servers: list[KillableServer] = []

    def server(self) -> KillableServer:
        """The server that lives."""
        if self._server is None:
            server = KillableServer(
                self._state, *OPTIONS, program=PROGRAM, environment=self._faults.environment
            )
            self.servers.append(server)
            self._server = server.__enter__()
        return self._server

    def close(self) -> None:
        """Ends it as an operator does."""
        self._faults.lift()
        self._leave()

    def _leave(self, signal_number: int = signal.SIGTERM) -> None:
        """Ends the server that lives, if one does."""
        if self._server is None:
            return
        server, self._server = self._server, None
        if signal_number == signal.SIGKILL:
            server.die()
        server.__exit__()

    def play(self, chance: random.Random) -> None:
        """Runs, failing calls, the end of the server and perhaps a start that fails; then all is compared."""
        server = self.server()
        self.servers = [server]
        told = [self._started(server, chance) for _ in range(2)]
        late = self.history.request(chance.choice(ENDS))
        moment = threading.Event()
        with ThreadPoolExecutor(QUEUE + 1) as pool:
            readers = [pool.submit(one.read, server) for one in told]
            # The moments are what is random here; nothing is waited for.
            moment.wait(chance.uniform(0, LONGEST_DELAY))
            before = self._faults.struck
            fault = self._inject(chance)
            acknowledged = _answer(lambda: start(server.stub, late))
            if acknowledged is not None:
                told.append(Told(acknowledged.run_id))
                readers.append(pool.submit(told[-1].read, server))
            moment.wait(chance.uniform(0, LONGEST_DELAY))
            if chance.random() < 0.4:
                request = pb.KillRequest(run_id=chance.choice(told).run_id)
                killed = _answer(lambda: server.stub.Kill(request, timeout=SECONDS))
                self.history.see(killed.run if killed is not None else pb.Run())
            self._look(server)
            if chance.random() < 0.5:
                self._faults.lift()
                moment.wait(chance.uniform(0, 2 * LONGEST_DELAY))
                self._look(server)
            self._leave(chance.choice([signal.SIGTERM, signal.SIGKILL]))
            for reader in readers:
                reader.result()
        for _ in range(chance.choice([0, 0, 1, 2])):
            self._start_that_may_fail(chance)
        self._faults.lift()
        self.struck[fault] += self._faults.struck - before
        server = self.server()
        aside = {path.name for path in self._state.glob("damaged-*/runs/*")}
        assert not aside & (self.history.ended.keys() | {one.run_id for one in told}), "runs were set aside"
        runs = [run for page in listed(server.stub) for run in page.runs]
        if acknowledged is None:
            left = [run.run_id for run in runs if run.request_id == late.request_id]
            assert not left, "the Start was refused, and left a run"
        told += [Told(start(server.stub, late).run_id)] * (acknowledged is None)
        for one in told:
            one.follow(server)
        self.history.check(server, told)

    def _started(self, server: KillableServer, chance: random.Random) -> Told:
        return Told(start(server.stub, self.history.request(chance.choice(ENDS))).run_id)

    def _inject(self, chance: random.Random) -> str:
        kinds, way, error = chance.choice(ANSWERS)
        after, times = chance.choice([0, 0, 3, 30, 100]), chance.choice([1, 1, 3, 20, FOR_EVER])
        self._faults.inject(kinds, way, error, after=chance.randint(0, after), times=times)
        names = "any" if len(kinds) > 1 else kinds[0].name.lower()
        return f"{way.name.lower()} {names} {os.strerror(error)}"

    def _look(self, server: KillableServer) -> None:
        """A caller who lists runs, and remembers those that have ended."""
        with contextlib.suppress(grpc.RpcError):
            for page in listed(server.stub):
                for run in page.runs:
                    self.history.see(run)

    def _start_that_may_fail(self, chance: random.Random) -> None:
        """A server that starts meanwhile serves, or ends and says why."""
        before = self._faults.struck
        self._inject(chance)
        try:
            server = self.server()
        except AssertionError as error:
            if "\nError: " not in str(error) or self._faults.struck == before:
                raise
        else:
            self._look(server)
            self._leave(chance.choice([signal.SIGTERM, signal.SIGKILL]))


def _answer(call: Callable[[], _T]) -> _T | None:
    """The answer to a call that may be refused; None: it was."""
    try:
        return call()
    except grpc.RpcError as error:
        assert refusal_of(error).kind in REFUSALS  # noqa: PT017 - it may also be answered
        return None


CALLS = """
import os, sys
folder = sys.argv[1]
os.makedirs(folder, exist_ok=True)
file = os.open(f"{folder}/file", os.O_RDWR | os.O_CREAT)
folder_itself = os.open(folder, os.O_RDONLY)
calls = {
    "OPEN": lambda: os.open("other", os.O_WRONLY | os.O_CREAT, dir_fd=folder_itself),
    "WRITE": lambda: os.pwrite(file, b"x" * 100, 0),
    "SYNC": lambda: os.fsync(file),
    "TRUNCATE": lambda: os.ftruncate(file, 100),
    "RENAME": lambda: os.rename(f"{folder}/file", f"{folder}/file"),
    "MAKE": lambda: os.mkdir(f"{folder}/new"),
    "REMOVE": lambda: os.rmdir(f"{folder}/new"),
    "READ": lambda: os.pread(file, 1, 0),
}
print("ready", flush=True)
input()
for name, call in calls.items():
    try:
        result = call()
    except OSError as error:
        print(name, error.strerror)
    else:
        if name == "WRITE" and result < 100:
            print(name, result)
child = os.fork()
if not child:
    os.fsync(file)
    os._exit(0)
sys.exit(os.waitpid(child, 0)[1])
"""


def calls(faults: IoFaults, folder: Path, inject: Callable[[], None]) -> dict[str, str]:
    """What a process with the library was told by the calls that it made after the faults were injected."""
    command = [sys.executable, "-c", CALLS, str(folder)]
    environment = {**os.environ, **faults.environment}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        inject()
        output, _ = process.communicate("\n", SECONDS)
    faults.lift()
    assert process.returncode == 0
    return dict(line.split(" ", 1) for line in output.splitlines())


def test_every_kind_of_call_can_be_made_to_fail(tmp_path: Path) -> None:
    """Each fails alone and with its error, in that folder and that process only; writes can be cut."""
    faults = IoFaults(tmp_path, tmp_path / "state")
    failure = os.strerror(errno.EIO)
    for kind in Kind:
        inject = partial(faults.inject, [kind], Way.FAIL, errno.EIO, after=0, times=FOR_EVER)
        expected = {kind.name: failure}
        # Nothing is there then that could be removed.
        expected |= {"REMOVE": os.strerror(errno.ENOENT)} if kind is Kind.MAKE else {}
        assert calls(faults, tmp_path / "state" / kind.name, inject) == expected
        assert calls(faults, tmp_path / "state-beside" / kind.name, inject).keys() <= {"REMOVE"}
    once = partial(faults.inject, [Kind.WRITE], after=0, times=1)
    assert calls(faults, tmp_path / "state", partial(once, Way.SHORTEN, 0)) == {"WRITE": "50"}
    assert calls(faults, tmp_path / "state", partial(once, Way.TEAR, errno.EIO)) == {"WRITE": failure}
    assert faults.struck == len(Kind) + 2


@pytest.fixture(scope="module")
def game(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Game]:
    """One history for all rounds."""
    one = Game(tmp_path_factory.mktemp("io"))
    try:
        yield one
    finally:
        figure(f"IO_FAULT_SEED={SEED} {dict(one.history.states)}")
        figure(f"calls that failed: {dict(sorted(one.struck.items()))}\n")
        one.close()


@pytest.mark.parametrize("first", range(0, ROUNDS, BATCH))
def test_nothing_that_was_told_changes_when_files_fail(game: Game, first: int) -> None:
    """No end, no event and no text is another one later, and nothing that has ended is executed."""
    for number in range(first, min(first + BATCH, ROUNDS)):
        try:
            game.play(random.Random(f"{SEED} {number}"))  # noqa: S311 - no secret
        except (AssertionError, grpc.RpcError) as error:
            logs = "\n---\n".join(server.tail() for server in game.servers)
            raise AssertionError(f"IO_FAULT_SEED={SEED}, round {number}: {error}\n{logs}") from error


def test_a_server_stops_where_nothing_can_be_removed(tmp_path: Path) -> None:
    """It ends orderly, and what it leaves is removed by the next one."""
    faults = IoFaults(tmp_path, tmp_path / "state")
    for _ in range(2):
        with KillableServer(tmp_path / "state", program=PROGRAM, environment=faults.environment):
            faults.inject([Kind.REMOVE], Way.FAIL, errno.EIO, after=0, times=FOR_EVER)
        assert faults.struck
        faults.lift()


@pytest.mark.parametrize("kind", [Kind.WRITE, Kind.READ])
def test_a_server_that_cannot_open_its_history_says_so(tmp_path: Path, kind: Kind) -> None:
    """It ends with one sentence, and the next one serves what was there."""
    faults = IoFaults(tmp_path, tmp_path / "state")
    with KillableServer(tmp_path / "state") as server:
        run = perform(server.stub, inline("1")).run
        server.die()
    faults.inject([kind], Way.FAIL, errno.EIO, after=1, times=FOR_EVER)
    broken = KillableServer(tmp_path / "state", program=PROGRAM, environment=faults.environment)
    with pytest.raises(AssertionError, match="\nError: "), broken:
        pass
    with KillableServer(tmp_path / "state") as server:
        assert finish(server.stub, run.run_id).run == run
