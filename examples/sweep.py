"""Runs a notebook with many values of a parameter, three at once, with one view of all of them.

    notebook-runner-server --workers 3
    python examples/sweep.py [FIRST_SEED [LAST_SEED]]

The server is at NOTEBOOK_RUNNER_TARGET, or else at 127.0.0.1:50051.
"""

from __future__ import annotations

import asyncio
import sys

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from notebook_runner import AsyncClient, RunnerBusy
from notebook_runner.v1.notebook_runner_pb2 import Run

NOTEBOOK = "examples/quickstart.ipynb"
AT_ONCE = 3


async def started(client: AsyncClient, seed: int) -> Run:
    """Start a run; where others have taken the server, wait until it has a place."""
    while True:
        try:
            return await client.start(
                NOTEBOOK, parameters={"seed": seed, "games": 20}, labels={"sweep": "seed"}
            )
        except RunnerBusy as busy:
            await asyncio.sleep(busy.retry_after or 1)


async def one(client: AsyncClient, places: asyncio.Semaphore, view: Progress, seed: int) -> str:
    """Run the notebook with one seed, and return what it found."""
    bar = view.add_task(f"seed {seed}", total=None, start=False)
    found = ""
    async with places:
        run = await started(client, seed)
        view.start_task(bar)
        async for event in client.progress(run.run_id):
            view.update(bar, total=event.cells_total, completed=event.cells_completed)
            if event.HasField("cell_output") and event.cell_output.HasField("stream"):
                found = event.cell_output.stream.text.strip()
            elif event.HasField("run_changed") and event.run_changed.HasField("failure"):
                found = f"[red]{event.run_changed.failure.message}[/red]"
    return found


async def main(first: int = 1, last: int = 6) -> None:
    """Run the sweep and print what it found."""
    seeds = range(first, last + 1)
    console = Console()
    places = asyncio.Semaphore(AT_ONCE)
    async with AsyncClient() as client:
        with Progress(console=console) as view:
            found = await asyncio.gather(*(one(client, places, view, seed) for seed in seeds))
    table = Table("seed", "found")
    for seed, text in zip(seeds, found, strict=True):
        table.add_row(str(seed), text)
    console.print(table)


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
