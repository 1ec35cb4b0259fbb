"""Finds processes by what their environment carries, so that nothing can hide from a test."""

import os
import select
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

# The user with the fewest rights.
NOBODY = 65534


def _read(pid: int, name: str) -> bytes:
    """A file of a process, empty when the process is gone, a zombie or somebody else's."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def limit(mark: str) -> int:
    """A number for a limit that has no effect on Linux (RLIMIT_RSS): marks processes that hide.

    It must be as good as unique, since the processes that have it are killed with their server.
    """
    return int.from_bytes(sha256(mark.encode()).digest()[:7])


def marked(mark: str) -> dict[int, str]:
    """Every live process that carries the mark, in its environment or as a limit, with its command line."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    found = [pid for pid in pids if any(_is_marked(thread, mark) for thread in [pid, *_threads_left(pid)])]
    return {pid: _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace") for pid in found}


def _is_marked(thread: int, mark: str) -> bool:
    return mark.encode() in _read(thread, "environ") or _is_limited(thread, mark)


def _threads_left(pid: int) -> list[int]:
    """The threads of a process whose main thread has ended: of such a one alone nothing can be read."""
    if _runs(pid):
        return []
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task") if _runs(int(name))]
    except OSError:
        return []


def _is_limited(pid: int, mark: str) -> bool:
    lines = [line.split() for line in _read(pid, "limits").splitlines() if b"resident set" in line]
    return bool(lines) and lines[0][3] == b"%d" % limit(mark)


def is_alive(pid: int) -> bool:
    """Whether the process exists and any of its threads has not ended."""
    return _runs(pid) or bool(_threads_left(pid))


def _runs(thread: int) -> bool:
    fields = _read(thread, "stat").rpartition(b") ")[2].split()
    return bool(fields) and fields[0] not in {b"Z", b"X"}


def parent(pid: int) -> int:
    """The process that a process is below; 0: it is gone."""
    fields = _read(pid, "stat").rpartition(b") ")[2].split()
    return int(fields[1]) if fields else 0


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Keeps a process from doing anything while the block goes on."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def outlived(pids: Iterable[int], seconds: float) -> list[int]:
    """The processes that do not end by themselves in this time, waited for one after the other."""
    return [pid for pid in pids if not _ends(pid, seconds)]


def _ends(pid: int, seconds: float) -> bool:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], seconds)[0]) or not is_alive(pid)
    finally:
        os.close(descriptor)


def memory(pid: int) -> int:
    """The resident memory of a process, in bytes."""
    return int(_read(pid, "statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")
