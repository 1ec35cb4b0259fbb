"""Memory stays bounded: a large notebook, many readers of it, and a reader that has stopped reading."""

import threading
from collections.abc import Callable
from pathlib import Path

import grpc

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc
from tests.support.calls import SECONDS, inline, pages, perform, reach, started
from tests.support.gate import Gate
from tests.support.killable import figure
from tests.support.server import Server

MEGABYTES = 300
READERS = 20
GROWTH = 64 * 1024 * 1024
# The driver of PostgreSQL holds what a transaction writes in several forms: 68 MiB were measured.
GROWTH_WITH_POSTGRES = 96 * 1024 * 1024
# Of 10 kB each.
LINES = 2_000


def peak(pid: int) -> int:
    """The most memory that a process had since `forget_peak`, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def forget_peak(pid: int) -> None:
    """Lets the peak begin at what the process has now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def read(target: str, run_id: str, sizes: list[int]) -> None:
    """Reads the whole notebook over a connection of its own."""
    with grpc.insecure_channel(target) as channel:
        stub = rpc.NotebookRunnerStub(channel)
        sizes.append(sum(len(page.content) for page in pages(stub, run_id=run_id)))


def test_a_large_notebook_and_many_readers(make_server: Callable[..., Server]) -> None:
    """300 MB come from the kernel and go to 20 clients: the server itself holds little of it."""
    server = make_server("--cell-output-limit", "0")
    perform(server.stub, inline("1"))
    pid = server.process.pid
    forget_peak(pid)
    before = peak(pid)
    run, _ = perform(server.stub, inline(f"for number in range({MEGABYTES}): print('x' * 999_999)"))
    assert run.state == pb.RUN_STATE_SUCCEEDED, run.failure
    produced = peak(pid)
    sizes: list[int] = []
    readers = [threading.Thread(target=read, args=(server.target, run.run_id, sizes)) for _ in range(READERS)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    after = peak(pid)
    figure(f"before {before >> 20} MiB, produced {produced >> 20} MiB, read {after >> 20} MiB")
    assert len(set(sizes)) == 1
    assert len(sizes) == READERS
    assert sizes[0] > MEGABYTES * 999_999
    assert after - before < (GROWTH if Server.databases is None else GROWTH_WITH_POSTGRES)


def test_a_reader_that_has_stopped_costs_nothing(make_server: Callable[..., Server], gate: Gate) -> None:
    """Ten streams that nobody reads, of a run that prints 20 MB: the server's memory and the run go on."""
    server = make_server()
    source = f"{gate.source}\nfor number in range({LINES}): print('x' * 9_999, flush=True)"
    pid = server.process.pid
    with started(server.stub, inline("print(1, flush=True)", source)) as run:
        reach(server.stub, run.run_id, "cell_output")
        forget_peak(pid)
        before = peak(pid)
        streams = [
            server.stub.Progress(pb.ProgressRequest(run_id=run.run_id), timeout=2 * SECONDS)
            for _ in range(10)
        ]
        for stream in streams:
            next(stream)
        gate.open()
        reach(server.stub, run.run_id, "cell_finished", 1)
        after = peak(pid)
        figure(f"before {before >> 20} MiB, after {after >> 20} MiB")
        assert after - before < GROWTH
        for stream in streams:
            stream.cancel()
