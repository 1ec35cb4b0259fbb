"""The `files` format: a zip of the files that the notebook wrote to its run folder."""

from __future__ import annotations

import os
import stat
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from notebook_runner_server.folder_tree import Entry, walk

MAX_FLAG = "--max-files-bytes"

_COPY_BYTES = 1024 * 1024
# Linux's PATH_MAX: longer paths cannot be unpacked.
_MAX_PATH_BYTES = 4096
# The range of times in a zip.
_FIRST, _LAST = (1980, 1, 1, 0, 0, 0), (2107, 12, 31, 23, 59, 58)


class UnpackableError(Exception):
    """The folder cannot be packed: it is too large, or nested too deep."""


def pack(folder: Path, target: Path, max_bytes: int, flag: str = MAX_FLAG) -> None:
    """Write a zip of a folder's regular files; links are not followed.

    The notebook may change the folder meanwhile: a file that disappears is left out, and nothing from outside
    the folder gets in.

    Args:
        folder: The folder.
        target: The zip.
        max_bytes: The maximum size of all files together.
        flag: The setting that it comes from.

    Raises:
        UnpackableError: The files are larger, or one of their paths is too long.
    """
    check_size(sum(entry.about.st_size for entry in _regular_files(folder)), max_bytes, flag)
    packed = 0
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in _regular_files(folder):
            for size in _add(archive, entry):
                packed += size
                check_size(packed, max_bytes, flag)


def check_size(size: int, max_bytes: int, flag: str = MAX_FLAG) -> None:
    """Refuse files that take up `size` bytes or more; other arguments and errors as in `pack`."""
    if size > max_bytes:
        raise UnpackableError(
            f"The run's files take up at least {size} bytes; the server allows {max_bytes} ({flag})."
        )


def _regular_files(folder: Path) -> Iterator[Entry]:
    for entry in walk(folder):
        if stat.S_ISREG(entry.about.st_mode):
            if len(os.fsencode(entry.path)) > _MAX_PATH_BYTES:
                raise UnpackableError(
                    f"The run's files are nested too deep: a path is longer than {_MAX_PATH_BYTES} bytes."
                )
            yield entry


def _add(archive: zipfile.ZipFile, entry: Entry) -> Iterator[int]:
    """Add a file to a zip; yield the size of each chunk."""
    try:
        # It may have been replaced by a pipe or a link.
        descriptor = entry.open()
    except OSError:
        return
    # Names in a zip are Unicode; names of files need not be. Some tools take backslashes for separators, and
    # extract `..\x` to another folder.
    name = os.fsencode(entry.path).decode(errors="replace").replace("\\", "\N{FULLWIDTH REVERSE SOLIDUS}")
    with open(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if stat.S_ISREG(about.st_mode):
            yield from _copy(file, archive, _info(name, about))


def _copy(file: IO[bytes], archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[int]:
    with archive.open(info, "w", force_zip64=True) as entry:
        while chunk := file.read(_COPY_BYTES):
            entry.write(chunk)
            yield len(chunk)


def _info(name: str, about: os.stat_result) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, min(max(time.localtime(about.st_mtime)[:6], _FIRST), _LAST))
    info.external_attr = (about.st_mode & 0xFFFF) << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    return info
