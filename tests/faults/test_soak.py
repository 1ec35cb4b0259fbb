"""Many short runs in a row and as many readers that go away: nothing grows.

`SOAK_RUNS=1000 pytest tests/faults/test_soak.py -s -o faulthandler_timeout=0` takes longer.
"""

import os
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

from support.calls import follow, inline, perform, start
from support.mortal import children, figure, worker_of
from support.server import Server

from notebook_runner.v1 import notebook_runner_pb2 as pb

RUNS = int(os.environ.get("SOAK_RUNS", "60"))
# What a server keeps for its first runs, it has then.
WARM_UP = min(20, RUNS // 2)
SHARE, SLACK = 1.05, 3 * 1024 * 1024
REQUEST = inline("print('x' * 1000)", "1 + 1")


@dataclass(frozen=True)
class Taken:
    """What a process has: memory in bytes, descriptors, sockets, threads, children."""

    memory: int
    descriptors: int
    sockets: int
    threads: int
    children: int

    @property
    def counted(self) -> tuple[int, ...]:
        """All but the memory."""
        return tuple(astuple(self)[1:])


def taken(pid: int) -> Taken:
    """Looks at one process."""
    place = Path(f"/proc/{pid}")
    rollup = (place / "smaps_rollup").read_text().splitlines()
    memory = next(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Pss:"))
    opened = [_target(entry) for entry in (place / "fd").iterdir()]
    sockets = sum(target.startswith("socket:") for target in opened)
    threads = len(os.listdir(place / "task"))
    return Taken(memory, len(opened), sockets, threads, len(children(pid)))


def _target(entry: Path) -> str:
    try:
        return str(entry.readlink())
    except FileNotFoundError:
        return ""


def _round(server: Server) -> None:
    """One run, followed to its end by one reader and left early by two others."""
    with_readers = start(server.stub, REQUEST)
    for _ in range(2):
        reader = follow(server.stub, with_readers.run_id)
        next(reader)
        reader.close()
    events = list(follow(server.stub, with_readers.run_id))
    assert events[-1].run_changed.state == pb.RUN_STATE_SUCCEEDED


def _settled(server: Server) -> dict[str, Taken]:
    """Server and worker when the newest run is over for both: the next one has begun and ended."""
    perform(server.stub, REQUEST)
    # The server answers this when it has let go of the readers that left before.
    server.stub.List(pb.ListRequest(page_size=1), timeout=60)
    return {"server": taken(server.process.pid), "worker": taken(worker_of(server))}


def test_nothing_grows(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """Memory, descriptors, sockets, threads, processes and temporary files are those of the beginning."""
    server = make_server(environment={"TMPDIR": str(tmp_path)})
    for _ in range(WARM_UP):
        _round(server)
    before = _settled(server)
    for _ in range(RUNS - WARM_UP):
        _round(server)
    after = _settled(server)
    for name, then in before.items():
        figure(f"{name} after {WARM_UP} runs: {then}")
        figure(f"{name} after {RUNS} runs: {after[name]}")
    assert list(tmp_path.iterdir()) == []
    for name, then in before.items():
        assert after[name].counted == then.counted, name
        assert after[name].memory <= then.memory * SHARE + SLACK, name
