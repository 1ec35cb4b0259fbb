"""Run a notebook from asyncio, and kill the run if it takes too long or its task is cancelled.

    python examples/async_client.py [SECONDS [NOTEBOOK]]

The server is at NOTEBOOK_RUNNER_TARGET, by default 127.0.0.1:50051.
"""

from __future__ import annotations

import asyncio
import sys

from notebook_runner import AsyncClient, Printed, RunFailed


async def run_for(client: AsyncClient, seconds: float, notebook: str) -> str:
    """Run a notebook for at most `seconds`, and return the last line that it printed.

    A time-out or a cancellation of this task kills the run as well.

    Raises:
        TimeoutError: The run took longer.
        RunFailed: The run ended in another state than SUCCEEDED.
    """
    run = await client.start(notebook, labels={"from": "async_client"})
    printed = ""
    try:
        async with asyncio.timeout(seconds):
            async for event in run.progress():
                if isinstance(event, Printed):
                    printed += event.text
            (await run.wait()).raise_for_state()
    finally:
        killed = await run.kill()  # does nothing to a run that has ended
        if killed.processes_ended:
            print(f"ended {killed.processes_ended} processes", file=sys.stderr)
    return printed.rstrip().rpartition("\n")[2]


async def main(seconds: str = "60", notebook: str = "examples/quickstart.ipynb") -> int:
    """Run the notebook, and return an exit code."""
    async with AsyncClient() as client:
        try:
            print(await run_for(client, float(seconds), notebook))
        except TimeoutError:
            print(f"the run did not finish within {seconds} s", file=sys.stderr)
            return 1
        except RunFailed as failed:
            print(failed.traceback or failed, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:])))
