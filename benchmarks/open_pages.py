"""Measure Start and Kill while many browsers have the server's page open, and without them.

As a program, this module is the browsers: it opens the streams that the page opens, reads them, and ends with
an error if one of them breaks.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any

from rich.progress import track

from benchmarks import notebooks
from benchmarks.competitors import SECONDS
from benchmarks.report import Figure, Goal
from benchmarks.service import NAME, Service

PAGES = 500
"""Half of them show the list of runs, the other half one active run."""

LINES = 5
"""How many lines a second that run prints."""

CALLS = 100
WITHOUT = "without pages"


def measure(service: Service, address: str) -> list[Figure]:
    """Measure both calls over HTTP; Kill is answered when all processes of the run are gone.

    Args:
        service: The server's gRPC.
        address: The address of its HTTP.

    Raises:
        RuntimeError: A page lost its stream.
    """
    figures = [Figure(f"{call}, {PAGES} open pages", "ms", 1000) for call in ("Start", "Kill")]
    followed = service.start(notebooks.written(notebooks.ticking(10**6, 1 / LINES, flush=True))).run_id
    _call(service, address, WITHOUT, figures)
    with _open_pages(address, followed):
        _call(service, address, NAME, figures)
    _post(address, f"/v1/runs/{followed}:kill")
    for figure in figures:
        figure.goals = [
            Goal("ms, median", 1000, figure.median(NAME), at_most=True),
            Goal("ms, p99", 1000, figure.p99(NAME), at_most=True),
        ]
    return figures


def _call(service: Service, address: str, who: str, figures: list[Figure]) -> None:
    """Start runs that sleep, and kill each when it has begun."""
    starts, kills = figures
    notebook = notebooks.written(notebooks.ticking(1, 1000, flush=True))
    for _ in track(range(CALLS), description=f"Start and Kill, {who}"):
        begin = time.perf_counter()
        run_id = _post(address, "/v1/runs", notebook)["run"]["runId"]
        starts.add(who, time.perf_counter() - begin)
        next(event for _, event in service.follow(run_id) if event.HasField("cell_output"))
        begin = time.perf_counter()
        _post(address, f"/v1/runs/{run_id}:kill")
        kills.add(who, time.perf_counter() - begin)


def _post(address: str, path: str, body: bytes = b"") -> Any:
    connection = HTTPConnection(address, timeout=SECONDS)
    try:
        connection.request("POST", path, body)
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{path}: {answer.status} {content[:500].decode(errors='replace')}")
    return json.loads(content)


@contextmanager
def _open_pages(address: str, run_id: str) -> Iterator[None]:
    command = [sys.executable, "-m", __name__, address, run_id]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as browsers:
        if browsers.stdout is None or browsers.stdout.readline() != "open\n":
            raise RuntimeError("the pages did not open")
        yield
        # The end of their input.
        browsers.communicate(timeout=SECONDS)
    if browsers.returncode:
        raise RuntimeError("a page lost its stream")


async def _browse(address: str, run_id: str) -> None:
    """Have the pages open until standard input ends."""
    paths = [
        "/v1/watch?include_existing=true&",
        f"/v1/runs/{run_id}/progress?display_data_max_bytes=262144&after_sequence=0",
    ]
    are_open = asyncio.Barrier(PAGES + 1)
    streams = [asyncio.create_task(_read(address, paths[number % 2], are_open)) for number in range(PAGES)]
    closing = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    opening = asyncio.create_task(are_open.wait())
    await asyncio.wait({opening, *streams}, return_when=asyncio.FIRST_COMPLETED)
    if not any(one.done() for one in streams):
        print("open", flush=True)
        await asyncio.wait({closing, *streams}, return_when=asyncio.FIRST_COMPLETED)
    if ended := next((one for one in streams if one.done()), None):
        ended.result()
        raise RuntimeError("a stream ended")
    for one in streams:
        one.cancel()


async def _read(address: str, path: str, are_open: asyncio.Barrier) -> None:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: application/x-ndjson\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(head.decode())
    await reader.readline()
    await are_open.wait()
    while await reader.read(65536):
        pass


if __name__ == "__main__":
    asyncio.run(_browse(*sys.argv[1:]))
