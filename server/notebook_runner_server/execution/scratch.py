"""The folder for what lives as long as a server: the kernels' sockets and connection files.

A socket's path may have 107 bytes at the most, so the folder cannot be below the state folder. A link in the
state folder says where it is, so that what a killed server has left is removed at the next start.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

_PREFIX = "nbr-"


class Scratch:
    """A short private folder under the system's temporary folder.

    Args:
        link: The symbolic link that leads to it; whoever uses it has it alone.
    """

    def __init__(self, link: Path) -> None:
        self._link = link
        self._folder: Path | None = None

    def open(self) -> None:
        """Make the folder, after what an earlier server has left is removed."""
        self.close()
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._link.symlink_to(self._folder)

    @property
    def folder(self) -> Path:
        """The folder, when it is there."""
        assert self._folder is not None  # noqa: S101 - open() was called
        return self._folder

    def subfolder(self) -> Path:
        """Return a new folder in it."""
        return Path(tempfile.mkdtemp(prefix="", dir=self._folder))

    def close(self) -> None:
        """Remove it."""
        if not self._link.is_symlink():
            return
        folder = self._link.readlink()
        if folder.name.startswith(_PREFIX):
            shutil.rmtree(folder, ignore_errors=True)
        self._link.unlink()
