"""Many short runs in a row and as many readers that go away: nothing grows.

`make soak` takes longer.
"""

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc
from tests.support.calls import SECONDS, follow, inline, perform, start
from tests.support.killable import children, figure, worker_of
from tests.support.polling import pause
from tests.support.server import Server
from tests.support.warm import ON, ready

RUNS = int(os.environ.get("SOAK_RUNS", "60"))
STREAMS = int(os.environ.get("SOAK_STREAMS", "200"))
# What a server keeps for its first runs, it has then.
WARM_UP = min(50, RUNS // 2)
# The connection to a kept kernel may be looked at while it is made; what each run left would be many.
CONNECTIONS = 2
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


def _files(folder: Path) -> Counter[str]:
    """How many there are of everything below the folder for temporary files; folders have random names."""
    # A worker deletes a kernel's folder after the end of its run, and before the next one.
    while any(folder.glob("*/*/*.removed")):
        pause()
    return Counter("a folder" if path.is_dir() else path.name for path in folder.rglob("*"))


def _round(server: Server) -> None:
    """One run, followed to its end by one reader and left early by two others."""
    with_readers = start(server.stub, REQUEST)
    for _ in range(2):
        reader = follow(server.stub, with_readers.run_id)
        next(reader)
        reader.close()
    events = list(follow(server.stub, with_readers.run_id))
    assert events[-1].run_changed.state == pb.RUN_STATE_SUCCEEDED


def _drop_streams(server: Server, number: int) -> None:
    """Opens streams of the newest run and drops them: unread, after one event, and with their connection."""
    for place in range(number):
        with grpc.insecure_channel(server.target) as channel:
            stream = rpc.NotebookRunnerStub(channel).Progress(pb.ProgressRequest(), timeout=60)
            if place % 3:
                next(stream)
            if place % 3 == 1:
                stream.cancel()


def _settled(server: Server) -> dict[str, Taken]:
    """Server and worker when the newest run is over for both, and a kernel is there for the next one."""
    perform(server.stub, REQUEST)
    ready(server)
    # The server answers this when it has let go of the readers that left before.
    server.stub.List(pb.ListRequest(page_size=1), timeout=60)
    return {"server": taken(server.process.pid), "worker": taken(worker_of(server))}


@pytest.mark.process_pool("what grows is measured in the one worker below the server")
def test_nothing_grows(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """Memory, descriptors, sockets, threads, processes and temporary files are those of the beginning."""
    server = make_server(*ON, "--log-level", "debug", environment={"TMPDIR": str(tmp_path)})
    for _ in range(WARM_UP):
        _round(server)
    _drop_streams(server, min(20, STREAMS))
    before, files = _settled(server), _files(tmp_path)
    for _ in range(RUNS - WARM_UP):
        _round(server)
    _drop_streams(server, STREAMS)
    # Connections that were dropped are closed by and by.
    after, end = _settled(server), time.monotonic() + SECONDS
    while (_has_more(before, after) or _files(tmp_path) != files) and time.monotonic() < end:
        after = _settled(server)
    for name, then in before.items():
        figure(f"{name} after {WARM_UP} runs: {then}")
        figure(f"{name} after {RUNS} runs and {STREAMS} streams: {after[name]}")
    assert _files(tmp_path) == files
    assert not _has_more(before, after)
    for name, then in before.items():
        assert after[name].memory <= then.memory * SHARE + SLACK, name


def _has_more(before: dict[str, Taken], after: dict[str, Taken]) -> bool:
    """Whether a process has more of anything that can be counted."""
    return any(
        now - was > CONNECTIONS
        for name, then in before.items()
        for now, was in zip(after[name].counted, then.counted, strict=True)
    )
