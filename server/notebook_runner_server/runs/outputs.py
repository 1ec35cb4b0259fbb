"""Output: artefacts of a run, made on first request and answered in pages.

An artefact is a file that is named by its format and by the last event whose effect it contains. A page is a
read at an offset, so the same request answers the same bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

from notebook_runner_server.errors import (
    ExportFailedError,
    InvalidFieldError,
    StorageFullError,
    UnknownFormatError,
)
from notebook_runner_server.export.banner import Banner
from notebook_runner_server.runs import artefacts, files
from notebook_runner_server.runs.banner import banner
from notebook_runner_server.runs.model import Run, RunChanged
from notebook_runner_server.runs.report import report
from notebook_runner_server.runs.retention import PAGE_SECONDS
from notebook_runner_server.runs.store import Store
from notebook_runner_server.runs.tables import RunRecord

NOTEBOOK = "notebook"
FILES = "files"
ERROR = "error"

MESSAGE_BYTES = 4 * 1024 * 1024 - 256 * 1024
"""Maximum size of the large fields of a response; the rest of the 4 MiB that clients accept is for others."""


class Exporter(Protocol):
    """Converts notebooks to other formats (`export.service.ExportService`)."""

    @property
    def formats(self) -> Collection[str]:
        """The enabled formats."""

    async def export(
        self,
        notebook: Path,
        to: str,
        target: Path,
        *,
        omit_input: bool = False,
        about: Banner | None = None,
    ) -> str:
        """Convert the notebook to another format, optionally without its code; return its media type.

        Formats that are pages begin with the banner `about`.

        Raises:
            RuntimeError: The conversion failed; the message says why.
        """


@dataclass(frozen=True, slots=True)
class Page:
    """A page of an artefact. `sha256` is empty while the artefact may still change."""

    content: bytes | bytearray
    total_bytes: int
    next_offset: int
    media_type: str
    sha256: str
    as_of: int


@dataclass(frozen=True, slots=True)
class _Variant:
    """The format of an artefact, and its options."""

    to: str
    omit_input: bool = False

    @property
    def name(self) -> str:
        """The variant in the name of a file."""
        return f"{self.to}.no-input" if self.omit_input else self.to


class Outputs:
    """Makes artefacts, and reads pages of them.

    Args:
        store: Where the runs are.
        exporter: Converts notebooks.
        page_bytes: The default size of a page.
        max_page_bytes: The maximum size of a page.
        max_files_bytes: The maximum size of a run's files that are answered as a zip.
    """

    def __init__(
        self, store: Store, exporter: Exporter, page_bytes: int, max_page_bytes: int, max_files_bytes: int
    ) -> None:
        self._store = store
        self._exporter = exporter
        self._page_bytes = page_bytes
        self._max_page_bytes = max_page_bytes
        self._max_files_bytes = max_files_bytes
        # When a zip was last read that has further pages.
        self._reading: dict[Path, float] = {}
        # A lock lives as long as somebody makes or awaits its artefact.
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
            max_bytes: The maximum size of the page; zero: the default.
            as_of: The last event whose effect the artefact contains; zero: the newest.
            omit_input: Leave out the source of code cells.
            beside: The size of the response's other large fields, which the page leaves room for.

        Raises:
            RunnerError: There is no such artefact or page.
        """
        self._check(to, offset, max_bytes, as_of, omit_input=omit_input)
        size = min(max_bytes or self._page_bytes, self._max_page_bytes)
        size = max(1, min(size, MESSAGE_BYTES - beside))
        try:
            return await self._page(run, to, offset, size, as_of, omit_input=omit_input)
        except Exception as error:
            # A run is deleted row first, then files: if the row is gone, that is the cause of any error.
            if await self._store.find(run.run_id) is None:
                raise await self._store.missing(run.run_id) from error
            raise

    async def _page(self, run: Run, to: str, offset: int, size: int, as_of: int, *, omit_input: bool) -> Page:
        found = await self._store.find_versions(run.run_id, as_of)
        if found is None:
            raise await self._store.missing(run.run_id)
        row, newest, key = found
        if as_of > row.last_sequence:
            raise InvalidFieldError(
                f"as_of_sequence must be at most {row.last_sequence}, the run's newest event (got {as_of}).",
                field="as_of_sequence",
            )
        if to == ERROR:
            return await self._error_page(run, row, offset, size, as_of or row.last_sequence)
        # A notebook is the same between two events that change it; files can change with each. An export
        # shows the state of the run as well.
        if to == FILES:
            newest, key = row.last_sequence, as_of or row.last_sequence
        elif to != NOTEBOOK:
            change = await self._store.find_state(row.position, row.last_sequence)
            newest = max(newest, change.sequence)
            if as_of:
                change = await self._store.find_state(row.position, as_of)
            key = max(key, change.sequence)
        final = row.run.state.is_terminal and key == newest
        variant = _Variant(to, omit_input)
        path = self._store.artefacts.path(run.run_id, f"{variant.name}-{key}")
        with self._store.artefacts.held(path):
            # An ended run still has everything to make it again.
            fresh = final or not as_of
            artefact = await self._artefact(run, row.position, variant, key, fresh=fresh)
            try:
                content, total = await artefacts.read(artefact.path, offset, size)
            except FileNotFoundError:
                # Somebody has removed the file since it was found.
                artefact = await self._artefact(run, row.position, variant, key, fresh=fresh)
                content, total = await artefacts.read(artefact.path, offset, size)
        if to == FILES:
            self._record_reader(artefact.path, done=offset + len(content) >= total)
        # Before its first change, a notebook is as of the first event: zero would ask for the newest.
        digest = artefact.sha256 if final else ""
        return Page(content, total, offset + len(content), artefact.media_type, digest, max(key, 1))

    async def _error_page(self, run: Run, row: RunRecord, offset: int, size: int, as_of: int) -> Page:
        """Return one page of the report of a run as of an event."""
        final = run.state.is_terminal and as_of == row.last_sequence
        if not final:
            run = await self._run_as_of(row.position, as_of)
        content = report(run).encode()
        artefacts.check_offset(offset, len(content))
        piece = content[offset : offset + size]
        digest = hashlib.sha256(content).hexdigest() if final else ""
        return Page(piece, len(content), offset + len(piece), "text/plain; charset=utf-8", digest, as_of)

    def _record_reader(self, path: Path, *, done: bool) -> None:
        """Record that somebody is between two pages of a zip, or is done with it."""
        now = time.monotonic()
        self._reading = {one: when for one, when in self._reading.items() if now - when < PAGE_SECONDS}
        self._reading.pop(path, None)
        if not done:
            self._reading[path] = now

    def _is_read(self, path: Path) -> bool:
        return time.monotonic() - self._reading.get(path, -PAGE_SECONDS) < PAGE_SECONDS

    @property
    def formats(self) -> list[str]:
        """All formats of this server."""
        return [NOTEBOOK, *sorted(self._exporter.formats), FILES, ERROR]

    def _check(self, to: str, offset: int, max_bytes: int, as_of: int, *, omit_input: bool) -> None:
        known = self.formats
        if to not in known:
            message = f"Unknown format {to[:100]!r}. Available: {', '.join(known)}."
            raise UnknownFormatError(message, field="format", known=", ".join(known))
        for name, value in (("offset", offset), ("max_bytes", max_bytes), ("as_of_sequence", as_of)):
            if value < 0:
                raise InvalidFieldError(f"{name} must not be negative (got {value}).", field=name)
        if omit_input and to in {NOTEBOOK, FILES, ERROR}:
            others = ", ".join(sorted(self._exporter.formats))
            message = f"omit_input is not available for {to}, only for: {others}."
            raise InvalidFieldError(message, field="omit_input")

    async def _artefact(
        self, run: Run, position: int, variant: _Variant, key: int, *, fresh: bool
    ) -> artefacts.Artefact:
        """Return an artefact, and make it if necessary."""
        path = self._store.artefacts.path(run.run_id, f"{variant.name}-{key}")
        lock = self._making.setdefault(path, asyncio.Lock())
        async with lock:
            try:
                # The files of an active run change without an event. A reader of a zip must get the rest of
                # the same zip.
                changing = (
                    variant.to == FILES and fresh and not run.state.is_terminal and not self._is_read(path)
                )
                found = None if changing else self._store.artefacts.find(path)
                if found is None and variant.to == FILES and not fresh:
                    raise InvalidFieldError(
                        "The files as of that event are gone. Start again without as_of_sequence.",
                        field="as_of_sequence",
                    )
                if found is None:
                    found = await self._make(run, position, variant, key, path)
                    if await self._store.find(run.run_id) is None:
                        # Deleted meanwhile, before this artefact was complete.
                        await self._store.artefacts.delete(run.run_id)
                        raise await self._store.missing(run.run_id)
            except OSError as error:
                raise StorageFullError(
                    f"The artefact cannot be written to the state folder: {error}. Free some space."
                ) from error
        return found

    async def _make(
        self, run: Run, position: int, variant: _Variant, key: int, path: Path
    ) -> artefacts.Artefact:
        folder = self._store.folder(run.run_id)
        if variant.to == NOTEBOOK:
            segments = await self._store.segments(position, key)
            return await self._store.artefacts.add(
                path,
                "application/x-ipynb+json",
                lambda target: artefacts.write(folder.notebook(segments), target),
            )
        draft = artefacts.draft(path)
        if variant.to == FILES:
            try:
                try:
                    await folder.pack_files(draft, self._max_files_bytes)
                except OSError as error:
                    if not await self._store.artefacts.make_room(path, error):
                        raise
                    await folder.pack_files(draft, self._max_files_bytes)
                return await self._store.artefacts.add(path, "application/zip", draft.replace)
            except files.UnpackableError as error:
                raise ExportFailedError(str(error), format=variant.to) from error
            finally:
                draft.unlink(missing_ok=True)
        version = await self._store.newest_segment(position, key)
        source = self._store.artefacts.path(run.run_id, f"{NOTEBOOK}-{version}")
        try:
            with self._store.artefacts.held(source):
                notebook = await self._artefact(run, position, _Variant(NOTEBOOK), version, fresh=False)
                media_type = await self._exporter.export(
                    notebook.path,
                    variant.to,
                    draft,
                    omit_input=variant.omit_input,
                    about=await self._banner(run, position, key),
                )
            return await self._store.artefacts.add(path, media_type, draft.replace)
        except RuntimeError as error:
            raise ExportFailedError(
                f"The notebook cannot be converted: {error}", format=variant.to
            ) from error
        finally:
            draft.unlink(missing_ok=True)

    async def _banner(self, run: Run, position: int, key: int) -> Banner:
        """Return what is said about a run as of an event."""
        last = (await self._store.events(position, key - 1))[0]
        return banner(replace(await self._state_as_of(position, key), parameters=run.parameters), last)

    async def _run_as_of(self, position: int, sequence: int) -> Run:
        """Return a run as it was after an event, without its parameters."""
        last = (await self._store.events(position, sequence - 1))[0]
        return replace(await self._state_as_of(position, sequence), cells_completed=last.cells_completed)

    async def _state_as_of(self, position: int, sequence: int) -> Run:
        change = (await self._store.find_state(position, sequence)).body
        assert isinstance(change, RunChanged)  # noqa: S101 - what find_state looks for
        return change.run
