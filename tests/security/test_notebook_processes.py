"""Which processes a notebook can look into, signal and talk to: its own, and no other."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.attacks import DENIED, HEAD, SECRET, attacked
from tests.support.calls import inline, perform, reach, started, texts
from tests.support.polling import pause
from tests.support.processes import marked
from tests.support.unprivileged import UnprivilegedServer, as_nobody
from tests.support.warm import SECONDS, forked

LOOK = """
libc = ctypes.CDLL(None, use_errno=True)

def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result

class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

buffer = ctypes.create_string_buffer(64)
mine, theirs = Vector(ctypes.addressof(buffer), 64), Vector(0x400000, 64)

def look_into(name, pid):
    attempt(name + " environ", lambda: open(f"/proc/{pid}/environ").read())
    attempt(name + " memory", lambda: open(f"/proc/{pid}/mem", "rb").read(1))
    attempt(name + " maps", lambda: open(f"/proc/{pid}/maps").read(10) or checked(-1))
    attempt(name + " descriptor", lambda: os.readlink(f"/proc/{pid}/fd/0"))
    attempt(name + " opened", lambda: open(f"/proc/{pid}/fd/0"))
    attempt(name + " folder", lambda: os.readlink(f"/proc/{pid}/cwd"))
    attempt(name + " root", lambda: os.listdir(f"/proc/{pid}/root"))
    attempt(name + " attached", lambda: checked(libc.ptrace(16, pid, 0, 0)))
    attempt(name + " seized", lambda: checked(libc.ptrace(0x4206, pid, 0, 0)))
    attempt(name + " read", lambda: checked(libc.process_vm_readv(
        pid, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0)))
    attempt(name + " stolen", lambda: checked(libc.syscall(438, os.pidfd_open(pid), 0, 0)))
    attempt(name + " score", lambda: open(f"/proc/{pid}/oom_score_adj", "w").write("1000"))

def strike(name, pid):
    for number in (0, signal.SIGSTOP, signal.SIGTERM, signal.SIGUSR1):
        attempt(f"{name} signal {number}", lambda: os.kill(pid, number))
    attempt(name + " by pidfd", lambda: signal.pidfd_send_signal(os.pidfd_open(pid), 0))
"""
OTHERS = """
others = {"server": server, "worker": worker}
others |= {f"beside {pid}": pid for pid in below(worker)}
others |= {f"below the server {pid}": pid for pid in below(server) if pid != worker}
"""


def test_no_other_process_can_be_looked_into(attack: Callable[..., Any], mode: str) -> None:
    """Server, worker, template and helpers: not by /proc, not by ptrace, not by its descriptors."""
    found = attack(LOOK + OTHERS + "for name, pid in others.items(): look_into(name, pid)")
    # In an interpreter that has a resource tracker; warm, there is a template too.
    assert len(found) >= 12 * (4 if mode == "warm" else 3)
    assert {name: got for name, got in found.items() if got not in DENIED} == {}


def _of_the_server(server: UnprivilegedServer) -> dict[int, str]:
    """Every process of a server that is neither a kernel nor a resource tracker, with its command line."""
    kernels = forked(server)[1:]
    found = {pid: command for pid, command in marked(server.mark).items() if pid not in kernels}
    return {pid: command for pid, command in found.items() if "resource_tracker" not in command}


def test_nobody_else_can_look_into_what_is_the_servers(plain: UnprivilegedServer, mode: str) -> None:
    """Nor a process of the same user that is not confined, as all are where there is no Landlock."""
    # A warm kernel of an earlier test may be about to end, or about to be forked.
    end = time.monotonic() + SECONDS
    while len(hidden := _of_the_server(plain)) != (3 if mode == "warm" else 2):
        assert time.monotonic() < end, hidden
        pause()
    for pid, command in hidden.items():
        look = subprocess.run(
            [*as_nobody(plain.home), "cat", f"/proc/{pid}/environ"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (look.returncode, look.stdout) == (1, ""), command
        assert "Permission denied" in look.stderr


def test_no_other_process_can_be_signalled(attack: Callable[..., Any], plain: UnprivilegedServer) -> None:
    """The server still serves: this test's next call is answered."""
    found = attack(LOOK + OTHERS + "for name, pid in others.items(): strike(name, pid)")
    assert {name: got for name, got in found.items() if got not in DENIED} == {}
    assert perform(plain.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED


def test_its_own_processes_can(attack: Callable[..., Any]) -> None:
    """A notebook debugs, stops and ends what it has started."""
    source = (
        "import subprocess\n"
        "child = subprocess.Popen(['sleep', '100'])\n"
        "attempt('environ', lambda: open(f'/proc/{child.pid}/environ').read())\n"
        "attempt('self', lambda: open('/proc/self/environ').read())\n"
        "attempt('maps', lambda: open('/proc/self/maps').read())\n"
        "attempt('signal', child.terminate)\n"
        "told['ended'] = child.wait()\n"
    )
    found = attack(source)
    assert found.pop("ended") == -15
    assert all(got.startswith("got") for got in found.values()), found


def test_an_abstract_socket_of_another_process(attack: Callable[..., Any]) -> None:
    """It has no file that could be denied; the scope denies it."""
    name = f"\0notebook-runner-test-{os.getpid()}"
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(name)
        listener.listen()
        found = attack(f"attempt('connect', lambda: socket.socket(socket.AF_UNIX).connect({name!r}))")
    assert found == {"connect": "EPERM"}


DESCRIPTORS = """
for one in os.listdir("/proc/self/fd"):
    try:
        told[one] = os.readlink(f"/proc/self/fd/{one}")
    except FileNotFoundError:
        pass
told["others"] = []
for pid in others.values():
    try:
        for one in os.listdir(f"/proc/{pid}/fd"):
            told["others"].append(os.readlink(f"/proc/{pid}/fd/{one}"))
    except OSError:
        told["others"].append("unreadable")
"""


def test_no_descriptor_is_the_servers(make_plain: Callable[..., UnprivilegedServer], mode: str) -> None:
    """No socket, pipe or file that server, worker or template have open; without a sandbox it can be seen."""
    warm = [] if mode == "warm" else ["--no-warm-kernels"]
    server = make_plain("--sandbox", "off", *warm)
    found = attacked(server, OTHERS + DESCRIPTORS, mode=mode)
    others = set(found.pop("others"))
    assert "unreadable" not in others
    assert any("notebook-runner.db" in one for one in others)
    shared = {one for one in found.values() if one in others and not one.startswith("anon_inode:")}
    # The kernel's own log is read by its worker.
    assert {one for one in shared if "/nbr-" not in one} == {"/dev/null"}
    assert not any(str(server.state_dir) in one for one in found.values())


VICTIM = """
import os, time
print(os.getpid(), flush=True)
while True:
    print("something private", flush=True)
    time.sleep(0.05)
"""
BESIDE = """
import zmq
pid = {pid}
look_into("other kernel", pid)
strike("other kernel", pid)
paths = [line.split()[-1] for line in open("/proc/net/unix") if "/nbr-" in line]
told["paths"] = len(set(paths))
heard = []
context = zmq.Context()
for path in set(paths):
    listener = context.socket(zmq.SUB)
    listener.subscribe(b"")
    listener.connect("ipc://" + path)
    own = path.startswith(str(Path(os.environ["TMPDIR"]).parent))
    heard.append((own, listener))
import time
end = time.monotonic() + 1
told["heard"] = []
while time.monotonic() < end:
    for own, listener in heard:
        if listener.poll(10) and not own:
            told["heard"].append(repr(listener.recv_multipart())[:100])
"""


def test_two_runs_at_once(make_plain: Callable[..., UnprivilegedServer], mode: str) -> None:
    """Neither can look into the other's kernel, signal it, or listen to what it prints."""
    warm = [] if mode == "warm" else ["--no-warm-kernels"]
    server = make_plain("--workers", "2", *warm)
    if mode == "warm":
        server_kernels(server)
    with started(server.stub, inline(VICTIM, environment={"GIVEN": SECRET})) as victim:
        event = reach(server.stub, victim.run_id, "cell_output")
        source = LOOK + BESIDE.format(pid=int(event.cell_output.stream.text.split()[0]))
        ended = perform(server.stub, inline(HEAD + source, "print(json.dumps(told))"))
        found = json.loads(texts(ended.events).splitlines()[-1])
    assert found.pop("heard") == []
    assert found.pop("paths") > 5
    assert {name: got for name, got in found.items() if got not in DENIED} == {}
    assert len(found) == 17


def server_kernels(server: UnprivilegedServer) -> None:
    """Waits until both workers have a kernel."""
    end = time.monotonic() + SECONDS
    while sum(one.warm_ready for one in server.stub.Info(pb.InfoRequest()).kernels) < 2:
        assert time.monotonic() < end, server.tail()
        pause()
