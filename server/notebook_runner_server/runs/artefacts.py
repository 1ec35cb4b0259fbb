"""Files of artefacts: written whole, read in pages, and removed when others need the room.

They can be made again, so they are not part of the history: they are in a folder of their own, which a start
empties, and take no more room than the operator gives them.
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
"""The artefacts of one run get one part in so many of the room for all."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Artefact:
    """A file that is whole, what is in it, its SHA-256 in hexadecimal, and its size in bytes."""

    path: Path
    media_type: str
    sha256: str
    size: int


class Artefacts:
    """The artefacts that this server has made, those that were read longest ago first.

    Args:
        folder: Where they are, a folder for each run.
        max_bytes: What all may take together. The one that is read now is there however large it is.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._made: OrderedDict[Path, Artefact] = OrderedDict()
        self._in_use: Counter[Path] = Counter()

    def clear(self) -> None:
        """Remove what an earlier server has made; blocks."""
        if self._folder.is_dir() and not self._folder.is_symlink():
            folder_tree.remove_if_possible(self._folder)
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def path(self, run_id: str, name: str) -> Path:
        """Return where an artefact of a run is, or is to be."""
        return self._folder / run_id / name

    @contextlib.contextmanager
    def held(self, path: Path) -> Iterator[None]:
        """Keep an artefact from being removed, between `with` and its end."""
        self._in_use[path] += 1
        try:
            yield
        finally:
            self._in_use[path] -= 1
            if not self._in_use[path]:
                del self._in_use[path]

    def find(self, path: Path) -> Artefact | None:
        """Return an artefact that this server has made, as the one that was read last.

        None: it has not, or somebody has removed the file.
        """
        if path in self._made and not path.is_file():
            del self._made[path]
        found = self._made.get(path)
        if found is not None:
            self._made.move_to_end(path)
        return found

    async def add(self, path: Path, media_type: str, fill: Callable[[Path], object]) -> Artefact:
        """Have an artefact written, and make room for it.

        Raises:
            OSError: It cannot be written, not even when all others are gone.
        """
        try:
            made = await asyncio.to_thread(_save, path, media_type, fill)
        except OSError as error:
            # The disk may be full of others.
            if error.errno not in _NO_ROOM or not await self._remove(self._others(path, 0)):
                raise
            made = await asyncio.to_thread(_save, path, media_type, fill)
        self._made[path] = made
        self._made.move_to_end(path)
        await self._remove(self._others(path, self._max_bytes))
        return made

    async def forget(self, run_id: str) -> None:
        """Remove all artefacts of a run."""
        folder = self._folder / run_id
        for path in [path for path in self._made if path.parent == folder]:
            del self._made[path]
        await asyncio.to_thread(folder_tree.remove_if_possible, folder)

    def _others(self, path: Path, max_bytes: int) -> list[Path]:
        """Choose what has to go so that the artefacts of a path's run, and then all, fit in their room."""
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
        """Remove those that are still there and that nobody uses by now; tell whether there were any."""
        any_removed = False
        for path in paths:
            if path in self._in_use or self._made.pop(path, None) is None:
                continue
            any_removed = True
            # Renamed at once: the same artefact may be made again while the file is removed.
            doomed = _beside(path)
            with contextlib.suppress(FileNotFoundError):
                path.rename(doomed)
                await asyncio.to_thread(doomed.unlink)
        return any_removed


def write(pieces: Iterable[bytes], target: Path) -> None:
    """Write these pieces to a file."""
    with open(target, "wb", opener=private) as file:
        file.writelines(pieces)


def draft(path: Path) -> Path:
    """Return a name of its own to write an artefact under: a call that was given up may still be writing."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return _beside(path)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}")


def _save(path: Path, media_type: str, fill: Callable[[Path], object]) -> Artefact:
    """Have an artefact written beside its place, and put it there when it is whole."""
    whole = draft(path)
    try:
        fill(whole)
        # Whoever has written it, it is this user's alone.
        whole.chmod(0o600)
        with whole.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = whole.stat().st_size
        whole.replace(path)
    finally:
        whole.unlink(missing_ok=True)
    return Artefact(path, media_type, digest, size)


def read(path: Path, offset: int, size: int) -> tuple[bytes, int]:
    """Return some bytes from an offset on, and how many there are altogether.

    Raises:
        OffsetPastEndError: It ends before.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        total = os.fstat(descriptor).st_size
        check_offset(offset, total)
        return os.pread(descriptor, size, offset), total
    finally:
        os.close(descriptor)


def check_offset(offset: int, total: int) -> None:
    """Refuse an offset that is past the end.

    Raises:
        OffsetPastEndError: It is.
    """
    if offset > total:
        raise OffsetPastEndError(
            f"The artefact has {total} bytes, and {offset} is past its end.",
            field="offset",
            total_bytes=str(total),
        )
