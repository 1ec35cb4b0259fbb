"""Output: artefacts of a run, made when they are first asked for, and answered in pages.

Every artefact is a file, named by its format and by the last event whose effect it has: a page of it is a
read at an offset, and the same request answers the same bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

from notebook_runner_server.errors import (
    ExportFailedError,
    InvalidFieldError,
    StorageFullError,
    UnknownFormatError,
    not_found,
)
from notebook_runner_server.runs import artefacts, files
from notebook_runner_server.runs.model import Run
from notebook_runner_server.runs.report import report
from notebook_runner_server.runs.retention import PAGE_SECONDS
from notebook_runner_server.runs.store import Store
from notebook_runner_server.runs.tables import RunRecord

NOTEBOOK = "notebook"
FILES = "files"
ERROR = "error"

MESSAGE_BYTES = 4 * 1024 * 1024 - 256 * 1024
"""Most bytes of the large fields of an answer; the others fit in the rest of the 4 MiB that clients take."""


class Exporter(Protocol):
    """Converts notebooks to other formats (`export.service.ExportService`)."""

    @property
    def formats(self) -> Collection[str]:
        """The formats that are allowed."""

    async def export(self, notebook: Path, to: str, target: Path, *, omit_input: bool = False) -> str:
        """Write the notebook in another format, without its code if asked for; return its media type.

        Raises:
            RuntimeError: It cannot be converted; the message says why.
        """


@dataclass(frozen=True, slots=True)
class Page:
    """Some bytes of an artefact. `sha256` is empty while the artefact may still change."""

    content: bytes
    total_bytes: int
    next_offset: int
    media_type: str
    sha256: str
    as_of: int


@dataclass(frozen=True, slots=True)
class _Form:
    """What an artefact is made as."""

    to: str
    omit_input: bool = False

    @property
    def name(self) -> str:
        """What its file is named by."""
        return f"{self.to}.no-input" if self.omit_input else self.to


class Outputs:
    """Makes artefacts and reads pages of them.

    Args:
        store: Where the runs are.
        exporter: What converts notebooks.
        page_bytes: The size of a page where none is asked for.
        max_page_bytes: The largest page.
        max_files_bytes: How much a run folder may hold to be answered as a zip.
    """

    def __init__(
        self, store: Store, exporter: Exporter, page_bytes: int, max_page_bytes: int, max_files_bytes: int
    ) -> None:
        self._store = store
        self._exporter = exporter
        self._page_bytes = page_bytes
        self._max_page_bytes = max_page_bytes
        self._max_files_bytes = max_files_bytes
        # When a page of a zip was read that was not its last.
        self._reading: dict[Path, float] = {}
        # A lock lives as long as somebody makes, or waits for, its artefact.
        self._making: WeakValueDictionary[Path, asyncio.Lock] = WeakValueDictionary()

    async def page(
        self,
        run: Run,
        to: str,
        offset: int,
        max_bytes: int,
        as_of: int,
        *,
        omit_input: bool = False,
        beside: int = 0,
    ) -> Page:
        """Return one page of an artefact of a run.

        Args:
            run: The run as it is now.
            to: The format.
            offset: The first byte.
            max_bytes: The most bytes; zero: the usual page.
            as_of: The event whose effect is the last in the artefact; zero: the newest.
            omit_input: Leave out what the code cells say.
            beside: How many bytes an answer has beside the page; the page is smaller where these are many.

        Raises:
            RunnerError: It cannot be answered.
        """
        self._check(to, offset, max_bytes, as_of, omit_input=omit_input)
        size = min(max_bytes or self._page_bytes, self._max_page_bytes)
        size = max(1, min(size, MESSAGE_BYTES - beside))
        try:
            return await self._page(run, to, offset, size, as_of, omit_input=omit_input)
        except Exception as error:
            # A run that is forgotten meanwhile goes row first, then files: whatever went wrong, that is why.
            if await self._store.find(run.run_id) is None:
                raise not_found(run.run_id) from error
            raise

    async def _page(self, run: Run, to: str, offset: int, size: int, as_of: int, *, omit_input: bool) -> Page:
        if to == ERROR:
            return _slice(report(run).encode(), offset, size, final=run.state.is_terminal)
        row = await self._store.find(run.run_id)
        if row is None:
            raise not_found(run.run_id)
        if as_of > row.last_sequence:
            raise InvalidFieldError(f"The run has {row.last_sequence} events so far.", field="as_of_sequence")
        newest = await self._version(row, to, row.last_sequence)
        # Between two events that change it, all are the same artefact.
        key = await self._version(row, to, as_of) if as_of else newest
        final = row.run.state.is_terminal and key == newest
        form = _Form(to, omit_input)
        path = self._store.artefacts.path(run.run_id, f"{form.name}-{key}")
        with self._store.artefacts.held(path):
            # All that an ended run has is there to be made again.
            fresh = final or not as_of
            artefact = await self._artefact(run, row.position, form, key, fresh=fresh)
            try:
                content, total = await asyncio.to_thread(artefacts.read, artefact.path, offset, size)
            except FileNotFoundError:
                # Somebody has removed the file since it was found.
                artefact = await self._artefact(run, row.position, form, key, fresh=fresh)
                content, total = await asyncio.to_thread(artefacts.read, artefact.path, offset, size)
        if to == FILES:
            self._note_reader(artefact.path, done=offset + len(content) >= total)
        return Page(
            content, total, offset + len(content), artefact.media_type, artefact.sha256 if final else "", key
        )

    async def _version(self, row: RunRecord, to: str, sequence: int) -> int:
        """Return the event that an artefact is named by, which is the last that changed it."""
        return sequence if to == FILES else await self._store.newest_part(row.position, sequence)

    def _note_reader(self, path: Path, *, done: bool) -> None:
        """Remember that somebody is between two pages of a zip, or is no longer."""
        now = time.monotonic()
        self._reading = {one: when for one, when in self._reading.items() if now - when < PAGE_SECONDS}
        self._reading.pop(path, None)
        if not done:
            self._reading[path] = now

    def _is_read(self, path: Path) -> bool:
        return time.monotonic() - self._reading.get(path, -PAGE_SECONDS) < PAGE_SECONDS

    @property
    def formats(self) -> list[str]:
        """What can be asked for."""
        return [NOTEBOOK, *sorted(self._exporter.formats), FILES, ERROR]

    def _check(self, to: str, offset: int, max_bytes: int, as_of: int, *, omit_input: bool) -> None:
        known = self.formats
        if to not in known:
            message = f"There is no format {to[:100]!r} here; there is: {', '.join(known)}."
            raise UnknownFormatError(message, field="format", known=", ".join(known))
        for name, value in (("offset", offset), ("max_bytes", max_bytes), ("as_of_sequence", as_of)):
            if value < 0:
                raise InvalidFieldError(f"{name} is not negative.", field=name)
        if omit_input and to in {NOTEBOOK, FILES, ERROR}:
            others = ", ".join(sorted(self._exporter.formats))
            message = f"omit_input: {to} is always whole; code can be left out of {others}."
            raise InvalidFieldError(message, field="omit_input")

    async def _artefact(
        self, run: Run, position: int, form: _Form, key: int, *, fresh: bool
    ) -> artefacts.Artefact:
        """Return an artefact, made now if it has to be."""
        path = self._store.artefacts.path(run.run_id, f"{form.name}-{key}")
        lock = self._making.setdefault(path, asyncio.Lock())
        async with lock:
            try:
                # What is in the folder of a run that goes on changes without an event; who has begun to read
                # a zip of it is to find the rest.
                changing = (
                    form.to == FILES and fresh and not run.state.is_terminal and not self._is_read(path)
                )
                found = None if changing else self._store.artefacts.find(path)
                if found is None and form.to == FILES and not fresh:
                    raise InvalidFieldError(
                        "The files as of that event are no longer there: begin again.", field="as_of_sequence"
                    )
                if found is None:
                    found = await self._make(run, position, form, key, path)
            except OSError as error:
                raise StorageFullError(f"The artefact cannot be written: {error}.") from error
        return found

    async def _make(self, run: Run, position: int, form: _Form, key: int, path: Path) -> artefacts.Artefact:
        folder = self._store.folder(run.run_id)
        if form.to == NOTEBOOK:
            parts = await self._store.parts(position, key)
            return await self._store.artefacts.add(
                path,
                "application/x-ipynb+json",
                lambda target: artefacts.write(folder.notebook(parts), target),
            )
        if form.to == FILES:
            if left := await asyncio.to_thread(folder.files_left):
                message = f"the run folder had {left} bytes, too many to come back from its worker"
                raise ExportFailedError(message, format=form.to)
            try:
                return await self._store.artefacts.add(
                    path,
                    "application/zip",
                    lambda target: files.pack(folder.work, target, self._max_files_bytes),
                )
            except files.UnpackableError as error:
                raise ExportFailedError(str(error), format=form.to) from error
        draft = artefacts.draft(path)
        source = self._store.artefacts.path(run.run_id, f"{NOTEBOOK}-{key}")
        try:
            with self._store.artefacts.held(source):
                notebook = await self._artefact(run, position, _Form(NOTEBOOK), key, fresh=False)
                media_type = await self._exporter.export(
                    notebook.path, form.to, draft, omit_input=form.omit_input
                )
            return await self._store.artefacts.add(path, media_type, draft.replace)
        except RuntimeError as error:
            raise ExportFailedError(f"The notebook cannot be converted: {error}", format=form.to) from error
        finally:
            draft.unlink(missing_ok=True)


def _slice(content: bytes, offset: int, size: int, *, final: bool) -> Page:
    artefacts.check_offset(offset, len(content))
    piece = content[offset : offset + size]
    digest = hashlib.sha256(content).hexdigest() if final else ""
    return Page(piece, len(content), offset + len(piece), "text/plain; charset=utf-8", digest, 0)
