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
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.faults.history import History, Told
from tests.support.calls import SECONDS, inline, perform, start
from tests.support.errors import refusal_of, refused
from tests.support.killable import KillableServer, figure
from tests.support.polling import pause
from tests.support.processes import outlived
from tests.support.server import PROGRAM
from tests.support.warm import ON, kept

pytestmark = [
    pytest.mark.process_pool("a run outlives its server there, so it does not end as interrupted"),
    pytest.mark.state_folder("it fills the disk of a state folder"),
]

ROUNDS = int(os.environ.get("FULL_DISK_ROUNDS", "12"))
SEED = int(os.environ.get("FULL_DISK_SEED", "0")) or secrets.randbits(32)
BATCH = 6
# One history has the runs of all rounds, none of which is deleted: some 150 KiB a round.
DISK_BYTES = 32 * 1024 * 1024 + ROUNDS * 256 * 1024
RUNS = 3
LONGEST_DELAY = 1.0
FULL = (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL")


class Disk:
    """A file system that can be filled, or, where none can be mounted, a limit that no file may pass."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        options = ["-o", f"size={DISK_BYTES},mode=700", "tmpfs", str(folder)]
        mounted = subprocess.run(["/bin/mount", "-t", "tmpfs", *options], capture_output=True, check=False)
        self.is_mounted = mounted.returncode == 0

    @property
    def left(self) -> int:
        """How many bytes are free."""
        about = os.statvfs(self.folder)
        return about.f_bavail * about.f_frsize

    def fill(self, server: KillableServer, left: int) -> None:
        """Takes all room but some bytes."""
        if not self.is_mounted:
            _, most = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (left, most))
            return
        with (self.folder / "filler").open("ab", buffering=0) as file:
            size = 1024 * 1024
            while size:
                try:
                    file.write(b"x" * size)
                except OSError:
                    size //= 2
            file.truncate(max(file.tell() - left, 0))

    def free(self, server: KillableServer) -> None:
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


class Game:
    """A state folder on such a disk, its servers, and what they have told."""

    def __init__(self, disk: Disk, effects: Path) -> None:
        self._disk = disk
        self._server: KillableServer | None = None
        self.history = History(effects)

    def server(self) -> KillableServer:
        """The server that lives."""
        if self._server is None:
            options = ("--queue", str(RUNS), "--heartbeat-interval", "0.1", "--drain-timeout", "0.5")
            self._server = KillableServer(self._disk.folder / "state", *options)
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
        told = [Told(start(server.stub, self.history.request()).run_id) for _ in range(RUNS)]
        moment = threading.Event()
        with ThreadPoolExecutor(RUNS + 1) as pool:
            readers = [pool.submit(one.read, server) for one in told]
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
        self.history.check(server, told)

    def _kill(self, server: KillableServer, one: Told) -> None:
        try:
            server.stub.Kill(pb.KillRequest(run_id=one.run_id), timeout=SECONDS)
        except grpc.RpcError as error:
            assert refusal_of(error).kind == FULL  # noqa: PT017 - it may also be answered

    def _refused(self, server: KillableServer) -> None:
        """A Start that is refused leaves nothing, which the check of effects and runs shows."""
        with contextlib.suppress(grpc.RpcError):
            server.stub.Start(inline("1", labels={"extra": "yes"}), timeout=SECONDS)


@pytest.fixture(scope="module")
def game(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Game]:
    """One history for all rounds."""
    disk = Disk(tmp_path_factory.mktemp("disk"))
    one = Game(disk, tmp_path_factory.mktemp("effects") / "effects")
    try:
        yield one
    finally:
        figure(f"FULL_DISK_SEED={SEED} mounted={disk.is_mounted} {dict(one.history.states)}\n")
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


@pytest.mark.parametrize("left", [0, 20_000])
def test_a_first_start_on_a_full_disk_says_where_and_what_to_do(tmp_path: Path, left: int) -> None:
    """Neither SQLite's errors nor those of an open file name a path."""
    state = tmp_path / "disk" / "state"
    state.parent.mkdir()
    disk = Disk(state.parent)
    command = [str(PROGRAM), "--listen", "127.0.0.1:0", "--state-dir", str(state), "--warm-kernels", "none"]
    if disk.is_mounted:
        size = disk.left - left
        with (disk.folder / "filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    else:
        command[:0] = ["prlimit", f"--fsize={max(left, 4096)}", "--"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    finally:
        disk.close()
    assert done.returncode == 1
    assert f"--state-dir {state} cannot be used: " in done.stderr
    assert ("Free some space" if disk.is_mounted else "choose another folder.") in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_removed_beside_the_state_folder_frees_its_space(tmp_path: Path) -> None:
    """The rules of a warm kernel keep it, and no run comes that would have the kernel replaced."""
    disk = Disk(tmp_path)
    filler = disk.folder / "filler"
    try:
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, DISK_BYTES - 4 * 1024 * 1024)
        # No folder of the test's is open as a whole, so its entries have rules.
        environment = {"NOTEBOOK_RUNNER_WRITABLE_FOLDERS": ""}
        with KillableServer(disk.folder / "state", *ON, environment=environment) as server:
            _, spare = kept(server)
            if disk.is_mounted:
                assert refused(lambda: start(server.stub, inline("1"))).kind == FULL
            filler.unlink()
            assert outlived([spare], SECONDS) == []
            # Linux frees what an ended process kept some time later.
            end = time.monotonic() + SECONDS
            while disk.left < DISK_BYTES // 2:
                assert time.monotonic() < end, f"{disk.left} bytes are free"
                pause()
            assert perform(server.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED
    finally:
        disk.close()
