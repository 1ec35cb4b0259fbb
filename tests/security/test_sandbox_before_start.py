"""What is executed before a kernel is the notebook's own: nothing of it escapes the sandbox."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.attacks import SECRET
from tests.support.calls import SECONDS, finish, inline, perform, reach, start, started, texts
from tests.support.gate import Gate
from tests.support.killable import worker_of
from tests.support.notebooks import notebook
from tests.support.processes import outlived
from tests.support.server import Server
from tests.support.unprivileged import UnprivilegedServer, unprivileged_home

# Executed by whatever is told to, at any time: it notes what it may do, where each kernel may write.
EVIL = """
import os
def may(action):
    try:
        action()
    except OSError as error:
        return type(error).__name__
    return "done"
with open({noted!r}, "a") as file:
    print(may(lambda: os.listdir({state!r})), may(lambda: open({home!r} + "/written", "w")), file=file)
"""
PREPARE = """
import os
os.makedirs({folder!r}, exist_ok=True)
for name, text in {files!r}.items():
    open(os.path.join({folder!r}, name), "w").write(text)
"""
WHO = """
import sys
print(sys.modules.get("sitecustomize"), open({noted!r}).read())
"""


@pytest.fixture(scope="module", params=["warm", "cold"])
def attacked(request: pytest.FixtureRequest) -> Iterator[UnprivilegedServer]:
    """A server that also has a kernel which a shell starts."""
    options = [] if request.param == "warm" else ["--no-warm-kernels"]
    with unprivileged_home() as home:
        spec = home / "share" / "kernels" / "shell"
        spec.mkdir(parents=True)
        command = f"exec {sys.executable} -m ipykernel_launcher -f $0"
        argv = ["bash", "-c", command, "{connection_file}"]
        about = {"argv": argv, "display_name": "Shell", "language": "python"}
        (spec / "kernel.json").write_text(json.dumps(about))
        environment = {"JUPYTER_PATH": str(home / "share")}
        with UnprivilegedServer(home, "--queue", "1", *options, environment=environment) as server:
            yield server


@pytest.mark.parametrize("kernel", ["python3", "shell"])
def test_no_variable_of_a_start_executes_code_outside(attacked: UnprivilegedServer, kernel: str) -> None:
    """What Python, a shell and the system's loader do at their start, they do in the sandbox."""
    # What all kernels may write.
    folder = attacked.home / ".cache" / kernel
    noted, trace = folder / "noted", attacked.home / "trace"
    evil = EVIL.format(noted=str(noted), state=str(attacked.state_dir), home=str(attacked.home))
    files = {
        "sitecustomize.py": evil,
        "evil.sh": f"{sys.executable} -S {folder}/sitecustomize.py\n",
    }
    perform(attacked.stub, inline(PREPARE.format(folder=str(folder), files=files)))
    environment = {
        "PYTHONPATH": str(folder),
        "BASH_ENV": str(folder / "evil.sh"),
        "LD_DEBUG": "files",
        "LD_DEBUG_OUTPUT": str(trace),
    }
    request = inline(WHO.format(noted=str(noted)), environment=environment, kernel_name=kernel)
    ended = perform(attacked.stub, request)
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED, ended.run.failure
    found = texts(ended.events)
    assert "sitecustomize.py" in found
    assert "done" not in found
    assert found.count("PermissionError PermissionError") == (1 if kernel == "python3" else 2)
    assert list(attacked.home.glob("trace*")) == []


LOOK = """
import os
def attempt(action):
    try:
        print(action())
    except OSError as error:
        print(type(error).__name__)
attempt(lambda: os.listdir("."))
attempt(lambda: open("notebook-runner.db", "rb").read(10))
attempt(lambda: open("written", "w"))
"""


def test_a_folder_that_becomes_a_link_opens_nothing(attacked: UnprivilegedServer) -> None:
    """A notebook exchanges another's folder, while that one waits, for a link to the history."""
    gate = Gate(attacked.home)
    victim = attacked.root / "victim"
    victim.mkdir()
    nbformat.write(notebook(LOOK), victim / "a.ipynb")
    swap = f"os.rename('victim', 'away'); os.symlink({str(attacked.state_dir)!r}, 'victim')"
    nbformat.write(notebook(f"print(1, flush=True)\n{gate.source}\n{swap}"), attacked.root / "swap.ipynb")
    attacked.give(attacked.home)
    with started(attacked.stub, pb.StartRequest(notebook_path="swap.ipynb")) as swapping:
        reach(attacked.stub, swapping.run_id, "cell_output")
        waiting = start(attacked.stub, pb.StartRequest(notebook_path="victim/a.ipynb"))
        gate.open()
        assert finish(attacked.stub, swapping.run_id).run.state == pb.RUN_STATE_SUCCEEDED
        ended = finish(attacked.stub, waiting.run_id)
    gate.close()
    (attacked.root / "victim").unlink()
    assert ended.run.failure.cause == pb.FAILURE_CAUSE_KERNEL_NOT_READY
    assert "is a symbolic link" in ended.run.failure.message
    assert not (attacked.state_dir / "written").exists()
    assert SECRET not in texts(ended.events)


@pytest.mark.parametrize("options", [(), ("--no-warm-kernels",)], ids=["warm", "cold"])
def test_no_module_of_the_working_folder_is_imported(tmp_path: Path, options: tuple[str, ...]) -> None:
    """The server may be started where notebooks write: what it starts looks for no module there."""
    folder, marker = tmp_path / "cwd", tmp_path / "marker"
    folder.mkdir()
    for name in ("selectors", "random", "tempfile", "socket", "pickle", "zmq", "nbclient"):
        (folder / f"{name}.py").write_text(f"open({str(marker)!r}, 'w')\nraise ImportError")
    with Server(tmp_path / "state", *options, folder=folder) as server:
        assert perform(server.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED
        worker = worker_of(server)
        os.kill(worker, signal.SIGKILL)
        # A run that comes while it dies would end with it.
        assert outlived([worker], SECONDS) == []
        assert perform(server.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED
        run = perform(server.stub, inline("1")).run
        server.stub.Output(pb.OutputRequest(run_id=run.run_id, format="html"), timeout=SECONDS)
    assert not marker.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="without root nobody can look into the server")
def test_locks_of_the_server_have_no_name(server: Server) -> None:
    """A notebook may write what has a name in /dev/shm, and so hold up whoever waits for it."""
    perform(server.stub, inline("1"))
    lines = [
        line
        for pid in (server.process.pid, worker_of(server))
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
        if "sem.mp-" in line
    ]
    assert lines
    assert [line for line in lines if not line.endswith(" (deleted)")] == []
