"""The real server's command, that ends itself with SIGKILL when it comes to a named point.

NBR_TEST_CRASH names a file. While it is there and says `point:hits`, hits are counted, and the server dies
when it comes to the point for the n-th time. The points:

before-commit    in a transaction of the store, when everything is written and nothing committed
after-commit     when a transaction is committed, and nobody knows of it
after-answer     when the answer to a Start was sent
folder-begun     when the folder of a new run has its notebook and not its variables and files
folder-written   when all of that folder is written and synced, and the history does not have the run
inputs-left      when the end of a run is recorded, and its variables and files are not removed
cell-finished    when the readers were shown that a cell has finished
last-write       before the terminal event of a run is written
"""

import os
import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

VARIABLE = "NBR_TEST_CRASH"
POINTS = (
    *("before-commit", "after-commit", "after-answer", "cell-finished", "last-write"),
    *("folder-begun", "folder-written", "inputs-left"),
)


class _Points:
    """Counts how often the server comes to each point, while there is an order to die at one."""

    def __init__(self, order: Path) -> None:
        self._order = order
        self._hits: Counter[str] = Counter()

    def come_to(self, point: str) -> None:
        """Dies, when this is the time and the place."""
        try:
            wanted, _, count = self._order.read_text().partition(":")
        except FileNotFoundError:
            self._hits.clear()
            return
        self._hits[point] += 1
        if point == wanted and self._hits[point] == int(count):
            os.kill(os.getpid(), signal.SIGKILL)


def _arm() -> None:
    """Puts the points into the server."""
    # A worker process imports this module again, and needs none of the server.
    from notebook_runner_server.api.servicer import Servicer  # noqa: PLC0415
    from notebook_runner_server.execution.interface import CellFinished  # noqa: PLC0415
    from notebook_runner_server.runs.log import RunLog  # noqa: PLC0415
    from notebook_runner_server.runs.sqlite import SqliteDatabase  # noqa: PLC0415

    come_to = _Points(Path(os.environ[VARIABLE])).come_to
    write, answer, publish, append = SqliteDatabase.write, Servicer.Start, RunLog.publish, RunLog.append

    async def written(self: SqliteDatabase, function: Any, *args: Any, **kwargs: Any) -> Any:
        def before_commit(*inner: Any, **options: Any) -> Any:
            result = function(*inner, **options)
            come_to("before-commit")
            return result

        result = await write(self, before_commit, *args, **kwargs)
        come_to("after-commit")
        return result

    async def answered(self: Servicer, request: Any, context: Any) -> Any:
        context.add_done_callback(lambda _: come_to("after-answer"))
        return await answer(self, request, context)

    def published(self: RunLog, events: Sequence[Any]) -> None:
        publish(self, events)
        if any(isinstance(event.body, CellFinished) for event in events):
            come_to("cell-finished")

    async def appended(self: RunLog, run: Any, events: Sequence[Any], *args: Any, **options: Any) -> int:
        if any(event.is_terminal for event in events):
            come_to("last-write")
        return await append(self, run, events, *args, **options)

    SqliteDatabase.write = written  # type: ignore[method-assign] # the points are put in from outside
    Servicer.Start = answered  # type: ignore[method-assign] # as above
    RunLog.publish = published  # type: ignore[method-assign] # as above
    _arm_folders(come_to)
    RunLog.append = appended  # type: ignore[method-assign] # passes on what it gets


def _arm_folders(come_to: Callable[[str], None]) -> None:
    """Puts the points into what the store does with the folders of runs."""
    from notebook_runner_server.runs.folder import RunFolder  # noqa: PLC0415 - as above

    write_secrets, sync, delete_inputs = RunFolder.write_secrets, RunFolder.sync, RunFolder.delete_inputs

    def secrets_written(self: RunFolder, environment: Mapping[str, str], output_uri: str) -> None:
        come_to("folder-begun")
        write_secrets(self, environment, output_uri)

    def synced(self: RunFolder) -> None:
        sync(self)
        come_to("folder-written")

    def inputs_deleted(self: RunFolder) -> None:
        come_to("inputs-left")
        delete_inputs(self)

    RunFolder.write_secrets = secrets_written  # type: ignore[method-assign] # the points are put in from outside
    RunFolder.sync = synced  # type: ignore[method-assign] # as above
    RunFolder.delete_inputs = inputs_deleted  # type: ignore[method-assign] # as above


def main() -> None:
    """Runs the server."""
    from notebook_runner_server.__main__ import main as serve  # noqa: PLC0415 - as above

    _arm()
    serve()


if __name__ == "__main__":
    main()
