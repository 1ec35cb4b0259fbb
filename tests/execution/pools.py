"""A real pool with real kernels, on an event loop that lives as long as the pool does."""

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Self, TypeVar
from uuid import uuid4

from nbformat import NotebookNode

from notebook_runner_server.confinement import confine
from notebook_runner_server.execution.interface import (
    Ended,
    ExecutionEvent,
    Job,
    Limits,
    RunHandle,
    SegmentChunk,
    StreamOutput,
)
from notebook_runner_server.execution.notebook import prepare
from notebook_runner_server.execution.options import WarmKernels
from notebook_runner_server.execution.pool import ProcessPoolBackend
from notebook_runner_server.execution.segments import HEAD, SEPARATOR, TAIL
from tests.support.notebooks import content, parsed
from tests.support.polling import pause
from tests.support.processes import marked

_T = TypeVar("_T")
# A run that needs it hangs.
SECONDS = 300.0
MARK_VARIABLE = "NBR_POOL_MARK"
Batches = AsyncGenerator[Sequence[ExecutionEvent], None]
# A child, one in its own session, and one whose parent is gone.
CHILDREN = """
import os, subprocess
subprocess.Popen(["sleep", "100000"])
subprocess.Popen(["sleep", "100000"], start_new_session=True)
subprocess.run(["sh", "-c", "setsid sleep 100000 &"], check=True)
"""
FOR_EVER = f"{CHILDREN}\nprint('here', flush=True)\nimport time; time.sleep(100000)"


class Pool:
    """A pool between `with` and its end, at which it is closed and nothing of it may be left.

    Attributes:
        backend: The pool itself.
        mark: What the environment of every process of it carries.
        spawned: The processes that it had before it was started.
    """

    def __init__(self, folder: Path, workers: int = 1, warm: WarmKernels | None = None) -> None:
        self._warm = warm
        self.mark = uuid4().hex
        self._folder = folder
        self._workers = workers
        self._loop = asyncio.Runner()

    def __enter__(self) -> Self:
        # A helper of the interpreter, which stays as long as the interpreter.
        resource_tracker.ensure_running()
        self._outer = os.environ.get(MARK_VARIABLE, "")
        os.environ[MARK_VARIABLE] = self.mark
        self.backend = ProcessPoolBackend(self._workers, self._folder / "scratch", warm=self._warm)
        self.backend.spawn()
        self.spawned = loading(self.mark, self._workers)
        self.do(self.backend.start())
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.do(self.backend.close())
            left = marked(self.mark)
            assert left == {}, "left behind"
        finally:
            for pid in marked(self.mark):
                # It may end by itself, as it is about to when its server is gone.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            os.environ[MARK_VARIABLE] = self._outer
            self._loop.close()
            # What the backend made of this process; other tests are to find it as it was.
            ctypes.CDLL(None).prctl(confine.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass

    def do(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Does something on the pool's loop; what hangs fails."""

        async def bounded() -> _T:
            async with asyncio.timeout(SECONDS):
                return await work

        return self._loop.run(bounded())

    def job(
        self, *cells: str | NotebookNode, environment: Mapping[str, str] | None = None, **limits: Any
    ) -> Job:
        """What runs these cells."""
        segments = prepare(content(*cells), {}, "", {"python3": "python"})
        run_id = uuid4().hex
        # Empty, as a run's is: a warm kernel brings the folder that it had until then.
        run_folder = self._folder / run_id
        run_folder.mkdir()
        return Job(
            run_id=run_id,
            notebook=HEAD + SEPARATOR.join(segments.cells) + segments.tail,
            kernel_name="python3",
            working_folder=str(self._folder),
            run_folder=str(run_folder),
            limits=Limits(**limits),
            allow_errors=False,
            environment=environment or {},
        )

    async def submit(self, *cells: str | NotebookNode, **options: Any) -> RunHandle:
        """Begins a run, when a worker is free."""
        await self.backend.wait_for_worker()
        return self.backend.submit(self.job(*cells, **options))

    async def execute(self, *cells: str | NotebookNode, **options: Any) -> list[ExecutionEvent]:
        """All events of a run."""
        return await everything(await self.submit(*cells, **options))

    def run(self, *cells: str | NotebookNode, **options: Any) -> list[ExecutionEvent]:
        """The same, to its end."""
        return self.do(self.execute(*cells, **options))


async def everything(handle: RunHandle) -> list[ExecutionEvent]:
    """All events of a run, which end with `Ended` and nothing after it."""
    events = [event async for batch in handle.events() for event in batch]
    assert [isinstance(event, Ended) for event in events].index(True) == len(events) - 1
    return events


async def until_said(pool: Pool, source: str, mark: str) -> Batches:
    """The events of a run after the first text; those until then have been taken."""
    handle = await pool.submit(source, environment={"NBR_RUN_MARK": mark})
    batches = handle.events()
    assert isinstance(batches, AsyncGenerator)
    async for batch in batches:
        if said(batch):
            return batches
    raise AssertionError("nothing was printed")


def loading(mark: str, workers: int) -> set[int]:
    """Waits until so many processes carry the mark; nothing can be read of one in its first moment."""
    while len(found := marked(mark)) < workers:
        pause()
    return set(found)


def worker(pool: Pool) -> int:
    """The process of the only worker."""
    (one,) = pool.backend._workers
    return one.info.pid


def end(events: Sequence[ExecutionEvent]) -> Ended:
    """How a run ended."""
    assert isinstance(events[-1], Ended)
    return events[-1]


def said(events: Sequence[ExecutionEvent]) -> str:
    """All text that was printed."""
    return "".join(event.text for event in events if isinstance(event, StreamOutput))


def segments(events: Sequence[ExecutionEvent]) -> list[tuple[int, bytes]]:
    """The segments that were sent, whole, in their order."""
    whole: list[tuple[int, bytes]] = []
    pieces = b""
    for event in events:
        if isinstance(event, SegmentChunk):
            pieces += event.data
            if event.last:
                whole.append((event.segment, pieces))
                pieces = b""
    assert pieces == b""
    return whole


def executed(events: Sequence[ExecutionEvent], cells: int) -> NotebookNode:
    """The notebook that the newest version of each segment makes."""
    newest = dict(segments(events))
    return parsed(HEAD + SEPARATOR.join(newest[number] for number in range(cells)) + newest[TAIL])
