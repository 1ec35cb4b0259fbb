"""Run a notebook with the blocking client: follow it, and save its page however it ended.

    python examples/sync_client.py [NOTEBOOK [PAGE]]

The server is at NOTEBOOK_RUNNER_TARGET, by default 127.0.0.1:50051.
"""

from __future__ import annotations

import sys

from notebook_runner import Client, NotebookRunnerError, RunnerBusy
from notebook_runner.v1.notebook_runner_pb2 import RUN_STATE_SUCCEEDED, ProgressResponse


def show(event: ProgressResponse) -> None:
    """Print an event for a person."""
    if event.HasField("cell_started"):
        print(f"[{event.cells_completed} of {event.cells_total}] {event.cell_started.first_line}")
    elif event.HasField("cell_output") and event.cell_output.HasField("stream"):
        print(event.cell_output.stream.text, end="")


def main(notebook: str = "examples/quickstart.ipynb", page: str = "quickstart.html") -> int:
    """Run the notebook, write its page, and return an exit code."""
    with Client() as client:
        try:
            run = client.start(notebook, parameters={"games": 10}, labels={"from": "sync_client"})
            for event in client.progress(run.run_id):
                show(event)
            ended = client.wait(run.run_id)
            client.save_output(page, run.run_id, format="html")
        except RunnerBusy as busy:
            print(
                f"the server is busy with run {busy.run_id}; try again in {busy.retry_after} s",
                file=sys.stderr,
            )
            return 1
        except NotebookRunnerError as error:
            print(error, file=sys.stderr)
            return 1
    if ended.state != RUN_STATE_SUCCEEDED:
        print(ended.failure.traceback or ended.failure.message, file=sys.stderr)
        return 1
    print(f"wrote {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
