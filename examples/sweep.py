"""Run a notebook with 100 values of a parameter, as many concurrently as the server has workers, in one view.

    notebook-runner-server --workers 3
    python examples/sweep.py [--sets 100] [--games 20]

The server is at NOTEBOOK_RUNNER_TARGET, by default 127.0.0.1:50051. It may execute on its own machine or on a
Dask cluster; when the cluster grows, so does the sweep. Ctrl-C kills the active runs.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from uuid import uuid4

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from notebook_runner import AsyncClient, AsyncRun, Printed, RunnerBusy, StateChanged, Unavailable

NOTEBOOK = "examples/quickstart.ipynb"
ACTIVE = ("queued", "starting", "running")


class Sweep:
    """Execute runs of one notebook that differ in the seed.

    Args:
        client: The client to use.
        view: Shows the progress of the sweep, and of each active run.
        games: A parameter of all runs.
    """

    def __init__(self, client: AsyncClient, view: Progress, games: int) -> None:
        self._client = client
        self._view = view
        self._games = games
        self._labels = {"from": "sweep", "sweep": uuid4().hex}
        self._following: list[asyncio.Task[None]] = []
        self.results: dict[int, str] = {}

    async def run(self, sets: int) -> None:
        """Run all sets; a cancellation kills the active runs."""
        total_bar = self._view.add_task("sets", total=sets)
        try:
            for seed in range(1, sets + 1):
                await self._wait_for_worker()
                run = await self._start(seed)
                task = asyncio.create_task(self._follow(run, seed))
                task.add_done_callback(lambda _: self._view.advance(total_bar))
                self._following.append(task)
            await asyncio.gather(*self._following)
        except asyncio.CancelledError:
            await self._kill()
            raise

    async def _wait_for_worker(self) -> None:
        """Wait until fewer runs are active than the server has workers, to leave its queue to others."""
        while active := [task for task in self._following if not task.done()]:
            if len(active) < (await self._client.info()).workers:
                return
            await asyncio.wait(active, return_when=asyncio.FIRST_COMPLETED)

    async def _start(self, seed: int) -> AsyncRun:
        """Start a run; retry while the server is busy or its cluster is unavailable."""
        parameters = {"seed": seed, "games": self._games}
        while True:
            starting = asyncio.ensure_future(
                self._client.start(NOTEBOOK, parameters=parameters, labels=self._labels)
            )
            try:
                return await asyncio.shield(starting)
            except (RunnerBusy, Unavailable) as refused:
                if refused.reason not in {"RUNNER_BUSY", "NOT_READY"}:
                    raise
                await asyncio.sleep(refused.retry_after or 1)
            finally:
                # Wait even after a cancellation: a run can be killed only once the server has admitted it.
                await asyncio.wait([starting])

    async def _follow(self, run: AsyncRun, seed: int) -> None:
        """Show a run, and keep its last line of output, or its failure."""
        bar = self._view.add_task(f"seed {seed}", total=run.cells_total)
        printed = ""
        async for event in run.progress():
            self._view.update(bar, completed=event.cells_completed)
            match event:
                case Printed(text):
                    # A line may come in several pieces.
                    printed += text
                    self.results[seed] = printed.strip().rpartition("\n")[2]
                case StateChanged() if failure := event.run.failure:
                    self.results[seed] = f"[red]{failure.message}[/red]"
        self._view.remove_task(bar)

    async def _kill(self) -> None:
        active = [run async for run in self._client.runs(state=ACTIVE, label=self._labels)]
        await asyncio.gather(*(run.kill() for run in active))
        self._view.console.print(f"killed {len(active)} runs")


async def main(sets: int, games: int) -> None:
    """Run the sweep and print what it found."""
    console = Console()
    async with AsyncClient() as client:
        with Progress(console=console) as view:
            sweep = Sweep(client, view, games)
            await sweep.run(sets)
    table = Table("seed", "result")
    for seed, text in sorted(sweep.results.items()):
        table.add_row(str(seed), text)
    console.print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--sets", type=int, default=100, help="how many seeds, from 1 on")
    parser.add_argument(
        "--games", type=int, default=20, help="a parameter of all runs: more games take longer"
    )
    asked = parser.parse_args()
    try:
        asyncio.run(main(asked.sets, asked.games))
    except KeyboardInterrupt:
        sys.exit(130)
