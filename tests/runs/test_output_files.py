"""The files of a run that goes on: one download is of one moment, and the next one of another."""

import asyncio
import io
import os
import zipfile
from pathlib import Path

import pytest

from notebook_runner_server.errors import InvalidFieldError
from notebook_runner_server.execution.interface import KernelReady
from notebook_runner_server.export.service import ExportService
from notebook_runner_server.runs.manager import RunManager
from notebook_runner_server.runs.model import RunState
from notebook_runner_server.runs.outputs import FILES, Outputs, Page
from notebook_runner_server.runs.store import Store
from tests.runs.fakes import FakeBackend, reach, running, spec
from tests.runs.stores import a_store


class Scene:
    """A run that goes on, and its files."""

    def __init__(self, store: Store, runner: RunManager, run_id: str) -> None:
        self.runner = runner
        self.run_id = run_id
        self.work = store.folder(run_id).work
        self._outputs = Outputs(store, ExportService([], 1.0), 100, 10**6, 10**7)

    async def page(self, offset: int = 0, max_bytes: int = 0, as_of: int = 0) -> Page:
        """A page of the zip."""
        run = await self.runner.find(self.run_id)
        return await self._outputs.page(run, FILES, offset, max_bytes, as_of)

    async def names(self) -> list[str]:
        """What the whole zip has now."""
        with zipfile.ZipFile(io.BytesIO((await self.page(max_bytes=10**6)).content)) as archive:
            return archive.namelist()


async def scene(store: Store, runner: RunManager, backend: FakeBackend) -> Scene:
    """A run that has left one file that no zip makes smaller."""
    run_id = (await runner.start(spec())).run_id
    handle = await backend.taken(run_id)
    handle.tell(KernelReady())
    await reach(runner, run_id, RunState.RUNNING)
    made = Scene(store, runner, run_id)
    (made.work / "first").write_bytes(os.urandom(300))
    return made


async def test_the_pages_of_one_download_are_of_one_moment(tmp_path: Path) -> None:
    """A file that comes meanwhile changes none of them, not even when another caller begins."""
    backend = FakeBackend()
    store = a_store(Store, tmp_path)
    async with running(store, backend) as runner:
        one = await scene(store, runner, backend)
        first = await one.page()
        (one.work / "second").write_bytes(b"x")
        assert (await one.page()).content == first.content
        content = first.content
        while len(content) < first.total_bytes:
            page = await one.page(len(content), as_of=first.as_of)
            assert page.total_bytes == first.total_bytes
            content += page.content
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            assert archive.namelist() == ["first"]
        assert await one.names() == ["first", "second"]


async def test_files_of_a_moment_that_is_gone_are_refused(tmp_path: Path) -> None:
    """What a folder had at an earlier event cannot be made again, and nothing else is answered instead."""
    backend = FakeBackend()
    store = a_store(Store, tmp_path)
    async with running(store, backend) as runner:
        one = await scene(store, runner, backend)
        with pytest.raises(InvalidFieldError, match="Start again"):
            await one.page(as_of=1)


async def test_a_download_that_was_given_up_disturbs_no_other(tmp_path: Path) -> None:
    """Callers that go away while the zip is made do not disturb one that stays."""
    backend = FakeBackend()
    store = a_store(Store, tmp_path)
    async with running(store, backend) as runner:
        one = await scene(store, runner, backend)
        (one.work / "large").write_bytes(os.urandom(3_000_000))
        given_up = [asyncio.ensure_future(one.page()) for _ in range(5)]
        for task in given_up:
            await asyncio.wait([task], timeout=0.01)
            task.cancel()
        await asyncio.gather(*given_up, return_exceptions=True)
        assert (await one.page()).total_bytes > 3_000_000
