"""The cache of artefacts: files that are written as a whole, read in pages, and evicted when space is needed.

An artefact can be made again, so the cache is not part of the history: it is a folder of its own, which a
start empties, and whose size the operator limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import secrets
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from notebook_runner_server import folder_tree
from notebook_runner_server.errors import OffsetPastEndError
from notebook_runner_server.runs.folder import private

DEFAULT_BYTES = 1024**3
RUN_SHARE = 4
"""The artefacts of one run get this fraction of the cache: one in RUN_SHARE."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Artefact:
    """A complete file, its media type, its SHA-256 in hexadecimal, and its size in bytes."""

    path: Path
    media_type: str
    sha256: str
    size: int


class Artefacts:
    """The artefacts that this server has made, least recently used first.

    Args:
        folder: The cache, with a folder for each run.
        max_bytes: The maximum size of all. An artefact that is in use stays, however large it is.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._made: OrderedDict[Path, Artefact] = OrderedDict()
        self._in_use: Counter[Path] = Counter()

    def clear(self) -> None:
        """Remove the artefacts of an earlier server; blocks."""
        if self._folder.is_dir() and not self._folder.is_symlink():
            folder_tree.remove_if_possible(self._folder)
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def path(self, run_id: str, name: str) -> Path:
        """Return the path of an artefact of a run."""
        return self._folder / run_id / name

    @contextlib.contextmanager
    def held(self, path: Path) -> Iterator[None]:
        """Protect an artefact from eviction, until the context ends."""
        self._in_use[path] += 1
        try:
            yield
        finally:
            self._in_use[path] -= 1
            if not self._in_use[path]:
                del self._in_use[path]

    def find(self, path: Path) -> Artefact | None:
        """Return an artefact of this server, and mark it as most recently used.

        None: it was not made, or somebody has removed its file.
        """
        if path in self._made and not path.is_file():
            del self._made[path]
        found = self._made.get(path)
        if found is not None:
            self._made.move_to_end(path)
        return found

    async def add(self, path: Path, media_type: str, fill: Callable[[Path], object]) -> Artefact:
        """Write an artefact with `fill`, and evict others for it.

        Raises:
            OSError: It cannot be written, even after the eviction of all others.
        """
        try:
            made = await asyncio.to_thread(_save, path, media_type, fill)
        except OSError as error:
            if not await self.make_room(path, error):
                raise
            made = await asyncio.to_thread(_save, path, media_type, fill)
        self._made[path] = made
        self._made.move_to_end(path)
        await self._remove(self._others(path, self._max_bytes))
        return made

    async def make_room(self, path: Path, error: OSError) -> bool:
        """Evict all other artefacts if an artefact could not be written because they may fill the disk.

        Args:
            path: The artefact.
            error: Why it could not be written.

        Returns:
            Whether another attempt may succeed.
        """
        return error.errno in _NO_SPACE and await self._remove(self._others(path, 0))

    async def delete(self, run_id: str) -> None:
        """Delete all artefacts of a run."""
        folder = self._folder / run_id
        for path in [path for path in self._made if path.parent == folder]:
            del self._made[path]
        await asyncio.to_thread(folder_tree.remove_if_possible, folder)

    def _others(self, path: Path, max_bytes: int) -> list[Path]:
        """Choose what to evict, so that the artefacts of a path's run, and then all, fit their limits."""
        free = [one for one in self._made.values() if one.path != path and one.path not in self._in_use]
        own = [one for one in free if one.path.parent == path.parent]
        gone: dict[Path, int] = {}
        for candidates, most in ((own, max_bytes // RUN_SHARE), (free, max_bytes)):
            counted = [
                one for one in self._made.values() if candidates is free or one.path.parent == path.parent
            ]
            over = sum(one.size for one in counted) - sum(gone.values()) - most
            for one in candidates:
                if over > 0 and one.path not in gone:
                    gone[one.path] = one.size
                    over -= one.size
        return list(gone)

    async def _remove(self, paths: Iterable[Path]) -> bool:
        """Remove those artefacts that still exist and are not in use; return whether there were any."""
        any_removed = False
        for path in paths:
            if path in self._in_use or self._made.pop(path, None) is None:
                continue
            any_removed = True
            # Renamed first, because the same artefact may be made again during the removal.
            doomed = _beside(path)
            with contextlib.suppress(FileNotFoundError):
                path.rename(doomed)
                await asyncio.to_thread(doomed.unlink)
        return any_removed


def write(chunks: Iterable[bytes], target: Path) -> None:
    """Write chunks to a file."""
    with open(target, "wb", opener=private) as file:
        file.writelines(chunks)


def draft(path: Path) -> Path:
    """Return a unique path for writing an artefact: the thread of a cancelled call may still be writing."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return _beside(path)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}")


def _save(path: Path, media_type: str, fill: Callable[[Path], object]) -> Artefact:
    """Write an artefact beside its path, and rename it when it is complete."""
    whole = draft(path)
    try:
        fill(whole)
        # An exporter may have created it with another mode.
        whole.chmod(0o600)
        with whole.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = whole.stat().st_size
        whole.replace(path)
    finally:
        whole.unlink(missing_ok=True)
    return Artefact(path, media_type, digest, size)


async def read(path: Path, offset: int, size: int) -> tuple[bytes | bytearray, int]:
    """Return some bytes from an offset on, and the size of the file.

    What is in memory is read without a thread, since the way to a thread and back takes longer.

    Raises:
        OffsetPastEndError: The file ends before the offset.
    """
    with _opened(path) as descriptor:
        total = os.fstat(descriptor).st_size
        check_offset(offset, total)
        content = bytearray(min(size, total - offset))
        # An error: it is on the disk, or the file system cannot tell.
        with contextlib.suppress(OSError):
            if not content or os.preadv(descriptor, [content], offset, os.RWF_NOWAIT) == len(content):
                return content, total
    return await asyncio.to_thread(_read_from_disk, path, offset, size), total


def _read_from_disk(path: Path, offset: int, size: int) -> bytes:
    with _opened(path) as descriptor:
        return os.pread(descriptor, size, offset)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def check_offset(offset: int, total: int) -> None:
    """Check that an offset is not past the end.

    Raises:
        OffsetPastEndError: It is.
    """
    if offset > total:
        raise OffsetPastEndError(
            f"offset must be at most {total}, the size of the artefact (got {offset}).",
            field="offset",
            total_bytes=str(total),
        )
