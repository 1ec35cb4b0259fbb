"""The `files` format: a zip of what the notebook left in its run folder."""

from __future__ import annotations

import os
import stat
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_COPY_BYTES = 1024 * 1024
# What a zip can say of a file's time.
_FIRST, _LAST = (1980, 1, 1, 0, 0, 0), (2107, 12, 31, 23, 59, 58)


class TooLargeError(Exception):
    """The folder holds more than may be packed."""


def pack(folder: Path, target: Path, max_bytes: int) -> None:
    """Write a zip of a folder's regular files; links are not followed.

    The notebook may go on meanwhile: a file that is gone when its turn comes is left out.

    Args:
        folder: What to pack.
        target: The zip.
        max_bytes: How many bytes the files may have together.

    Raises:
        TooLargeError: They have more.
    """
    found = sorted(_regular_files(folder))
    total = sum(size for _, size in found)
    if total > max_bytes:
        raise _too_large(total, max_bytes)
    packed = 0
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, _ in found:
            # A zip's names are Unicode; a file's need not be.
            name = os.fsencode(path.relative_to(folder)).decode(errors="replace")
            for piece_size in _add(archive, path, name):
                packed += piece_size
                if packed > max_bytes:
                    raise _too_large(packed, max_bytes)


def _too_large(size: int, max_bytes: int) -> TooLargeError:
    return TooLargeError(
        f"the run folder has {size} bytes, of {max_bytes} that the server allows (--max-files-bytes)"
    )


def _regular_files(folder: Path) -> Iterator[tuple[Path, int]]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            try:
                about = path.lstat()
            except OSError:
                continue
            if stat.S_ISREG(about.st_mode):
                yield path, about.st_size


def _add(archive: zipfile.ZipFile, path: Path, name: str) -> Iterator[int]:
    """Add a file to a zip; yield the size of each piece."""
    try:
        # Without waiting and without following: it may be another file by now, a pipe or a link.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    with open(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if stat.S_ISREG(about.st_mode):
            yield from _copy(file, archive, _info(name, about))


def _copy(file: IO[bytes], archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[int]:
    with archive.open(info, "w", force_zip64=True) as entry:
        while piece := file.read(_COPY_BYTES):
            entry.write(piece)
            yield len(piece)


def _info(name: str, about: os.stat_result) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, min(max(time.localtime(about.st_mtime)[:6], _FIRST), _LAST))
    info.external_attr = (about.st_mode & 0xFFFF) << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    return info
