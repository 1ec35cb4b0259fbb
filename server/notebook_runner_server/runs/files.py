"""The `files` format: a zip of what the notebook left in its run folder."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path


class TooLargeError(Exception):
    """The folder holds more than may be packed."""


def pack(folder: Path, target: Path, max_bytes: int) -> None:
    """Write a zip of a folder's regular files; links are not followed.

    Args:
        folder: What to pack.
        target: The zip.
        max_bytes: How many bytes the files may have together.

    Raises:
        TooLargeError: They have more.
    """
    found = sorted(_regular_files(folder))
    total = sum(path.lstat().st_size for path in found)
    if total > max_bytes:
        raise TooLargeError(
            f"the run folder has {total} bytes, of {max_bytes} that the server allows (--max-files-bytes)"
        )
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
        for path in found:
            # A zip's names are Unicode; a file's need not be.
            archive.write(path, os.fsencode(path.relative_to(folder)).decode(errors="replace"))


def _regular_files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if stat.S_ISREG(path.lstat().st_mode):
                yield path
