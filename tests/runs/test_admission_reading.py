"""Admission: where a notebook is read from, and what waits for what meanwhile."""

import asyncio
import gc
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from notebook_runner_server.errors import UriNotAllowedError
from notebook_runner_server.execution.segments import PreparedNotebook
from notebook_runner_server.runs.admission import LARGE_NOTEBOOK, Admission, Defaults, Prepare
from notebook_runner_server.runs.model import Admitted, StartSpec
from notebook_runner_server.runs.sources import NotebookRoot
from notebook_runner_server.transfer.interface import RefusedError

KERNELS = {"python3": "python"}
ALLOWED = "https://allowed/"
LARGE = b" " * (LARGE_NOTEBOOK + 1)
PREPARED = PreparedNotebook((b"cell",), b"tail", "")


@dataclass
class Library:
    """A transfer whose notebooks are their own URIs; keeps which it was asked for."""

    schemes: tuple[str, ...] = ("https",)
    asked: list[str] = field(default_factory=list)

    def check(self, uri: str) -> None:
        """Allows one host."""
        if not uri.startswith(ALLOWED):
            raise RefusedError("another host")

    async def read(self, uri: str) -> bytes:
        """Reads."""
        self.check(uri)
        self.asked.append(uri)
        return uri.encode()

    async def write(self, uri: str, notebook: int) -> None:
        """Writes nothing: no run is executed here."""

    def stop_reading(self) -> None:
        """Has nothing to stop."""


def admission(prepare: Prepare, library: Library | None = None) -> Admission:
    """What admits requests, with notebooks that are prepared so."""
    return Admission(NotebookRoot(None, 10**9), 10**9, Defaults(), prepare, library or Library())


def prepared(*_: object, **__: object) -> PreparedNotebook:
    """Any notebook, prepared."""
    return PREPARED


async def admitted(prepare: Prepare, library: Library | None = None, **asked: Any) -> Admitted:
    """What becomes of a request."""
    return await admission(prepare, library).admit(StartSpec(**asked), KERNELS)


async def test_the_notebook_is_what_the_uri_names() -> None:
    """What may be a signature is used to read it, and shown nowhere."""
    seen: list[tuple[Any, ...]] = []

    def prepare(*arguments: Any, **options: Any) -> PreparedNotebook:
        seen.append((*arguments, options))
        return PREPARED

    library, uri = Library(), f"{ALLOWED}a.ipynb?secret"
    values = {"notebook_uri": uri, "parameters": {"a": 1}, "kernel_name": "python3"}
    found = await admitted(prepare, library, **values, output_uri=f"{ALLOWED}b.ipynb?secret")
    assert library.asked == [uri]
    assert seen == [(uri.encode(), {"a": 1}, "python3", KERNELS, {"is_ordered": False})]
    assert (found.run.notebook_uri, found.run.output_uri) == (f"{ALLOWED}a.ipynb?…", f"{ALLOWED}b.ipynb?…")
    assert (found.run.notebook_path, found.options.working_folder) == ("", "")
    assert found.options.output_uri == f"{ALLOWED}b.ipynb?secret"
    assert found.segments == {0: b"cell", -1: b"tail"}


async def test_no_uri_is_no_uri() -> None:
    """A request with the notebook in it has none to show."""
    found = await admitted(prepared, content=b"{}")
    assert (found.run.notebook_uri, found.run.output_uri, found.options.output_uri) == ("", "", "")


@pytest.mark.parametrize("name", ["notebook_uri", "output_uri"])
async def test_a_uri_that_is_not_allowed_is_refused_by_its_field(name: str) -> None:
    """Before anything is read."""
    library = Library()
    asked: Mapping[str, Any] = {"notebook_uri": f"{ALLOWED}a.ipynb", name: "https://other/a.ipynb"}
    with pytest.raises(UriNotAllowedError, match="another host") as caught:
        await admitted(prepared, library, **asked)
    assert caught.value.field == name
    assert library.asked == []


class Slow:
    """Prepares when it is let go, and counts how many are being prepared."""

    def __init__(self) -> None:
        self.most = self.now = 0
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)
        self._lock = threading.Lock()

    def __call__(self, *_: object, **__: object) -> PreparedNotebook:
        """Waits, and prepares."""
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self.begun.release()
        self.go_on.acquire()
        with self._lock:
            self.now -= 1
        return PREPARED


async def threads_had_a_turn() -> None:
    """Lets what could begin on a thread begin; what is asked for later is done later."""
    for _ in range(5):
        await asyncio.to_thread(threading.active_count)


@pytest.mark.parametrize(("content", "most"), [(LARGE, 1), (LARGE[:-1], 2)], ids=["large", "small"])
async def test_large_notebooks_take_turns(content: bytes, most: int) -> None:
    """Of two that come at once, a large one waits for the other, and a small one does not."""
    slow = Slow()
    one = admission(slow)
    works = [asyncio.ensure_future(one.admit(StartSpec(content=content), KERNELS)) for _ in range(2)]
    for _ in range(most):
        await asyncio.to_thread(slow.begun.acquire)
    await threads_had_a_turn()
    slow.go_on.release(2)
    await asyncio.gather(*works)
    assert slow.most == most


async def test_a_caller_who_gives_up_ends_nothing() -> None:
    """The next large notebook waits for what is still being prepared."""
    slow = Slow()
    one = admission(slow)
    first = asyncio.ensure_future(one.admit(StartSpec(content=LARGE), KERNELS))
    await asyncio.to_thread(slow.begun.acquire)
    first.cancel()
    await asyncio.wait([first])
    second = asyncio.ensure_future(one.admit(StartSpec(content=LARGE), KERNELS))
    await threads_had_a_turn()
    slow.go_on.release(2)
    assert (await second).run.cells_total == 1
    assert first.cancelled()
    assert slow.most == 1


async def test_what_fails_after_its_caller_has_gone_is_no_fault() -> None:
    """The event loop has no exception that nobody took: anyio's runner would raise it here."""
    started, go_on = threading.Event(), threading.Event()

    def failing(*_: object, **__: object) -> PreparedNotebook:
        started.set()
        go_on.wait()
        raise ValueError("nobody hears it")

    before = asyncio.all_tasks()
    work = asyncio.ensure_future(admitted(failing, content=b"{}"))
    await asyncio.to_thread(started.wait)
    (preparing,) = asyncio.all_tasks() - before - {work}
    work.cancel()
    await asyncio.wait([work])
    go_on.set()
    await asyncio.wait([preparing])
    del preparing
    gc.collect()
