"""Reads and writes files in the allowed folders; runs in the helper process only."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from notebook_runner_server.subprocess_program import clean_up
from notebook_runner_server.transfer.interface import MissingError, RefusedError


def read(path: str, folders: Sequence[str], limit: int) -> bytes:
    """Return up to `limit` bytes of a file, and one more if it has more.

    Raises:
        TransferError: It is not a file in these folders.
        OSError: It cannot be read.
    """
    # Non-blocking, because it may be a pipe; checked after it is opened, so that it cannot be exchanged.
    descriptor = _open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        _check_inside(descriptor, folders)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise MissingError("the path is not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(limit + 1)
    finally:
        os.close(descriptor)


def write(path: str, folders: Sequence[str], notebook: BinaryIO) -> None:
    """Replace a file atomically.

    Args:
        path: The file.
        folders: The allowed folders.
        notebook: The new content.

    Raises:
        TransferError: The file is not in these folders.
        OSError: It cannot be written.
    """
    parent, name = os.path.split(path)
    folder = _open(parent, os.O_RDONLY | os.O_DIRECTORY)
    _check_inside(folder, folders)
    draft = f".notebook-runner-{secrets.token_hex(8)}"
    clean_up.callback(_remove, draft, folder)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=folder)
    with open(descriptor, "wb") as file:
        shutil.copyfileobj(notebook, file, 1024 * 1024)
        file.flush()
        os.fsync(descriptor)
    os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise MissingError(f"cannot open the file: {error.strerror}") from error


def _remove(name: str, folder: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def _check_inside(descriptor: int, folders: Sequence[str]) -> None:
    """Check that a file is in one of the folders after following all links."""
    real = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
    if not any(real.is_relative_to(Path(folder).resolve()) for folder in folders):
        raise RefusedError("the path leads out of the allowed folders (--uri-folders)")
