"""The `files` format: a zip of what the notebook left in its run folder."""

from __future__ import annotations

import os
import stat
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from notebook_runner_server.folder_tree import Entry, walk

_COPY_BYTES = 1024 * 1024
# Linux's PATH_MAX: what is longer nobody could unpack.
_MAX_PATH_BYTES = 4096
# What a zip can say of a file's time.
_FIRST, _LAST = (1980, 1, 1, 0, 0, 0), (2107, 12, 31, 23, 59, 58)


class UnpackableError(Exception):
    """The folder cannot be packed: it holds more than it may, or is nested too deep."""


def pack(folder: Path, target: Path, max_bytes: int) -> None:
    """Write a zip of a folder's regular files; links are not followed.

    The notebook may go on meanwhile: a file that is gone when its turn comes is left out, and nothing from
    outside of the folder comes in.

    Args:
        folder: What to pack.
        target: The zip.
        max_bytes: How many bytes the files may have together.

    Raises:
        UnpackableError: They have more, or the path of one is too long.
    """
    total = sum(entry.about.st_size for entry in _regular_files(folder))
    if total > max_bytes:
        raise _too_large(total, max_bytes)
    packed = 0
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in _regular_files(folder):
            for piece_size in _add(archive, entry):
                packed += piece_size
                if packed > max_bytes:
                    raise _too_large(packed, max_bytes)


def _too_large(size: int, max_bytes: int) -> UnpackableError:
    return UnpackableError(
        f"the run folder has {size} bytes, of {max_bytes} that the server allows (--max-files-bytes)"
    )


def _regular_files(folder: Path) -> Iterator[Entry]:
    for entry in walk(folder):
        if stat.S_ISREG(entry.about.st_mode):
            if len(os.fsencode(entry.path)) > _MAX_PATH_BYTES:
                raise UnpackableError(
                    f"the run folder has files nested too deep: a path of more than {_MAX_PATH_BYTES} bytes"
                )
            yield entry


def _add(archive: zipfile.ZipFile, entry: Entry) -> Iterator[int]:
    """Add a file to a zip; yield the size of each piece."""
    try:
        # It may be another file by now, a pipe or a link.
        descriptor = entry.open()
    except OSError:
        return
    # A zip's names are Unicode; a file's need not be.
    name = os.fsencode(entry.path).decode(errors="replace")
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
