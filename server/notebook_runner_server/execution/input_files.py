"""Writes the files that a request brings into the run's folder, before the kernel executes anything there."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from notebook_runner_server import folder_tree
from notebook_runner_server.execution.interface import InputFile


def write(folder: Path, files: Iterable[InputFile]) -> None:
    """Write files below a folder, and create their folders, for this user alone; can be repeated.

    Raises:
        OSError: One cannot be written, or its path leads over a link.
    """
    for file in files:
        parent, name = os.path.split(file.path)
        inner = folder_tree.open_below(folder, parent, make=True)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(name, flags, 0o600, dir_fd=inner)
        finally:
            os.close(inner)
        with open(descriptor, "wb") as target:
            target.write(file.content)
