"""Output: artefacts of a run, made when they are first asked for, and answered in pages.

Every artefact is a file in the run's folder, named by its format and by the last event whose effect it has:
a page of it is a read at an offset, and the same request answers the same bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

from notebook_runner_server.runs import files
from notebook_runner_server.runs.errors import (
    ExportFailedError,
    InvalidFieldError,
    OffsetPastEndError,
    StorageFullError,
    UnknownFormatError,
)
from notebook_runner_server.runs.folder import private
from notebook_runner_server.runs.model import Run
from notebook_runner_server.runs.readers import PAGE_SECONDS
from notebook_runner_server.runs.report import report
from notebook_runner_server.runs.store import Store

NOTEBOOK = "notebook"
FILES = "files"
ERROR = "error"

KEPT_SNAPSHOTS = 4
"""How many artefacts of one format are kept for a run that goes on; older ones can be made again."""


class Exporter(Protocol):
    """Converts notebooks to other formats (`export.service.ExportService`)."""

    @property
    def formats(self) -> Collection[str]:
        """The formats that are allowed."""

    async def export(self, notebook: Path, to: str, target: Path) -> str:
        """Write the notebook in another format, and return its media type.

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
class _Artefact:
    path: Path
    media_type: str
    sha256: str


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

    async def page(self, run: Run, to: str, offset: int, max_bytes: int, as_of: int) -> Page:
        """Return one page of an artefact of a run.

        Args:
            run: The run as it is now.
            to: The format.
            offset: The first byte.
            max_bytes: The most bytes; zero: the usual page.
            as_of: The event whose effect is the last in the artefact; zero: the newest.

        Raises:
            RunnerError: It cannot be answered.
        """
        self._check(to, offset, max_bytes, as_of)
        size = min(max_bytes or self._page_bytes, self._max_page_bytes)
        if to == ERROR:
            return _slice(report(run).encode(), offset, size, final=run.state.is_terminal)
        row = await self._store.find(run.run_id)
        assert row is not None  # noqa: S101 - its caller has just found it
        newest = (
            row.last_sequence
            if to == FILES
            else await self._store.newest_part(row.position, row.last_sequence)
        )
        if as_of > row.last_sequence:
            raise InvalidFieldError(f"The run has {row.last_sequence} events so far.", field="as_of_sequence")
        key = min(as_of or newest, newest)
        artefact = await self._artefact(run, row.position, to, key, fresh=not as_of)
        final = row.run.state.is_terminal and key == newest
        content, total = await asyncio.to_thread(_read, artefact.path, offset, size)
        if to == FILES:
            self._note_reader(artefact.path, done=offset + len(content) >= total)
        return Page(
            content, total, offset + len(content), artefact.media_type, artefact.sha256 if final else "", key
        )

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

    def _check(self, to: str, offset: int, max_bytes: int, as_of: int) -> None:
        known = self.formats
        if to not in known:
            message = f"There is no format {to[:100]!r} here; there is: {', '.join(known)}."
            raise UnknownFormatError(message, field="format", known=", ".join(known))
        for name, value in (("offset", offset), ("max_bytes", max_bytes), ("as_of_sequence", as_of)):
            if value < 0:
                raise InvalidFieldError(f"{name} is not negative.", field=name)

    async def _artefact(self, run: Run, position: int, to: str, key: int, *, fresh: bool) -> _Artefact:
        """Return an artefact, made now if it has to be."""
        folder = self._store.folder(run.run_id)
        path = folder.artefacts / f"{to}-{key}"
        lock = self._making.setdefault(path, asyncio.Lock())
        async with lock:
            try:
                # What is in the folder of a run that goes on changes without an event; who has begun to read
                # a zip of it is to find the rest.
                changing = to == FILES and fresh and not run.state.is_terminal and not self._is_read(path)
                found = None if changing else await asyncio.to_thread(_load, path)
                if found is None and to == FILES and not fresh:
                    raise InvalidFieldError(
                        "The files as of that event are no longer there: begin again.", field="as_of_sequence"
                    )
                if found is None:
                    found = await self._make(run, position, to, key, path)
                    if not run.state.is_terminal:
                        await asyncio.to_thread(_forget, folder.artefacts, to)
            except OSError as error:
                raise StorageFullError(f"The artefact cannot be written: {error}.") from error
        return found

    async def _make(self, run: Run, position: int, to: str, key: int, path: Path) -> _Artefact:
        folder = self._store.folder(run.run_id)
        if to == NOTEBOOK:
            parts = await self._store.parts(position, key)
            return await asyncio.to_thread(
                _save, path, "application/x-ipynb+json", _writer(folder.notebook(parts))
            )
        if to == FILES:
            try:
                return await asyncio.to_thread(
                    _save,
                    path,
                    "application/zip",
                    lambda target: files.pack(folder.work, target, self._max_files_bytes),
                )
            except files.TooLargeError as error:
                raise ExportFailedError(str(error), format=to) from error
        notebook = await self._artefact(run, position, NOTEBOOK, key, fresh=False)
        draft = _draft(path)
        try:
            media_type = await self._exporter.export(notebook.path, to, draft)
            return await asyncio.to_thread(_save, path, media_type, draft.replace)
        except RuntimeError as error:
            raise ExportFailedError(f"The notebook cannot be converted: {error}", format=to) from error
        finally:
            draft.unlink(missing_ok=True)


def _writer(pieces: Iterable[bytes]) -> Callable[[Path], object]:
    def write(target: Path) -> None:
        with open(target, "wb", opener=private) as file:
            file.writelines(pieces)

    return write


def _draft(path: Path) -> Path:
    """Return a name of its own to write an artefact under: a call that was given up may still be writing."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}")


def _about(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _save(path: Path, media_type: str, write: Callable[[Path], object]) -> _Artefact:
    """Have an artefact written beside its place, and put it there when it is whole."""
    draft = _draft(path)
    try:
        write(draft)
        # Whoever has written it, it is this user's alone.
        draft.chmod(0o600)
        with draft.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    with open(_about(path), "w", encoding="utf-8", opener=private) as about:
        json.dump([media_type, digest], about)
    return _Artefact(path, media_type, digest)


def _load(path: Path) -> _Artefact | None:
    try:
        media_type, digest = json.loads(_about(path).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return _Artefact(path, media_type, digest) if path.exists() else None


def _forget(folder: Path, to: str) -> None:
    """Remove all but the newest artefacts of a format."""
    numbers = [path.name.removeprefix(f"{to}-") for path in folder.iterdir()]
    found = sorted(int(number) for number in numbers if number.isdecimal())
    for number in found[:-KEPT_SNAPSHOTS]:
        path = folder / f"{to}-{number}"
        _about(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def _read(path: Path, offset: int, size: int) -> tuple[bytes, int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        total = os.fstat(descriptor).st_size
        _check_offset(offset, total)
        return os.pread(descriptor, size, offset), total
    finally:
        os.close(descriptor)


def _slice(content: bytes, offset: int, size: int, *, final: bool) -> Page:
    _check_offset(offset, len(content))
    piece = content[offset : offset + size]
    digest = hashlib.sha256(content).hexdigest() if final else ""
    return Page(piece, len(content), offset + len(piece), "text/plain; charset=utf-8", digest, 0)


def _check_offset(offset: int, total: int) -> None:
    if offset > total:
        raise OffsetPastEndError(
            f"The artefact has {total} bytes, and {offset} is past its end.",
            field="offset",
            total_bytes=str(total),
        )
