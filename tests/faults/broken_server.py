"""The real server's command with a broken promise: `broken_server.py PROMISE …`.

hurries     while there is an order to die, Start answers and nothing of the run was written
forgets     an acknowledged run is gone after a restart
repeats     a run that had been started is started again after a restart
skips       Progress leaves an event out
mangles     what a cell printed is something else in the notebook
swallows    no event tells of the last thing that a cell printed, and no gap is seen
leaves      the processes of a run are not ended
outlives    a worker goes on when its server has died
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

VARIABLE = "NBR_TEST_BREAK"
# As in crashing_server.py and harness.py, which a worker cannot import from here.
ORDER = "NBR_TEST_CRASH"
LAST_LINE = "line 4"


def _hurries() -> None:
    from notebook_runner_server.runs.store import Store  # noqa: PLC0415 - a worker needs none of the server

    insert, order = Store.insert, Path(os.environ[ORDER])

    def insert_nothing(self: Store, *args: Any, **options: Any) -> Coroutine[Any, Any, int]:
        return asyncio.sleep(0, 2**40) if order.exists() else insert(self, *args, **options)

    Store.insert = insert_nothing  # type: ignore[method-assign] # passes on what it gets


def _forgets() -> None:
    from notebook_runner_server.runs.store import Store  # noqa: PLC0415 - a worker needs none of the server

    opened = Store.open

    async def open_without_newest(self: Store) -> None:
        await opened(self)
        row = await self.newest()
        if row is not None:
            await self.delete(row)

    Store.open = open_without_newest  # type: ignore[method-assign] # broken from outside


def _repeats() -> None:
    from notebook_runner_server.runs import tables  # noqa: PLC0415 - as above
    from notebook_runner_server.runs.database import Connection  # noqa: PLC0415 - as above
    from notebook_runner_server.runs.folder import RunFolder  # noqa: PLC0415 - as above
    from notebook_runner_server.runs.model import RunState  # noqa: PLC0415 - as above

    # What a run leaves in its folder would keep it from being executed again.
    RunFolder.is_begun = False  # type: ignore[method-assign, assignment] # broken from outside
    unended = tables.unended_runs

    def all_queued(db: Connection) -> list[Any]:
        return [
            replace(row, run=replace(row.run, state=RunState.QUEUED))
            for row in unended(db)
            if isinstance(row, tables.RunRecord)
        ]

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
    from notebook_runner_server.execution.interface import SegmentChunk  # noqa: PLC0415 - as above
    from notebook_runner_server.runs.active import ActiveRun  # noqa: PLC0415 - as above

    record = ActiveRun._record

    async def record_else(self: ActiveRun, batch: Sequence[Any], *, is_end: bool = False) -> None:
        # Before it has a checksum.
        mangled = [
            replace(one, data=one.data.replace(b"line 1", b"lime 1"))
            if isinstance(one, SegmentChunk)
            else one
            for one in batch
        ]
        await record(self, mangled, is_end=is_end)

    ActiveRun._record = record_else  # type: ignore[method-assign] # broken from outside


def _swallows() -> None:
    from notebook_runner_server.execution.interface import StreamOutput  # noqa: PLC0415 - as above
    from notebook_runner_server.runs.active import ActiveRun  # noqa: PLC0415 - as above

    record = ActiveRun._record

    async def record_less(self: ActiveRun, batch: Sequence[Any], *, is_end: bool = False) -> None:
        kept = [one for one in batch if not (isinstance(one, StreamOutput) and LAST_LINE in one.text)]
        await record(self, kept, is_end=is_end)

    ActiveRun._record = record_less  # type: ignore[method-assign] # broken from outside


def _leaves() -> None:
    from notebook_runner_server.execution import processes  # noqa: PLC0415 - as above

    processes._kill_descendants = lambda *_: set()


def _outlives() -> None:
    from notebook_runner_server.execution.worker import _Worker  # noqa: PLC0415 - as above

    _Worker.terminate = lambda _: None  # type: ignore[assignment, method-assign, return-value] # as above


def _abandons() -> None:
    from notebook_runner_server.runs import transitions  # noqa: PLC0415 - as above

    transitions.is_retried = lambda run: False  # noqa: ARG005 - called by its name


IN_SERVER = {
    "abandons": _abandons,
    "hurries": _hurries,
    "forgets": _forgets,
    "repeats": _repeats,
    "skips": _skips,
    "swallows": _swallows,
    "mangles": _mangles,
    "leaves": _leaves,
}
IN_WORKER = {"leaves": _leaves, "outlives": _outlives}
PROMISES = sorted({*IN_SERVER, *IN_WORKER})

# A worker imports this module again, and does not come to main().
if os.environ.get(VARIABLE) in IN_WORKER:
    IN_WORKER[os.environ[VARIABLE]]()


def main() -> None:
    """Runs the server."""
    # As a program this has the folder of its file on the path, and not the repository's root.
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from notebook_runner_server.__main__ import main as serve  # noqa: PLC0415 - as above
    from tests.faults.crashing_server import _arm  # noqa: PLC0415 - as said

    promise = os.environ[VARIABLE] = sys.argv.pop(1)
    # A promise that is spelt wrong must not start a sound server.
    assert promise in PROMISES
    if promise in IN_SERVER:
        IN_SERVER[promise]()
    _arm()
    serve()


if __name__ == "__main__":
    main()
