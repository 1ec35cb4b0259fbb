"""Memory that no process of a run has: it counts for the run's limit, and is gone with the run."""

import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, duration, finish, follow, inline, perform, reach, started, texts
from tests.support.server import Server
from tests.support.unprivileged import UnprivilegedServer, unprivileged_home

FOLDER = Path("/dev/shm")  # noqa: S108 - what is tested
MIB = 1024 * 1024
LIMIT = 400 * MIB
HEAD = """
import ctypes, mmap, os, resource, socket, threading
PIECE = b"x" * (8 << 20)
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
libc.shmdt.argtypes = [ctypes.c_void_p]
def segment(size):
    number = made("shm", libc.shmget(0, ctypes.c_size_t(size), 0o600))
    address = libc.shmat(number, None, 0)
    ctypes.memset(address, 1, size)
    libc.shmdt(address)
def made(kind, number):
    assert number >= 0, os.strerror(ctypes.get_errno())
    print("made", kind, number, flush=True)
    return number
def fill(descriptor):
    for _ in range({pieces}):
        os.write(descriptor, PIECE)
kept = []
def fill_sockets(size, pair):
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    while size > 0:
        kept.extend(pair())
        for one in kept[-2:]:
            one.setblocking(False)
            try:
                while size > 0:
                    size -= one.send(PIECE[:65536])
            except BlockingIOError:
                pass
def connected():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return socket.create_connection(listener.getsockname()), listener.accept()[0]
def fill_page_tables(size):
    # A page that is only read costs no memory but for its table, a page for each 2 MiB.
    kept.append(mmap.mmap(-1, size << 9, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ))
    for position in range(0, size << 9, 2 << 20):
        kept[0][position]
"""
WAIT = "\nthreading.Event().wait()"
# Each fills what counts for no process, and lets go of it as far as it can.
FILLS = {
    "file": "fill(os.open('/dev/shm/{name}', os.O_CREAT | os.O_WRONLY))",
    "file in a folder": (
        "os.mkdir('/dev/shm/{name}')\nfill(os.open('/dev/shm/{name}/f', os.O_CREAT | os.O_WRONLY))"
    ),
    "removed file": (
        "held = os.open('/dev/shm/{name}', os.O_CREAT | os.O_WRONLY)\n"
        "os.unlink('/dev/shm/{name}')\nfill(held)"
    ),
    "memfd": "fill(os.memfd_create('x'))",
    "segments": "for _ in range({pieces}):\n    segment(8 << 20)",
    "sockets": "fill_sockets({pieces} << 23, socket.socketpair)",
    "connections": "fill_sockets({pieces} << 23, connected)",
    "page tables": "fill_page_tables({pieces} << 23)",
}


def source(kind: str, mebibytes: int, name: str) -> str:
    """A cell that fills so much of one kind."""
    pieces = mebibytes // 8
    return HEAD.replace("{pieces}", str(pieces)) + FILLS[kind].format(name=name, pieces=pieces)


def left(name: str, events: Iterable[pb.ProgressResponse]) -> list[str]:
    """What there is of this name, and of the System V's objects that a run has printed.

    Other programs of the machine may have objects as well.
    """
    made = [line.split() for line in texts(list(events)).splitlines() if line.startswith("made ")]
    there = {
        (kind, line.split()[1])
        for kind in ("shm", "msg", "sem")
        for line in Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:]
    }
    files = [one for one in os.listdir(FOLDER) if one == name]
    return files + [f"{kind} {number}" for _, kind, number in made if (kind, number) in there]


@pytest.fixture(scope="module")
def alone() -> Iterator[UnprivilegedServer]:
    """A server that has its user to itself, as in a container, if root runs the tests."""
    # Nobody else on the machine has this number, as nobody has that of this process.
    user = 20_000 + os.getpid() % 40_000
    with unprivileged_home() as home, UnprivilegedServer(home, user=user) as server:
        yield server


@pytest.mark.parametrize("kind", FILLS)
def test_it_counts_for_the_limit(server: Server, kind: str) -> None:
    """Twice the limit is noticed, whoever holds it; the run ends as out of memory, and nothing is left."""
    name = f"nbr-test-{server.mark}"
    request = inline(source(kind, 800, name) + WAIT, memory_limit_bytes=LIMIT)
    run, events = perform(server.stub, request)
    assert (run.state, run.failure.cause) == (pb.RUN_STATE_CRASHED, pb.FAILURE_CAUSE_OUT_OF_MEMORY), run
    assert left(name, events) == []


@pytest.mark.parametrize("kind", FILLS)
def test_what_is_mapped_counts_once(server: Server, kind: str) -> None:
    """Shared memory that fits, and that several processes have mapped and touched, is no excess."""
    name = f"nbr-test-{server.mark}"
    share = (
        "shared = mmap.mmap(-1, 96 << 20)\nshared.write(b'x' * (96 << 20))\n"
        "children = [os.fork() for _ in range(2)]\n"
        "if 0 in children:\n    shared[::4096]; os._exit(0)\n"
        "for child in children:\n    os.waitpid(child, 0)\nprint('fits')"
    )
    ended = perform(server.stub, inline(source(kind, 64, name), share, memory_limit_bytes=LIMIT))
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED, ended.run.failure
    assert texts(ended.events).endswith("fits\n")
    assert left(name, ended.events) == []


STRANGE = """
held = open("/dev/shm/{name}\\x0cb\\rc\\u2028 Pss: x", "wb+")
held.truncate(8192)
kept = mmap.mmap(held.fileno(), 8192)
kept[:] = bytes(8192)
grown = [b"x" * (8 << 20) for _ in range(160)]
threading.Event().wait()
"""


def test_no_name_switches_a_limit_off(server: Server) -> None:
    """A file may have any character in its name; Linux escapes the line feed alone."""
    name = f"nbr-test-{server.mark}"
    code = HEAD.replace("{pieces}", "1") + STRANGE.format(name=name)
    run = perform(server.stub, inline(code, memory_limit_bytes=LIMIT)).run
    assert (run.state, run.failure.cause) == (pb.RUN_STATE_CRASHED, pb.FAILURE_CAUSE_OUT_OF_MEMORY), run
    assert [one for one in os.listdir(FOLDER) if one.startswith(name)] == []


STATES = {
    "end": pb.RUN_STATE_SUCCEEDED,
    "kill": pb.RUN_STATE_KILLED,
    "timeout": pb.RUN_STATE_TIMED_OUT,
}
LEAVES = """
import subprocess, sys
subprocess.run([sys.executable, "-c", "open('/dev/shm/{name}', 'w').write('x')"])
segment(4096)
made("msg", libc.msgget(0, 0o600))
made("sem", libc.semget(0, 1, 0o600))
print("left", flush=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="without root the server shares its user with the tests")
@pytest.mark.parametrize("ending", STATES)
def test_nothing_outlives_a_run(alone: UnprivilegedServer, ending: str) -> None:
    """What short-lived processes have left goes too, where all that is new is the run's."""
    name = f"nbr-test-{alone.mark}"
    code = HEAD.replace("{pieces}", "1") + LEAVES.format(name=name) + ("" if ending == "end" else WAIT)
    limits = {"run_timeout": duration(15)} if ending == "timeout" else {}
    with started(alone.stub, inline(code, **limits)) as run:
        with closing(follow(alone.stub, run.run_id)) as output:
            next(event for event in output if "left" in event.cell_output.stream.text)
        if ending == "kill":
            alone.stub.Kill(pb.KillRequest(run_id=run.run_id), timeout=SECONDS)
        ended = finish(alone.stub, run.run_id)
        assert ended.run.state == STATES[ending]
    assert texts(ended.events).count("made ") == 3
    assert left(name, ended.events) == []


def test_what_others_make_meanwhile_stays(server: Server) -> None:
    """A program of the same user that is no process of the run keeps what it makes while the run goes on."""
    path, own = FOLDER / f"nbr-others-{server.mark}", FOLDER / f"nbr-test-{server.mark}"
    code = f"import threading\nheld = open({str(own)!r}, 'w')\nprint('made', flush=True){WAIT}"
    try:
        with started(server.stub, inline(code)) as run:
            reach(server.stub, run.run_id, "cell_output")
            path.write_text("x")
            server.stub.Kill(pb.KillRequest(run_id=run.run_id), timeout=SECONDS)
        assert (path.exists(), own.exists()) == (True, False)
    finally:
        path.unlink()
