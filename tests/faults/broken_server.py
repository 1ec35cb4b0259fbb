"""The real server's command with a broken promise: `broken_server.py PROMISE …`.

forgets     an acknowledged run is gone after a restart
repeats     a run that had been started is started again after a restart
skips       Progress leaves an event out
mangles     what a cell printed is something else in the notebook
leaves      the processes of a run are not ended
"""

import os
import sqlite3
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

VARIABLE = "NBR_TEST_BREAK"


def _forgets() -> None:
    from notebook_runner_server.runs.store import Store  # noqa: PLC0415 - a worker needs none of the server

    opened = Store.open

    async def open_without_newest(self: Store) -> None:
        await opened(self)
        row = await self.find("")
        if row is not None:
            await self.delete(row)

    Store.open = open_without_newest  # type: ignore[method-assign] # broken from outside


def _repeats() -> None:
    from notebook_runner_server.runs import tables  # noqa: PLC0415 - as above
    from notebook_runner_server.runs.model import RunState  # noqa: PLC0415 - as above

    unended = tables.unended_runs

    def all_queued(db: sqlite3.Connection) -> list[Any]:
        return [replace(row, run=replace(row.run, state=RunState.QUEUED)) for row in unended(db)]

    tables.unended_runs = all_queued


def _skips() -> None:
    from notebook_runner_server.runs.log import RunLog  # noqa: PLC0415 - as above

    follow = RunLog.follow

    async def follow_with_a_gap(self: RunLog, after: int, idle: float) -> AsyncIterator[Sequence[Any]]:
        async for events in follow(self, after, idle):
            kept = [event for event in events if event.sequence != 5]
            if kept or not events:
                yield kept

    RunLog.follow = follow_with_a_gap  # type: ignore[method-assign] # broken from outside


def _mangles() -> None:
    from notebook_runner_server.runs.folder import RunFolder  # noqa: PLC0415 - as above

    write = RunFolder.write

    def write_else(self: RunFolder, start: int, pieces: Any) -> None:
        write(self, start, [piece.replace(b"line 1", b"lime 1") for piece in pieces])

    RunFolder.write = write_else  # type: ignore[method-assign] # broken from outside


def _leaves() -> None:
    from notebook_runner_server.execution import processes  # noqa: PLC0415 - as above

    processes._kill_descendants = lambda *_: set()


if os.environ.get(VARIABLE) == "leaves":
    # Here, for it is the worker that has to be broken as well, and it imports this module again.
    _leaves()


def main() -> None:
    """Runs the server."""
    # As a program this has the folder of its file on the path, and not the one above.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from faults.crashing_server import _arm  # noqa: PLC0415 - as said

    from notebook_runner_server.__main__ import main as serve  # noqa: PLC0415 - as above

    promise = os.environ[VARIABLE] = sys.argv.pop(1)
    if promise == "leaves":
        _leaves()
    {"forgets": _forgets, "repeats": _repeats, "skips": _skips, "mangles": _mangles}.get(promise, int)()
    _arm()
    serve()


if __name__ == "__main__":
    main()
