"""Exports of a run: each is made once, with or without the code, and stays what it was."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from notebook_runner_server.errors import ExportFailedError, InvalidFieldError, RunNotFoundError
from notebook_runner_server.execution.interface import KernelReady
from notebook_runner_server.export.banner import Banner
from notebook_runner_server.runs.manager import RunManager
from notebook_runner_server.runs.outputs import MESSAGE_BYTES, Outputs, Page
from notebook_runner_server.runs.store import Store
from tests.runs.fakes import DONE, FakeBackend, cell, ended, running, spec, tells
from tests.runs.stores import a_store


class Counting:
    """An exporter that counts, and writes what it was asked for and how many cells have said something.

    Attributes:
        banners: What each page was given to say about its run.
    """

    def __init__(self) -> None:
        self.formats = ["html", "pdf"]
        self.made: list[tuple[str, bool]] = []
        self.banners: list[Banner] = []
        self.wrong = ""
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    async def export(
        self,
        notebook: Path,
        to: str,
        target: Path,
        *,
        omit_input: bool = False,
        about: Banner | None = None,
    ) -> str:
        """Counts, and fails if it shall."""
        if self.wrong:
            raise RuntimeError(self.wrong)
        self.made.append((to, omit_input))
        assert about is not None
        self.banners.append(about)
        await asyncio.sleep(0)
        said = notebook.read_text().count("said")
        target.write_text(f"{to} {omit_input} {said}")
        if self.meanwhile is not None:
            await self.meanwhile()
        return "text/html"


async def ended_run(runner: RunManager, backend: FakeBackend) -> str:
    """The id of a run whose two cells have said something."""
    run_id = (await runner.start(spec())).run_id
    (await backend.taken(run_id)).tell(KernelReady(), *cell(0), *cell(1), DONE)
    await ended(runner, run_id)
    return run_id


class Scene:
    """A run, and its outputs."""

    def __init__(self, store: Store, runner: RunManager, run_id: str) -> None:
        self.exporter = Counting()
        self._runner, self._run_id = runner, run_id
        self._outputs = Outputs(store, self.exporter, 10**6, 10**6, 10**6)

    async def page(self, to: str = "html", *, as_of: int = 0, omit_input: bool = False) -> Page:
        """An artefact."""
        run = await self._runner.find(self._run_id)
        return await self._outputs.page(run, to, 0, 0, as_of, omit_input=omit_input)


async def test_each_export_is_made_once(tmp_path: Path) -> None:
    """A second read, and reads at the same time, answer the file that is there, with code and without."""
    backend, store = FakeBackend(), a_store(Store, tmp_path)
    async with running(store, backend) as runner:
        run_id = await ended_run(runner, backend)
        scene = Scene(store, runner, run_id)
        whole = await asyncio.gather(*(scene.page() for _ in range(5)))
        bare = await asyncio.gather(*(scene.page(omit_input=True) for _ in range(5)))
        assert {bytes(page.content) for page in whole} == {b"html False 2"}
        assert {bytes(page.content) for page in bare} == {b"html True 2"}
        assert whole[0].sha256 != bare[0].sha256
        assert (await scene.page()).sha256 == whole[0].sha256
        assert scene.exporter.made == [("html", False), ("html", True)]
        assert (await Scene(store, runner, run_id).page(omit_input=True)).content == b"html True 2"


async def test_a_banner_shows_the_state_as_of_its_event(tmp_path: Path) -> None:
    """A page says what was true at its event, and says the same when it is made again after the run's end."""
    backend, store = FakeBackend(), a_store(Store, tmp_path)
    async with running(store, backend) as runner:
        run_id = (await runner.start(spec())).run_id
        handle = await backend.taken(run_id)
        scene = Scene(store, runner, run_id)
        starting = await scene.page()
        handle.tell(KernelReady(), *cell(0))
        _, log = await runner.log(run_id)
        await tells(log, cell(0)[-1])
        running_page = await scene.page()
        assert running_page.sha256 == ""
        handle.tell(*cell(1), DONE)
        await ended(runner, run_id)
        last = await scene.page()
        assert (await scene.page(as_of=last.as_of)).sha256 == last.sha256 != ""
        starting_state, running_state, last_state = scene.exporter.banners
        assert [one.state for one in scene.exporter.banners] == ["Starting", "Running", "Succeeded"]
        assert last_state.tone == "good"
        assert ("Cells", "2 of 2 completed") in last_state.facts
        assert ("Cells", "1 of 2 completed") in running_state.facts
        assert dict(running_state.facts)["As of"].startswith(f"event {running_page.as_of}, 20")
        assert dict(starting_state.facts)["As of"].startswith(f"event {starting.as_of}, 20")
        await store.artefacts.delete(run_id)
        again = [await scene.page(as_of=page.as_of) for page in (starting, running_page, last)]
        assert [page.content for page in again] == [page.content for page in (starting, running_page, last)]
        assert scene.exporter.banners[3:] == [starting_state, running_state, last_state]


async def test_an_end_without_new_outputs_is_a_new_page(tmp_path: Path) -> None:
    """A page of a run that executes does not stand for the page of its end, although its notebook does."""
    backend, store = FakeBackend(), a_store(Store, tmp_path)
    async with running(store, backend) as runner:
        run_id = (await runner.start(spec())).run_id
        handle = await backend.taken(run_id)
        handle.tell(KernelReady(), *cell(0), *cell(1))
        _, log = await runner.log(run_id)
        await tells(log, cell(1)[-1])
        scene = Scene(store, runner, run_id)
        await scene.page()
        notebook = await scene.page("notebook")
        handle.tell(DONE)
        await ended(runner, run_id)
        assert (await scene.page()).sha256
        assert [one.state for one in scene.exporter.banners] == ["Running", "Succeeded"]
        assert (await scene.page("notebook", as_of=notebook.as_of)).content == notebook.content


async def test_a_page_without_code_is_of_the_event_that_it_was_asked_for(tmp_path: Path) -> None:
    """While the run goes on, a reader of an earlier page goes on in it, and a new reader gets the newest."""
    backend, store = FakeBackend(), a_store(Store, tmp_path)
    async with running(store, backend) as runner:
        run_id = (await runner.start(spec())).run_id
        handle = await backend.taken(run_id)
        handle.tell(KernelReady(), *cell(0))
        _, log = await runner.log(run_id)
        await tells(log, cell(0)[-1])
        scene = Scene(store, runner, run_id)
        first = await scene.page(omit_input=True)
        handle.tell(*cell(1))
        await tells(log, cell(1)[-1])
        assert (await scene.page(omit_input=True, as_of=first.as_of)).content == first.content
        assert first.content == b"html True 1"
        assert (await scene.page(omit_input=True)).content == b"html True 2"
        assert len(scene.exporter.made) == 2


async def test_an_export_of_a_run_that_is_deleted_meanwhile_leaves_nothing(tmp_path: Path) -> None:
    """An artefact that is complete after the deletion, in a new folder, is removed, and not answered."""
    backend, store = FakeBackend(), a_store(Store, tmp_path)
    async with running(store, backend) as runner:
        run_id = await ended_run(runner, backend)
        scene = Scene(store, runner, run_id)
        folder = store.artefacts.path(run_id, "x").parent

        async def delete() -> None:
            (draft,) = folder.glob("html*")
            content = draft.read_bytes()
            assert await runner.delete(run_id) is not None
            assert not folder.exists()
            folder.mkdir()
            draft.write_bytes(content)

        scene.exporter.meanwhile = delete
        with pytest.raises(RunNotFoundError):
            await scene.page()
        assert not folder.exists()


@pytest.mark.parametrize("to", ["notebook", "files", "error"])
async def test_what_is_always_whole_is_not_asked_without_code(tmp_path: Path, to: str) -> None:
    """The notebook, the files and the report have no version without input, which the error says."""
    backend, store = FakeBackend(), a_store(Store, tmp_path)
    async with running(store, backend) as runner:
        scene = Scene(store, runner, (await runner.start(spec())).run_id)
        with pytest.raises(InvalidFieldError, match=f"not available for {to}, only for: html, pdf") as caught:
            await scene.page(to, omit_input=True)
        assert caught.value.field == "omit_input"


async def test_an_export_that_failed_is_tried_again(tmp_path: Path) -> None:
    """The error has the exporter's words, and is not remembered: what was missing may be there by now."""
    backend, store = FakeBackend(), a_store(Store, tmp_path)
    async with running(store, backend) as runner:
        scene = Scene(store, runner, (await runner.start(spec())).run_id)
        scene.exporter.wrong = "there is no browser"
        with pytest.raises(ExportFailedError, match="there is no browser") as caught:
            await scene.page("pdf")
        assert caught.value.metadata == {"format": "pdf"}
        scene.exporter.wrong = ""
        assert (await scene.page("pdf")).content.startswith(b"pdf False")


@pytest.mark.parametrize("exported", [False, True], ids=["before its export", "during its export"])
async def test_a_run_that_is_forgotten_meanwhile_is_not_there(tmp_path: Path, *, exported: bool) -> None:
    """What is missing then is the run, and not room on the disk."""
    backend, store = FakeBackend(), a_store(Store, tmp_path)
    async with running(store, backend) as runner:
        run_id = await ended_run(runner, backend)
        run = await runner.find(run_id)

        async def forget() -> None:
            row = await store.find(run_id)
            assert row is not None
            await store.delete(row)

        exporter = Counting()
        if exported:
            exporter.meanwhile = forget
        else:
            await forget()
        with pytest.raises(RunNotFoundError, match=run_id):
            await Outputs(store, exporter, 10**6, 10**6, 10**6).page(run, "html", 0, 0, 0)
        assert len(exporter.made) == exported
        assert not store.folder(run_id).path.exists()


@pytest.mark.parametrize(
    ("beside", "size"), [(0, 1000), (2 * 2**20, 1000), (MESSAGE_BYTES - 10, 10), (2**23, 1)]
)
async def test_a_page_is_smaller_only_where_its_message_would_be_too_large(
    tmp_path: Path, beside: int, size: int
) -> None:
    """Large parameters leave room for small pages; a page is never empty."""
    backend, store = FakeBackend(), a_store(Store, tmp_path)
    async with running(store, backend) as runner:
        run = await runner.find(await ended_run(runner, backend))
        exporter = Counting()
        outputs = Outputs(store, exporter, 1000, 1000, 10**6)

        async def large() -> None:
            target = next((tmp_path / "artefacts").rglob("html-*"))
            target.write_bytes(b"x" * 5000)

        exporter.meanwhile = large
        page = await outputs.page(run, "html", 0, 0, 0, beside=beside)
        assert len(page.content) == size
