"""A temporary folder that lives as long as the server, for kernel sockets, connection files and exports.

The path of a socket has at most 107 bytes (kernels and Chromium have sockets), so the folder cannot be below
the state folder. A link there leads to it, so that the next start can remove what a killed server left.

The server holds the folder open and locked: no other server removes it, and cleaners that respect such locks
(systemd-tmpfiles) leave it alone. If something else removes it, it is created again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from pathlib import Path

from notebook_runner_server import folder_tree

_PREFIX = "nbr-"
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class RuntimeDir:
    """A private folder with a short path under the system's temporary folder.

    Args:
        link: The symbolic link that leads to it.
    """

    def __init__(self, link: Path) -> None:
        self._link = link
        self._path: Path | None = None
        self._descriptor = -1

    def open(self) -> None:
        """Remove what a killed server left, and create the folder."""
        self._remove_left()
        self._path = Path(tempfile.mkdtemp(prefix=_PREFIX)).resolve()
        self._hold()
        self._link.symlink_to(self._path)

    @property
    def folder(self) -> Path:
        """The folder, after `open`."""
        assert self._path is not None  # noqa: S101 - open() was called
        return self._path

    def subfolder(self) -> Path:
        """Create a folder in it, and return that.

        Raises:
            OSError: It cannot be created.
        """
        self.restore()
        return Path(tempfile.mkdtemp(prefix="", dir=self.folder))

    def restore(self) -> bool:
        """Create the folder again if it has disappeared; return whether it had.

        Raises:
            OSError: It cannot be created, or its name is taken.
        """
        if self._is_there():
            return False
        make_private(self.folder)
        self._hold()
        return True

    def close(self) -> None:
        """Remove the folder, if this object created it."""
        if self._path is None:
            return
        # A worker may have recreated it.
        with contextlib.suppress(OSError):
            self.restore()
        if self._is_there():
            folder_tree.remove_if_possible(self._path)
        # A link that stays is removed at the next start.
        with contextlib.suppress(OSError):
            if self._link.readlink() == self._path:
                self._link.unlink()
        os.close(self._descriptor)
        self._path, self._descriptor = None, -1

    def _hold(self) -> None:
        descriptor = os.open(self.folder, _OPEN)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = descriptor

    def _is_there(self) -> bool:
        held = os.fstat(self._descriptor)
        try:
            found = self.folder.lstat()
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)

    def _remove_left(self) -> None:
        """Remove what a killed server left; a running server keeps its folder locked."""
        if not self._link.is_symlink():
            return
        left = self._link.readlink()
        with contextlib.suppress(OSError):
            descriptor = os.open(left, _OPEN)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if left.name.startswith(_PREFIX) and os.fstat(descriptor).st_uid == os.geteuid():
                    folder_tree.remove_if_possible(left)
            finally:
                os.close(descriptor)
        self._link.unlink()


def subfolder(folder: Path) -> Path:
    """Create a folder in a worker's folder, which is recreated if it has disappeared, and return that.

    Raises:
        OSError: It cannot be created.
    """
    with contextlib.suppress(FileNotFoundError):
        return Path(tempfile.mkdtemp(prefix="", dir=folder))
    # A run does not wait until the server notices.
    make_private(folder.parent)
    make_private(folder)
    return Path(tempfile.mkdtemp(prefix="", dir=folder))


def make_private(path: Path) -> None:
    """Create a folder that only this user can access, unless it exists.

    Raises:
        OSError: It cannot be created, or its name is taken by anything but a private folder of this user.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise FileExistsError(f"{path} is not a private folder of this user")
