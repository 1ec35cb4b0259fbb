"""Servers that die: started again on the same state folder, with the proof of what is left of them."""

import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

from typing_extensions import override

from tests.support.calls import history
from tests.support.polling import pause
from tests.support.processes import outlived, parent
from tests.support.server import Server

RUN_MARK = "NBR_RUN_MARK"
# Far more than the processes of a server take to end after its death: a starved machine is slow.
GONE_SECONDS = 60.0
# In the command line of a worker: Python's own.
WORKER = "spawn_main"
# In the state folder: a folder for each run.
FOLDERS = "runs"
FORGOTTEN_SECONDS = 60.0


class KillableServer(Server):
    """A server that may be dead when the block is left; one that lives is ended as every other.

    `program` is started in the place of the server's own command.
    """

    def __init__(
        self,
        state_dir: Path,
        *options: str,
        program: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(state_dir, *options, environment=environment)
        if program:
            self._command[:1] = program

    @override
    def __exit__(self, *details: object) -> None:
        if self.process.poll() is None:
            super().__exit__(*details)
            return
        self.channel.close()
        self._end_by_force()

    def die(self) -> float:
        """Kills the server; answers the seconds until no process of it was left."""
        self.process.kill()
        return self.buried()

    def buried(self, seconds: float = GONE_SECONDS) -> float:
        """Waits for a server that dies; answers the seconds from then until no process was left."""
        self.process.wait(60)
        self.channel.close()
        return gone(self.mark, seconds)


def forgotten(server: Server, *run_ids: str) -> None:
    """Waits until runs are forgotten, folder and all."""
    end = time.monotonic() + FORGOTTEN_SECONDS
    while left := set(run_ids) & {*history(server.stub), *os.listdir(server.state_dir / FOLDERS)}:
        assert time.monotonic() < end, f"not forgotten after {FORGOTTEN_SECONDS} s: {left}"
        pause()


def figure(text: str) -> None:
    """Tells something that was measured; pytest shows it with -s."""
    sys.stdout.write(f"\n  {text}")


def new_mark() -> str:
    """A mark that fits in an environment, and in an argument of `sleep`."""
    return f"100000.{uuid4().int % 10**15:015d}"


def remains(mark: str) -> dict[int, str]:
    """Every live process that carries the mark in its environment or in its arguments."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            arguments = _read(entry / "cmdline")
            if mark.encode() in arguments or mark.encode() in _read(entry / "environ"):
                found[int(entry.name)] = arguments.replace(b"\0", b" ").decode(errors="replace")
    return found


def gone(mark: str, seconds: float = GONE_SECONDS) -> float:
    """Waits until nothing carries the mark, at most so long; answers the seconds it took."""
    begin = time.monotonic()
    while left := remains(mark):
        rest = begin + seconds - time.monotonic()
        assert rest > 0, f"left after {seconds} s: {left}"
        outlived(left, rest)
    return time.monotonic() - begin


def children(pid: int) -> dict[int, str]:
    """The direct children of a process that live, with their command lines."""
    found: dict[int, str] = {}
    for task in _listed(Path(f"/proc/{pid}/task")):
        for child in _read(task / "children").split():
            arguments = _read(Path("/proc") / child.decode() / "cmdline")
            if arguments:
                found[int(child)] = arguments.replace(b"\0", b" ").decode(errors="replace")
    return found


def zombies(pid: int) -> int:
    """How many direct children of a process have ended and were not reaped."""
    listed = [
        child for task in _listed(Path(f"/proc/{pid}/task")) for child in _read(task / "children").split()
    ]
    return len(listed) - len(children(pid))


def worker_of(server: Server) -> int:
    """The process id of the server's one worker; on a cluster, of the one that has its one run.

    LookupError: there is none now. A number in its place would be dangerous: 0 is the test itself.
    """
    if server.is_on_cluster:
        return _above(_working_for(os.listdir(server.state_dir / FOLDERS)))
    below = children(server.process.pid)
    for pid, arguments in below.items():
        if WORKER in arguments:
            return pid
    raise LookupError(f"no worker among {below}")


def _working_for(run_ids: Sequence[str]) -> int:
    """A process whose working folder is that of one of these runs, wherever that is."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and set((entry / "cwd").readlink().parts) & set(run_ids):
                return int(entry.name)
    raise LookupError(f"no process works for any of {run_ids}")


def _above(pid: int) -> int:
    """The worker that a process is below."""
    while pid and WORKER not in _read(Path(f"/proc/{pid}/cmdline")).decode():
        pid = parent(pid)
    if not pid:
        raise LookupError("it is below no worker")
    return pid


def kernel_of(server: Server) -> int:
    """The process id of the kernel that the server's one worker has. LookupError: there is none now."""
    below = children(worker_of(server))
    for pid, arguments in below.items():
        if "ipykernel" in arguments:
            return pid
    raise LookupError(f"no kernel among {below}")


def _read(path: Path) -> bytes:
    """A file of a process, empty when the process is gone, a zombie or somebody else's."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _listed(path: Path) -> list[Path]:
    try:
        return [path / name for name in os.listdir(path)]
    except OSError:
        return []
