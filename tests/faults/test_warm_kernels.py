"""Kernels that are kept, and what keeps them, die or stop: no run fails for it, and they are replaced."""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.faults import odd_server
from tests.faults.odd_server import FORK, SWITCH
from tests.support.calls import finish, inline, perform, reach, start, started, texts
from tests.support.gate import Gate
from tests.support.killable import KillableServer
from tests.support.notebooks import content
from tests.support.polling import pause
from tests.support.processes import is_alive, outlived
from tests.support.server import Server
from tests.support.warm import EXPLAINED, SECONDS, forked, kept, ready, was_used

pytestmark = pytest.mark.process_pool(
    "one worker's kernels are counted; each Dask worker has its own, by the same code"
)

WHO = "import os; print(os.getpid())"


def who(server: Server) -> int:
    """The process of a run's kernel; the run has to succeed."""
    ended = perform(server.stub, inline(WHO))
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED, ended.run.failure
    return int(texts(ended.events))


def test_a_kernel_is_used_once_and_replaced(make_server: Callable[..., Server]) -> None:
    """Each run has the kernel that was there before it, and none has another's."""
    server = make_server(*EXPLAINED)
    used = set()
    for _ in range(5):
        _, spare = kept(server)
        process = who(server)
        assert was_used(server, process, spare)
        used.add(process)
    assert len(used) == 5


def test_several_are_kept(make_server: Callable[..., Server]) -> None:
    """As many as were asked for; a run takes one of them."""
    server = make_server("--warm-kernels", "python3=3", "--log-level", "debug")
    _, *warm_counts = kept(server, 3)
    assert was_used(server, who(server), *warm_counts)
    kept(server, 3)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_a_spare_that_is_lost(make_server: Callable[..., Server], number: int) -> None:
    """It died, or stopped, while nobody looked: the run has another kernel, and another spare comes."""
    server = make_server(*EXPLAINED)
    _, spare = kept(server)
    os.kill(spare, number)
    assert who(server) != spare
    assert outlived([spare], SECONDS) == []
    _, after = kept(server)
    assert was_used(server, who(server), after)


def test_a_ready_kernel_that_stops(make_server: Callable[..., Server]) -> None:
    """The run that took it has another kernel, and the log says what became of that one."""
    server = make_server(*EXPLAINED)
    spare = ready(server)
    os.kill(spare, signal.SIGSTOP)
    assert who(server) != spare
    assert outlived([spare], SECONDS) == []
    assert any(
        line["why"].startswith("a run could not use it") or line["why"].endswith("newer than itself")
        for line in logged_of(server, spare)
    )


def logged_of(server: Server, pid: int) -> list[dict[str, Any]]:
    """Waits until the log says why a kernel is not used any longer; returns these lines."""
    end = time.monotonic() + SECONDS
    while not (found := [line for line in server.log if line.get("pid") == pid and "why" in line]):
        assert time.monotonic() < end, server.tail()
        pause()
    return found


def test_a_template_that_is_lost(make_server: Callable[..., Server]) -> None:
    """Runs go on, on kernels of their own for as long as it takes, and another template comes."""
    server = make_server(*EXPLAINED)
    template, _ = kept(server)
    os.kill(template, signal.SIGKILL)
    for _ in range(3):
        who(server)
    new, spare = kept(server)
    assert template != new
    assert was_used(server, who(server), spare)
    server.logged("warm_kernel_lost")


def test_a_template_that_is_lost_is_replaced_before_it_is_missed(make_server: Callable[..., Server]) -> None:
    """Also when the kernel that it had made is there still."""
    server = make_server()
    template, spare = kept(server)
    os.kill(template, signal.SIGKILL)
    assert outlived([template], SECONDS) == []
    assert spare in kept(server)


def test_a_template_that_stops(make_server: Callable[..., Server]) -> None:
    """It neither forks nor ends: it is ended, and the runs meanwhile do not wait for it for long."""
    server = make_server(*EXPLAINED)
    template, _ = kept(server)
    os.kill(template, signal.SIGSTOP)
    for _ in range(2):
        who(server)
    assert outlived([template], SECONDS) == []
    _, spare = kept(server)
    assert was_used(server, who(server), spare)


def test_kill_spares_the_spare(make_server: Callable[..., Server], gate: Gate) -> None:
    """Kill ends what is the run's, counts that, and leaves what is kept for the next."""
    server = make_server(*EXPLAINED)
    template, _ = kept(server)
    with started(server.stub, inline(f"print('here', flush=True)\n{gate.source}")) as run:
        kernel = running_kernel(server, template)
        answer = server.stub.Kill(pb.KillRequest(run_id=run.run_id))
    assert answer.run.state == pb.RUN_STATE_KILLED
    assert answer.processes_ended == 1
    assert not is_alive(kernel)
    again, spare = kept(server)
    assert again == template
    assert was_used(server, who(server), spare)


def running_kernel(server: Server, template: int) -> int:
    """Waits until a run has a kernel and the next one is there as well; answers the run's."""
    found = kept(server, 2)
    assert found[0] == template
    return found[1]


def test_limits_do_not_count_what_is_kept(make_server: Callable[..., Server], gate: Gate) -> None:
    """One process and its memory is what a run has, whatever there is for the next."""
    server = make_server("--process-limit", "1", "--memory-limit", "150000000", "--warm-kernels", "python3=4")
    template, *_ = kept(server, 4)
    with started(server.stub, inline(gate.source, "print('through')")) as run:
        assert kept(server, 5)[0] == template
        gate.open()
        ended = finish_of(server, run.run_id)
    assert ended == pb.RUN_STATE_SUCCEEDED


def finish_of(server: Server, run_id: str) -> "pb.RunState.ValueType":
    """Waits for the end of a run."""
    events = list(server.stub.Progress(pb.ProgressRequest(run_id=run_id), timeout=SECONDS))
    return events[-1].run_changed.state


def test_nothing_kept_outlives_the_server(tmp_path: Path) -> None:
    """Server and worker die at once: templates and spares end by themselves."""
    server = KillableServer(tmp_path / "state", *EXPLAINED, "--workers", "2")
    with server:
        while len(forked(server)) < 4:
            assert server.process.poll() is None
            pause()
        server.die()
    assert forked(server) == []


def test_a_kernelspec_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The operator learns it when the server is started."""
    with pytest.raises(AssertionError, match="unknown kernelspec 'nowhere'"):
        Server(tmp_path, "--warm-kernels", "nowhere=1").__enter__()


def test_a_module_that_cannot_be_preloaded(make_server: Callable[..., Server]) -> None:
    """It is said, and kernels are kept without it."""
    server = make_server(*EXPLAINED, "--preload", "json,no_such_module")
    _, spare = kept(server)
    assert was_used(server, who(server), spare)
    server.logged("preload_failed", "no_such_module")


def test_a_module_that_starts_threads(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """A fork would not have them, so nothing is preloaded, and that is said."""
    source = "import threading, time\nthreading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()\n"
    (tmp_path / "threaded.py").write_text(source)
    server = make_server(*EXPLAINED, "--preload", "threaded", environment={"PYTHONPATH": str(tmp_path)})
    ended = perform(server.stub, inline("import sys; print('threaded' in sys.modules)"))
    assert texts(ended.events) == "False\n"
    kept(server)
    server.logged("preload_failed", "threads")


def test_a_module_that_keeps_a_file_open(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """All kernels would read on where another one stopped, so nothing is preloaded, and that is said."""
    (tmp_path / "keeping.py").write_text("file = open(__file__)\n")
    server = make_server(*EXPLAINED, "--preload", "keeping", environment={"PYTHONPATH": str(tmp_path)})
    kept(server)
    ended = perform(server.stub, inline("import sys; print('keeping' in sys.modules)"))
    assert texts(ended.events) == "False\n"
    server.logged("preload_failed", "files open")


def test_start_up_files_find_the_run(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """IPython's start-up files look at folder and variables, which a kernel that is kept gets later."""
    folder = tmp_path / "profile_default" / "startup"
    folder.mkdir(parents=True)
    (folder / "00.py").write_text("import os\nfound = [os.getcwd(), os.environ.get('GIVEN')]\n")
    server = make_server(*EXPLAINED, environment={"IPYTHONDIR": str(tmp_path)})
    _, spare = kept(server)
    source = "print(found == [os.environ['NOTEBOOK_RUNNER_RUN_DIR'], 'x'], os.getpid())"
    ended = perform(server.stub, inline(source, environment={"GIVEN": "x"}))
    found, process = texts(ended.events).split()
    assert found == "True"
    assert was_used(server, int(process), spare)


# More messages than the sockets between kernel and worker hold; the flush waits until all are sent.
MANY_MESSAGES = """
import sys
kernel = get_ipython().kernel
for _ in range(3000):
    kernel.session.send(kernel.iopub_socket, "stream", {"name": "stdout", "text": "x"})
sys.stdout.flush()
"""


@pytest.mark.parametrize("mode", ["warm", "cold"])
def test_start_up_files_may_print(make_server: Callable[..., Server], tmp_path: Path, mode: str) -> None:
    """No cell has printed what they print, and what the first cell prints is there."""
    folder = tmp_path / "profile_default" / "startup"
    folder.mkdir(parents=True)
    (folder / "00.py").write_text(MANY_MESSAGES)
    options = EXPLAINED if mode == "warm" else ["--no-warm-kernels"]
    server = make_server(*options, environment={"IPYTHONDIR": str(tmp_path)})
    for _ in range(3):
        warm = kept(server)[1:] if mode == "warm" else []
        # It fails if the process was not printed.
        process = who(server)
        assert mode == "cold" or was_used(server, process, *warm)


def test_kill_does_not_wait_for_a_template_that_stopped(tmp_path: Path) -> None:
    """Kill answers although a kernel is being forked by a template that has an hour for it."""
    program = [sys.executable, odd_server.__file__]
    with KillableServer(
        tmp_path / "state", *EXPLAINED, program=program, environment={FORK: "3600"}
    ) as server:
        template, _ = kept(server)
        os.kill(template, signal.SIGSTOP)
        with started(server.stub, inline("print(1, flush=True)\nimport time; time.sleep(1000)")) as run:
            reach(server.stub, run.run_id, "cell_output")
            answer = server.stub.Kill(pb.KillRequest(run_id=run.run_id), timeout=SECONDS)
    assert answer.run.state == pb.RUN_STATE_KILLED


def test_a_kernel_that_gets_ready_while_a_run_looks(tmp_path: Path) -> None:
    """The run has it, at whichever moment that is."""
    program = [sys.executable, odd_server.__file__]
    with KillableServer(tmp_path / "state", *EXPLAINED, program=program, environment={SWITCH: "1"}) as server:
        _, spare = kept(server)
        assert was_used(server, who(server), spare)


def test_a_folder_that_is_gone_ends_the_run(
    make_server: Callable[..., Server], gate: Gate, tmp_path: Path
) -> None:
    """A run waits, and its folder is removed: no kernel that is kept can work there, nor any other."""
    folder = tmp_path / "root" / "sub"
    folder.mkdir(parents=True)
    (folder / "a.ipynb").write_bytes(content("1"))
    server = make_server(*EXPLAINED, "--queue", "1", "--notebook-root", str(folder.parent))
    kept(server)
    with started(server.stub, inline(gate.source)):
        waiting = start(server.stub, pb.StartRequest(notebook_path="sub/a.ipynb"))
        shutil.rmtree(folder)
        gate.open()
        run = finish(server.stub, waiting.run_id).run
    assert (run.state, run.failure.cause) == (
        pb.RUN_STATE_CRASHED,
        pb.FAILURE_CAUSE_KERNEL_NOT_READY,
    )
    assert who(server)


def test_a_kernel_that_is_older_than_what_a_run_may_read(make_server: Callable[..., Server]) -> None:
    """A run has another kernel when something has appeared beside the server's own folders."""
    server = make_server(*EXPLAINED, environment={"NOTEBOOK_RUNNER_WRITABLE_FOLDERS": ""})
    _, spare = kept(server)
    (server.state_dir.parent / "newer").write_text("a")
    path = str(server.state_dir.parent / "newer")
    ended = perform(server.stub, inline(f"import os; print(os.getpid(), open({path!r}).read())"))
    process, found = texts(ended.events).split()
    assert int(process) != spare
    assert found == "a"
    assert was_used(server, int(process), spare)
