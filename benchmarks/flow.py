"""Measure the delay of events for one client and for many, and the throughput of artefacts."""

import asyncio
import io
import subprocess
import sys
import threading
import time
import zipfile
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.progress import track

from benchmarks import notebooks
from benchmarks.report import Figure, Goal
from benchmarks.service import NAME, Service
from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc

READERS = 200
RATE = 50
BARE = "a bare gRPC server"
MIB = 1024 * 1024


def printed(service: Service, *, flush: bool, rounds: int) -> Figure:
    """Measure the time from a print in the kernel to the event with its line."""
    figure = Figure(f"print(…, flush={flush}) to the client", "ms", 1000)
    for _ in track(range(rounds), description=figure.name):
        run = service.start(notebooks.written(notebooks.ticking(100, 0.02, flush=flush)))
        for at, event in service.follow(run.run_id):
            figure.add(NAME, *late(at, event))
    figure.goals = [Goal("ms, median", 2.5 if flush else 60, figure.median(NAME), at_most=True)]
    if flush:
        figure.goals.append(Goal("ms, p99", 6, figure.p99(NAME), at_most=True))
    return figure


def deaths(service: Service, rounds: int) -> Figure:
    """Measure the time from the last line of a kernel that kills itself to the terminal event."""
    figure = Figure("a kernel's death to its terminal event", "ms", 1000)
    source = "import os, time\nprint(time.time_ns(), flush=True)\ntime.sleep(0.2)\n"
    source += "os.write(os.open('died', os.O_CREAT | os.O_WRONLY), str(time.time_ns()).encode()); os._exit(1)"
    for _ in track(range(rounds), description=figure.name):
        time.sleep(0.5)
        run = service.start(notebooks.written(notebooks.of([source])))
        stream = service.stub.Progress(pb.ProgressRequest(run_id=run.run_id))
        *_, last = [time.time() for _ in stream]
        with zipfile.ZipFile(io.BytesIO(service.artefact(run.run_id, "files"))) as files:
            figure.add(NAME, last - int(files.read("died")) / 1e9)
    figure.goals = [Goal("ms, median", 50, figure.median(NAME), at_most=True)]
    return figure


def late(at: float, event: pb.ProgressResponse) -> list[float]:
    """Return the delay of each line of an event, in seconds."""
    lines = event.cell_output.stream.text.splitlines() if event.HasField("cell_output") else []
    return [at - int(line.split()[0]) / 1e9 for line in lines]


def many_readers(service: Service, address: str, seconds: int) -> tuple[Figure, Figure]:
    """Measure 200 readers of one run with 50 events a second, and Kill and health meanwhile."""
    figure, calls = (
        Figure(f"{READERS} readers, {RATE} lines a second", "ms", 1000),
        Figure("meanwhile", "ms", 1000),
    )
    count = RATE * seconds
    run = service.start(notebooks.written(notebooks.ticking(count, 1 / RATE, flush=True)))
    stop = threading.Event()
    prober = threading.Thread(target=_probe, args=(address, calls, stop))
    prober.start()
    found = asyncio.run(_read_all(address, run.run_id))
    stop.set()
    prober.join()
    for reader, lines in found:
        if lines != count:
            raise RuntimeError(f"a reader had {lines} of {count} lines")
        figure.add(NAME, *reader)
    figure.goals = [Goal("ms, p99", 40, figure.p99(NAME), at_most=True)]
    calls.goals = [
        Goal("ms for Kill of another run, p99", 100, calls.p99("Kill of another run"), at_most=True),
        Goal("ms for health, p99", 200, calls.p99("health"), at_most=True),
    ]
    return figure, calls


async def _read_all(address: str, run_id: str) -> list[tuple[list[float], int]]:
    async def read(stub: Any) -> tuple[list[float], int]:
        times: list[float] = []
        lines = 0
        async for event in stub.Progress(pb.ProgressRequest(run_id=run_id)):
            found = late(time.time(), event)
            lines += len(found)
            times += found
        return times, lines

    async with grpc.aio.insecure_channel(address) as channel:
        stub = rpc.NotebookRunnerStub(channel)
        return await asyncio.gather(*(read(stub) for _ in range(READERS)))


def _probe(address: str, figure: Figure, stop: threading.Event) -> None:
    """Start runs that sleep forever, and kill them."""
    with grpc.insecure_channel(address) as channel:
        service, health = Service(rpc.NotebookRunnerStub(channel)), health_pb2_grpc.HealthStub(channel)
        while not stop.is_set():
            run = service.start(notebooks.written(notebooks.ticking(1, 1000, flush=True)))
            next(event for _, event in service.follow(run.run_id) if event.HasField("cell_output"))
            begin = time.perf_counter()
            service.stub.Kill(pb.KillRequest(run_id=run.run_id, grace_period=Duration()))
            middle = time.perf_counter()
            health.Check(health_pb2.HealthCheckRequest())
            figure.add("Kill of another run", middle - begin)
            figure.add("health", time.perf_counter() - middle)


def _bare(size: int) -> float:
    """Measure a bare server that answers every call with the same page: the upper bound."""
    command = [sys.executable, "-m", "benchmarks.bare"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        port = server.stdout.readline().strip() if server.stdout else ""
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = rpc.NotebookRunnerStub(channel)
            stub.Output(pb.OutputRequest())
            begin, left = time.perf_counter(), size
            while left > 0:
                left -= len(stub.Output(pb.OutputRequest()).content)
            seconds = time.perf_counter() - begin
        server.kill()
    return size / seconds


def output(service: Service, megabytes: int, rounds: int) -> Figure:
    """Measure one reader of an executed notebook, in pages of 1 MiB."""
    figure = Figure("Output, one reader", "MB/s", 1e-6)
    run = service.start(notebooks.written(notebooks.large(10 * megabytes)))
    for _ in service.follow(run.run_id):
        pass
    for _ in range(rounds):
        begin = time.perf_counter()
        size = sum(map(len, service.pages(run.run_id, MIB)))
        figure.add(NAME, size / (time.perf_counter() - begin))
        figure.add(BARE, _bare(size))
    figure.goals = [Goal(f"of {BARE}'s rate", 0.9, 1 / figure.ratio(BARE))]
    return figure
