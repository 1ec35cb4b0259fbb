"""What a server keeps ready, found as processes: templates, and the kernels that were forked from them."""

import contextlib
import os
import time
from pathlib import Path

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.polling import pause
from tests.support.processes import marked
from tests.support.server import Server

PROGRAM = "warm/fork_server.py"
# Said by each test that needs it: all tests can be run without warm kernels.
ON = ("--warm-kernels", "python3=1")
# With the reason why a kernel was not used.
EXPLAINED = (*ON, "--log-level", "debug")
SECONDS = 60.0


def forked(server: Server) -> list[int]:
    """Every process of the template's program, oldest first: the first template, then kernels."""
    found = {pid: _started(pid) for pid, command in marked(server.runs_mark).items() if PROGRAM in command}
    # What is only there to hand a kernel on leads no session.
    return sorted(
        (pid for pid, started in found.items() if started and _leads(pid)), key=lambda pid: found[pid]
    )


def _started(pid: int) -> int:
    """When the process began, in ticks; zero: it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19])
    except OSError:
        return 0


def _leads(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        return os.getsid(pid) == pid
    return False


def kept(server: Server, count: int = 1, *others: int) -> list[int]:
    """Waits until a template and so many kernels are there beside others; answers them, template first.

    On a cluster, each worker has as many: a test that needs to know which is which is `process_pool`.
    """
    end = time.monotonic() + SECONDS
    while len(found := [pid for pid in forked(server) if pid not in others]) != Server.machines * (1 + count):
        assert time.monotonic() < end, f"not one template and {count} kernels: {found}\n{server.tail()}"
        pause()
    return found


def was_used(server: Server, process: int, *spares: int) -> bool:
    """Whether a run, which this process executed, used one of the kernels that were there, or could not.

    A kernel is not used when anything has appeared in a folder above a hidden one, such as `/`, after its
    start: another program on the machine may do that at any moment. The server says which one it discards,
    and why, at log level debug.
    """
    if process in spares:
        return True
    discarded = server.logged("warm_kernel_discarded", "newer than itself", count=len(spares))
    return set(spares) <= {line["pid"] for line in discarded}


def until_warm(server: Server) -> None:
    """Waits until a kernel is ready for the next run, which then gets it."""
    end = time.monotonic() + SECONDS
    while not any(one.warm_ready for one in server.stub.Info(pb.InfoRequest(), timeout=SECONDS).kernels):
        assert time.monotonic() < end, server.tail()
        pause()


def settled(server: Server) -> None:
    """Waits until as many kernels are ready as the server keeps, none where it keeps none."""
    end = time.monotonic() + SECONDS
    while any(
        one.warm_ready < one.warm_wanted
        for one in server.stub.Info(pb.InfoRequest(), timeout=SECONDS).kernels
    ):
        assert time.monotonic() < end, server.tail()
        pause()


def ready(server: Server) -> int:
    """Waits until the one kernel that is kept is ready, as a server at log level debug says; answers it."""
    # A template that has been replaced is younger than the kernel.
    pids = set(kept(server))
    end = time.monotonic() + SECONDS
    while not (
        found := pids & {entry["pid"] for entry in server.log if entry["event"] == "warm_kernel_ready"}
    ):
        assert time.monotonic() < end, server.tail()
        pause()
    return found.pop()
