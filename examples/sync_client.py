"""Run a notebook with the blocking client: follow it, and save its page however it ended.

    python examples/sync_client.py [NOTEBOOK [PAGE]]

The server is at NOTEBOOK_RUNNER_TARGET, by default 127.0.0.1:50051.
"""

from __future__ import annotations

import sys

from notebook_runner import CellStarted, Client, Event, NotebookRunnerError, Printed, RunnerBusy


def show(event: Event) -> None:
    """Print an event for a person."""
    match event:
        case CellStarted(index, first_line):
            print(f"[{index + 1} of {event.cells_total}] {first_line}")
        case Printed(text):
            print(text, end="")


def main(notebook: str = "examples/quickstart.ipynb", page: str = "quickstart.html") -> int:
    """Run the notebook, write its page, and return an exit code."""
    with Client() as client:
        try:
            run = client.start(notebook, parameters={"games": 10}, labels={"from": "sync_client"})
            for event in run.progress():
                show(event)
            run = run.wait()
            run.save(page, format="html")
        except RunnerBusy as busy:
            print(
                f"the server is busy with run {busy.run_id}; try again in {busy.retry_after} s",
                file=sys.stderr,
            )
            return 1
        except NotebookRunnerError as error:
            print(error, file=sys.stderr)
            return 1
    if run.failure:
        print(run.failure.traceback or run.failure.message, file=sys.stderr)
        return 1
    print(f"wrote {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
