"""What a run used: the processor time of all its processes, and the memory that they had together."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, duration, finish, inline, perform, reach, start, texts
from tests.support.notebooks import content
from tests.support.server import Server
from tests.support.warm import settled, until_warm

pytestmark = pytest.mark.guarantee

MIB = 1024 * 1024
# Memory is measured each second, on a busy machine less often.
SEEN_SECONDS = 5
# A second of processor time, and less than is taken for a kernel's start.
BURN = "import time\nwhile time.process_time() - {begin} < 1: pass"
IN_KERNEL = BURN.format(begin="begin").replace("import time", "import time\nbegin = time.process_time()")
IN_CHILD = (
    f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN.format(begin=0)!r}], check=True)"
)
# Its parent ends immediately, so that the worker is the next one above it. The pipe ends with it.
IN_ORPHAN = (
    "import os, subprocess, sys\n"
    "near, far = os.pipe()\n"
    f"orphan = {BURN.format(begin=0)!r}\n"
    "parent = 'import subprocess, sys; '\n"
    "parent += f'subprocess.Popen([sys.executable, \"-c\", {orphan!r}], pass_fds=[{far}])'\n"
    "subprocess.run([sys.executable, '-c', parent], check=True, pass_fds=[far])\n"
    "os.close(far)\n"
    "assert os.read(near, 1) == b''"
)
# What a child and an orphan burn while the run is ended.
LIVING_CHILD = (
    f"import subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', {BURN.format(begin=0)!r} + '\\n"
    "print(flush=True)\\nimport threading; threading.Event().wait()'], stdout=subprocess.PIPE)\n"
    "child.stdout.readline()"
)
FOREVER = "import threading; _ = threading.Event().wait()"


def cpu(run: pb.Run) -> float:
    """The processor time of a run, in seconds, which must be known."""
    assert run.HasField("cpu_time")
    return run.cpu_time.ToNanoseconds() / 1e9


class Ending(NamedTuple):
    """How a run ends after it has burned a second in its kernel and a second in a living child."""

    state: int
    last: str


ENDINGS = {
    "success": Ending(pb.RUN_STATE_SUCCEEDED, "1"),
    "failure": Ending(pb.RUN_STATE_FAILED, "1 / 0"),
    "exit": Ending(pb.RUN_STATE_CRASHED, "import os; os._exit(3)"),
    "signal": Ending(pb.RUN_STATE_CRASHED, "import os; os.kill(os.getpid(), 9)"),
    "segmentation fault": Ending(pb.RUN_STATE_CRASHED, "import ctypes; ctypes.string_at(0)"),
    "kill": Ending(pb.RUN_STATE_KILLED, FOREVER),
}


# The others end like one of these, for `make test`.
SHORT = {"success", "signal", "kill"}


@pytest.mark.parametrize(
    "ending",
    [
        pytest.param(ending, id=name, marks=() if name in SHORT else pytest.mark.long)
        for name, ending in ENDINGS.items()
    ],
)
def test_every_end_has_both(server: Server, ending: Ending) -> None:
    """However a run ends, it has the time of its kernel and of a child that lives at the end, and a peak."""
    # Else the time has the start of a kernel in it, which takes long on a slow machine.
    settled(server)
    run = start(server.stub, inline(IN_KERNEL, LIVING_CHILD, ending.last))
    if ending.state == pb.RUN_STATE_KILLED:
        reach(server.stub, run.run_id, "cell_started", cell=2)
        server.stub.Kill(pb.KillRequest(run_id=run.run_id), timeout=SECONDS)
    ended = finish(server.stub, run.run_id)
    assert ended.run.state == ending.state
    assert 2 <= cpu(ended.run) < 4
    assert 10 * MIB < ended.run.peak_memory_bytes < 1024 * MIB
    before = [one.run_changed for one in ended.events[:-1] if one.HasField("run_changed")]
    assert not any(one.HasField("cpu_time") or one.peak_memory_bytes for one in before)
    assert server.stub.Get(pb.GetRequest(run_id=run.run_id), timeout=SECONDS).run == ended.run


def test_a_time_out_has_both(server: Server) -> None:
    """A run that burns until its limit has at least the time that it printed last."""
    source = (
        "import time\nbegin = time.process_time()\n"
        "while True:\n    print(time.process_time() - begin, flush=True)\n    sum(range(1_000_000))"
    )
    ended = perform(server.stub, inline(source, cell_timeout=duration(4)))
    assert ended.run.state == pb.RUN_STATE_TIMED_OUT
    *_, last = texts(ended.events).split()
    assert cpu(ended.run) >= float(last) > 0
    assert ended.run.peak_memory_bytes > 10 * MIB


@pytest.mark.parametrize("source", [IN_KERNEL, IN_CHILD, IN_ORPHAN], ids=["kernel", "child", "orphan"])
def test_the_time_of_each_process_counts_once(server: Server, source: str) -> None:
    """A second in the kernel, in a child that has ended, or in an orphan that has ended is a second."""
    settled(server)
    run = perform(server.stub, inline(source)).run
    assert run.state == pb.RUN_STATE_SUCCEEDED
    assert 1 <= cpu(run) < 2
    settled(server)
    again = perform(server.stub, inline("1")).run
    assert cpu(again) < 1


def test_a_run_that_never_started_used_nothing(server: Server) -> None:
    """A queued run that is killed has no processor time and no peak: no process was measured."""
    first = start(server.stub, inline(FOREVER))
    reach(server.stub, first.run_id, "cell_started")
    second = start(server.stub, inline("1"))
    killed = server.stub.Kill(pb.KillRequest(run_id=second.run_id), timeout=SECONDS).run
    server.stub.Kill(pb.KillRequest(run_id=first.run_id), timeout=SECONDS)
    assert not killed.HasField("cpu_time")
    assert killed.peak_memory_bytes == 0


def test_the_peak_is_that_of_all_processes_together(server: Server) -> None:
    """Two children with memory of their own count together, pages that they share once, freed ones stay."""
    hold = "kept = b'x' * (150 << 20); print(flush=True); input()"
    source = (
        "import subprocess, sys\n"
        f"make = lambda: subprocess.Popen([sys.executable, '-c', {hold!r}], stdin=-1, stdout=-1)\n"
        "children = [make(), make()]\n"
        "for child in children: child.stdout.readline()\n"
        f"import time; time.sleep({SEEN_SECONDS})\n"
        "for child in children: child.communicate(b'\\n')"
    )
    run = perform(server.stub, inline(source)).run
    assert 300 * MIB < run.peak_memory_bytes < 700 * MIB
    source = (
        "import os, time\n"
        "kept = b'x' * (200 << 20)\n"
        "child = os.fork()\n"
        f"if not child: time.sleep({SEEN_SECONDS}); os._exit(0)\n"
        "os.waitpid(child, 0)"
    )
    run = perform(server.stub, inline(source)).run
    assert 200 * MIB < run.peak_memory_bytes < 400 * MIB


@pytest.mark.process_pool("only the server knows the folder of the kernelspecs")
@pytest.mark.parametrize("start_kind", ["warm", pytest.param("cold", marks=pytest.mark.long)])
def test_what_a_warm_kernel_used_before_is_not_the_runs(
    make_server: Callable[..., Server], tmp_path: Path, start_kind: str
) -> None:
    """A kernel that burns a second when it starts: that second is the run's only if it started for it."""
    program = tmp_path / "burning.py"
    program.write_text(
        f"{BURN.format(begin=0)}\nfrom ipykernel import kernelapp\nkernelapp.launch_new_instance()\n"
    )
    folder = tmp_path / "kernels" / "burning"
    folder.mkdir(parents=True)
    spec = {"argv": [sys.executable, str(program), "-f", "{connection_file}"], "language": "python"}
    (folder / "kernel.json").write_text(json.dumps({**spec, "display_name": "Burning"}))
    kernels = "burning=1" if start_kind == "warm" else "none"
    server = make_server("--warm-kernels", kernels, environment={"JUPYTER_PATH": str(tmp_path)})
    if start_kind == "warm":
        until_warm(server)
    run = perform(server.stub, pb.StartRequest(notebook_content=content("1"), kernel_name="burning")).run
    assert run.state == pb.RUN_STATE_SUCCEEDED
    (line,) = server.logged("run", run.run_id)
    assert line["start"] == start_kind
    assert (cpu(run) >= 1) == (start_kind == "cold")
    assert line["cpu_seconds"] == pytest.approx(cpu(run), abs=1e-6)
    assert line["peak_memory_bytes"] == run.peak_memory_bytes
