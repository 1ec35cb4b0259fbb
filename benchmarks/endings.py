"""Measure Kill for each kind of process tree, SIGKILL of the server, and restarts."""

import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import grpc
import nbformat
from google.protobuf.duration_pb2 import Duration
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import history
from benchmarks.report import percentile
from benchmarks.server import start
from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc

_PYTHON_API = (
    "import ctypes, time\nprint('there', flush=True)\n"
    # A thread sends the text, and the call below would block it.
    "time.sleep(0.3)\nctypes.PyDLL(None).sleep(1000)"
)
_CHILDREN = "[subprocess.Popen(['sleep', '1000']) for _ in range(5)]\n"
# A fork storm: each process forks a child and exits, so their number is constant.
_STORM = "import os\nfor _ in range(4): os.fork()\nwhile True:\n    if os.fork(): os._exit(0)"
_SLEEP = "import subprocess, os, time\n"
_WAIT = "print('there', flush=True)\ntime.sleep(1000)"
TREES = {
    "the kernel alone": _SLEEP + _WAIT,
    "children of the same group": _SLEEP
    + "[subprocess.Popen(['sleep', '1000']) for _ in range(5)]\n"
    + _WAIT,
    "children in sessions of their own": _SLEEP
    + "[subprocess.Popen(['sleep', '1000'], start_new_session=True) for _ in range(5)]\n"
    + _WAIT,
    "children forked twice": _SLEEP
    + "[subprocess.run(['sh', '-c', 'setsid sleep 1000 & setsid sleep 1000 &']) for _ in range(3)]\n"
    + _WAIT,
    "a fork storm (16 together)": "import subprocess, sys, time\n"
    f"subprocess.Popen([sys.executable, '-S', '-c', {_STORM!r}])\n" + _WAIT,
    "a busy loop": "print('there', flush=True)\nwhile True: pass",
    "C code that holds the interpreter": _PYTHON_API,
}
HISTORIES = (0, 1_000, 10_000)
MARK = "NBR_BENCH_MARK"


@dataclass
class Endings:
    """The measured durations, in seconds."""

    kills: dict[str, list[float]] = field(default_factory=dict)
    server_death: list[float] = field(default_factory=list)
    restarts: dict[int, list[float]] = field(default_factory=dict)


def measure(rounds: int) -> Endings:
    """Measure all durations."""
    found = Endings()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        server = start(Path(folder, "state"))
        with grpc.insecure_channel(server.address) as channel:
            stub = rpc.NotebookRunnerStub(channel)
            for name in track(list(TREES), description="kill"):
                found.kills[name] = [kill(stub, running(stub, TREES[name])) for _ in range(rounds)]
        server.stop()
        for number in track(range(max(2, rounds // 3)), description="server death"):
            found.server_death.append(_server_death(Path(folder, f"death{number}")))
        for runs in track(HISTORIES, description="restart"):
            state = Path(folder, f"history{runs}")
            history.fill(state, runs)
            found.restarts[runs] = [_restart(state) for _ in range(max(2, rounds // 3))]
    return found


def _notebook(source: str) -> bytes:
    cells = [nbformat.v4.new_code_cell(source)]
    text: str = nbformat.writes(nbformat.v4.new_notebook(cells=cells))
    return text.encode()


def running(stub: rpc.NotebookRunnerStub, source: str) -> str:
    """Start a run of one cell, and return its id when the cell reports that it is ready."""
    run = stub.Start(pb.StartRequest(notebook_content=_notebook(source))).run
    for event in stub.Progress(pb.ProgressRequest(run_id=run.run_id)):
        if event.HasField("cell_output"):
            break
    return run.run_id


def kill(stub: rpc.NotebookRunnerStub, run_id: str) -> float:
    """Kill a run, and return the duration of the call in seconds."""
    begin = time.perf_counter()
    answer = stub.Kill(pb.KillRequest(run_id=run_id, grace_period=Duration()))
    taken = time.perf_counter() - begin
    if answer.run.state != pb.RUN_STATE_KILLED:
        raise RuntimeError(f"not killed: {answer}")
    return taken


def _server_death(state: Path) -> float:
    """Kill the server during a run, and return the time until no process is left."""
    mark = uuid4().hex
    server = start(state, environment={MARK: mark})
    with grpc.insecure_channel(server.address) as channel:
        running(rpc.NotebookRunnerStub(channel), TREES["children forked twice"])
        begin = time.perf_counter()
        server.process.kill()
        server.process.wait()
        while _marked(mark):
            pass
        return time.perf_counter() - begin


def _marked(mark: str) -> bool:
    wanted = f"{MARK}={mark}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in path.read_bytes():
                return True
        except OSError:
            continue
    return False


def _restart(state: Path) -> float:
    begin = time.perf_counter()
    server = start(state)
    taken = time.perf_counter() - begin
    server.stop()
    return taken


def show(found: Endings) -> None:
    """Print the durations."""
    kills = Table("tree", "median", "p99", "max", title="Kill to its answer, in milliseconds")
    for name, values in found.kills.items():
        numbers = statistics.median(values), percentile(values, 0.99), max(values)
        kills.add_row(name, *(f"{1000 * number:.1f}" for number in numbers))
    rest = Table("what", "median", "max", title="Servers, in seconds")
    rest.add_row("SIGKILL to no process left", *_pair(found.server_death))
    for runs, values in found.restarts.items():
        rest.add_row(f"process start to ready, {runs} runs in the history", *_pair(values))
    console = Console()
    console.print(kills)
    console.print(rest)


def _pair(values: list[float]) -> tuple[str, str]:
    return f"{statistics.median(values):.3f}", f"{max(values):.3f}"
