"""The unit for systemd: its own tools are content, and the server works under its restrictions."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from notebook_runner import Client, Printed, RunState, StateChanged
from notebook_runner_server.app import STREAM_GRACE
from notebook_runner_server.config import ENVIRONMENT_PREFIX, Settings
from notebook_runner_server.confinement import confine
from notebook_runner_server.execution.processes import KILL_DEADLINE
from notebook_runner_server.logs import LAST_SECONDS
from notebook_runner_server.observability.traces import FLUSH_SECONDS
from tests.container.machine import UNIT, Machine
from tests.container.podman import draining, ready, status
from tests.container.test_manifests_fit import GI, REST, TIMES, number, seconds
from tests.container.test_pod import CAPABILITIES, ENDLESS, ORPHAN, performed, printed_by
from tests.container.test_pod_ends import waiting
from tests.support.calls import inline
from tests.support.ports import free_port

ANALYZE = shutil.which("systemd-analyze") or "systemd-analyze"
SECONDS = 60.0
# In tenths, of the scale from 0 to 10 of `systemd-analyze security`; below 2 is its best grade.
EXPOSURE = 20
# What many notebooks do, and a filter of system calls may get in the way of.
USES = """
import multiprocessing, os, socket, subprocess, tempfile, threading
with multiprocessing.Pool(2) as pool:
    assert pool.map(abs, [-1, -2]) == [1, 2]
assert subprocess.run(["sh", "-c", "echo x > a && cp -p a b && cat b"], capture_output=True).stdout == b"x\\n"
with tempfile.NamedTemporaryFile() as file:
    file.write(b"x")
assert socket.getaddrinfo("localhost", 80)
os.nice(1)
os.sched_setaffinity(0, os.sched_getaffinity(0))
print("used")
"""
# A process that hides itself, so that only root may look into its folder in /proc.
HIDDEN = """
import ctypes, subprocess, sys
hide = "import ctypes, time; ctypes.CDLL(None).prctl(4, 0); print(flush=True); time.sleep(600)"
command = [sys.executable, "-c", hide]
subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True).stdout.readline()
print("hidden")
"""
DENIED = """
import ctypes, os, pathlib, socket
for path in ("/etc/notebook-runner/tokens", "/var/lib/notebook-runner/state/notebook-runner.db", "/dev/kmsg"):
    try:
        pathlib.Path(path).read_bytes()
        print("read", path)
    except OSError:
        pass
for path in ("/srv/notebooks/x", "/usr/x", "/var/tmp/x", "/proc/sys/kernel/hostname"):
    try:
        pathlib.Path(path).write_text("x")
        print("written", path)
    except OSError:
        pass
for name, call in {
    "raw": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "chown": lambda: os.chown(".", 0, 0),
    "setuid": lambda: os.setuid(0),
    "set-user-id": lambda: os.chmod(os.open("s", os.O_CREAT), 0o4755),
}.items():
    try:
        call()
        print("done", name)
    except OSError:
        pass
libc = ctypes.CDLL(None)
print([libc.unshare(0x10000000), libc.mount(b"x", b"/", b"tmpfs", 0, 0)])
"""


def settings() -> dict[str, str]:
    """The variables that the unit sets, without their prefix."""
    lines = [line.partition("=") for line in UNIT.read_text().splitlines()]
    words = [word for key, _, value in lines if key == "Environment" for word in value.split()]
    pairs = [word.partition("=") for word in words]
    return {name.removeprefix(f"{ENVIRONMENT_PREFIX}_"): value for name, _, value in pairs}


def option(name: str) -> str:
    """The only value of an option of the unit."""
    lines = [line.partition("=") for line in UNIT.read_text().splitlines()]
    (value,) = [value for key, _, value in lines if key == name]
    return value


def analyze(*arguments: str) -> None:
    """Runs systemd-analyze, which has to be content."""
    done = subprocess.run([ANALYZE, *arguments], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr


def test_the_unit_is_valid(tmp_path: Path) -> None:
    """Systemd knows each line; nothing but the program is missing on a machine without it."""
    program = option("ExecStart")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(f"ExecStart={program}\n", "ExecStart=/bin/true\n"))
    analyze("verify", "--man=no", str(copy))


def test_the_unit_is_hardened() -> None:
    """Its exposure is below the threshold of the best grade."""
    analyze("security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE}", str(UNIT))


def test_variables_are_settings() -> None:
    """Each variable is one of the server's settings."""
    assert settings().keys() <= {name.upper() for name in Settings.__dataclass_fields__}


def test_values_fit() -> None:
    """As in the manifests: each limit has a default and a ceiling, and a stop waits for the drain."""
    given = settings()
    for name in TIMES:
        assert 0 < seconds(given[f"{name}_TIMEOUT"]) <= seconds(given[f"MAX_{name}_TIMEOUT"])
    most = number(given["MAX_MEMORY_LIMIT"])
    assert number(given["MEMORY_LIMIT"]) <= most
    assert most + REST <= number(option("MemoryMax").replace("G", "Gi"))
    assert number(given["MAX_STATE_BYTES"]) > GI
    after = STREAM_GRACE + KILL_DEADLINE + FLUSH_SECONDS + 2 * LAST_SECONDS
    assert float(option("TimeoutStopSec")) > Settings().drain_timeout + after


@pytest.fixture(scope="module")
def target() -> str:
    """Where the server listens."""
    return f"127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def machine(image: str, target: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine whose systemd has started the unit; the last test stops it."""
    environment = {"NOTEBOOK_RUNNER_LISTEN": target}
    with Machine(tmp_path_factory.mktemp("machine"), image, environment) as made:
        ready(target)
        yield made


@pytest.fixture
def client(machine: Machine, target: str) -> Iterator[Client]:
    """A client that has a token."""
    with Client(target, token=machine.token) as one:
        yield one


def test_the_sandbox_is_complete(machine: Machine) -> None:
    """The filter of system calls lets Landlock through, and nothing that should be hidden is exposed."""
    (line,) = [one for one in map(json.loads, machine.log.read_text().splitlines()) if "landlock" in one]
    assert line["event"] == "sandbox_active"
    assert line["processes_hidden"] is True
    assert line["exposed"] == []
    assert line["landlock"] == confine.landlock_version()
    assert line["files"] is (line["landlock"] > 0)


def test_notebooks_work(machine: Machine, client: Client) -> None:
    """Processes, sockets and files work as without the unit; Kill ends a run with all its processes."""
    ended = performed(client, USES)
    assert printed_by(client, ended) == "used\n", ended.failure
    assert performed(client, ORPHAN).ok
    assert performed(client, HIDDEN).ok
    assert not [one for one in machine.commands() if "sleep" in one]
    run = client.start(inline(ENDLESS).notebook_content)
    next(event for event in run.progress() if isinstance(event, Printed))
    assert run.kill().run.state == RunState.KILLED


def test_what_notebooks_may_not_do(client: Client) -> None:
    """Files of the machine, devices, other users, raw sockets and namespaces are out of reach."""
    ended = performed(client, DENIED)
    assert printed_by(client, ended) == "[-1, -1]\n", ended.failure


def test_what_the_processes_may_do(machine: Machine) -> None:
    """No process of the service has a capability, or a way to get one; system calls are filtered."""
    found = {process: told for process in machine.processes() if (told := status(process))}
    assert len(found) >= 3
    for process, told in found.items():
        assert "0" not in told["Uid"], process
        assert {int(told[f"Cap{one}"][0], 16) for one in CAPABILITIES} == {0}, process
        assert (told["NoNewPrivs"], told["Seccomp"]) == (["1"], ["2"]), process


def test_stop_drains(machine: Machine, client: Client, target: str) -> None:
    """SIGTERM goes to the server alone: an active run ends by itself, then all of the service is gone."""
    with waiting(client) as (run, gate), ThreadPoolExecutor(1) as threads:
        events = run.progress()
        next(event for event in events if isinstance(event, Printed))
        stopped = threads.submit(machine.systemctl, "stop", UNIT.name)
        draining(target)
        gate.send(b"x")
        *_, last = events
        assert isinstance(last, StateChanged)
        assert last.run.ok, last
        stopped.result(SECONDS)
    assert machine.processes() == []
    state = machine.systemctl("show", "--property=Result,ExecMainStatus", UNIT.name)
    assert set(state.split()) == {"Result=success", "ExecMainStatus=0"}
