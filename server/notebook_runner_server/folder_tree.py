"""Walk, measure and remove folders that a notebook may be changing at the same time.

Nothing here follows symbolic links, and folders may be nested to any depth: one folder is open at a time. It
is entered by its name in its parent, and left by "..", which must lead back to that parent (as in fts(3)). So
a folder that is moved or replaced meanwhile cannot lead anywhere else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_PASSED = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK_BYTES = 512
"""The unit of `st_blocks`, whatever that of the file system is (stat(2))."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a folder that is not a folder itself; valid until the walk continues.

    Attributes:
        name: Its name.
        folder: A descriptor of its folder.
        about: Its `lstat` result.
        above: The folders above it, from the root of the walk.
    """

    name: str
    folder: int
    about: os.stat_result
    above: Sequence[_Level]

    @property
    def path(self) -> str:
        """Its path from the root of the walk."""
        # Joined on demand: joining at each folder would be quadratic in the depth.
        return "/".join([*(level.name for level in self.above[1:]), self.name])

    def open(self) -> int:
        """Open a file for reading, without following a link or blocking on a pipe.

        Raises:
            OSError: It is gone, or has become a link.
        """
        return os.open(
            self.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.folder
        )


def open_path(path: Path) -> int:
    """Open a file or folder; neither it nor any of its parents may be a symbolic link.

    A path that a notebook can write to may become a link at any moment, and lead to what the notebook may not
    access. `openat2` with `RESOLVE_NO_SYMLINKS` does the same, but some systems and seccomp profiles lack it.

    Args:
        path: Absolute, without "..".

    Returns:
        A descriptor (`O_PATH`), which the caller closes.

    Raises:
        OSError: It does not exist, or leads over a link.
    """
    descriptor = os.open("/", _PASSED)
    try:
        *above, last = ["/", *path.relative_to("/").parts]
        for part in above[1:]:
            descriptor = _replaced(descriptor, os.open(part, _PASSED, dir_fd=descriptor))
        if above:
            descriptor = _replaced(descriptor, open_entry(last, descriptor))
    except NotADirectoryError as error:
        os.close(descriptor)
        raise _is_link(str(path)) from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def grant_owner(path: str | Path) -> bool:
    """Give this user access to its own file or folder, if its mode denies that; no link is followed.

    Returns:
        Whether the mode was changed.
    """
    try:
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        about = os.fstat(descriptor)
        mode = 0o700 if stat.S_ISDIR(about.st_mode) else 0o600 if stat.S_ISREG(about.st_mode) else 0
        if about.st_uid != os.geteuid() or about.st_mode & mode == mode:
            return False
        # A descriptor that is only a place (O_PATH) has no fchmod.
        os.chmod(f"/proc/self/fd/{descriptor}", mode)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def open_entry(name: str, folder: int) -> int:
    """Open an entry of a folder: a file or a folder.

    Returns:
        A descriptor (`O_PATH`), which the caller closes.

    Raises:
        OSError: It does not exist, or is a link.
    """
    descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    if stat.S_ISLNK(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _is_link(name)
    return descriptor


def _is_link(path: str) -> OSError:
    return OSError(errno.ELOOP, "is a symbolic link, or leads over one", path)


def open_below(root: Path, relative: str | Path, *, make: bool = False) -> int:
    """Open a folder below a root; no part of its path below the root may be a symbolic link.

    Args:
        root: The root, which is resolved as usual.
        relative: The path from the root.
        make: Create missing folders, for this user alone.

    Returns:
        A descriptor (`O_RDONLY`), which the caller closes.

    Raises:
        OSError: It does not exist, or leads over a link or outside the root.
    """
    parts = Path(relative).parts
    if ".." in parts or Path(relative).is_absolute():
        raise OSError(errno.EXDEV, "leads out of its folder", str(relative))
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=descriptor)
            descriptor = _replaced(descriptor, os.open(part, _FOLDER, dir_fd=descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def walk(folder: Path) -> Iterator[Entry]:
    """Yield everything below a folder but folders: files, links and others, by name, nearest first.

    Unreadable folders, and folders that are moved away meanwhile, are left out.
    """
    with contextlib.suppress(OSError):
        yield from _Walk(_enterable).entries(os.open(folder, _FOLDER))


def size(folder: Path) -> int:
    """Return the space that the files below a folder use, in bytes; links count as themselves.

    Of a sparse file only what is stored counts, and a file with several names counts once: a notebook can
    make either of any size without using the disk.
    """
    found = {(entry.about.st_dev, entry.about.st_ino): entry.about for entry in walk(folder)}
    return sum(map(_used, found.values()))


def _used(about: os.stat_result) -> int:
    return (
        min(about.st_size, about.st_blocks * _BLOCK_BYTES) if stat.S_ISREG(about.st_mode) else about.st_size
    )


def content_size(folder: Path) -> int:
    """Return the total length of the files below a folder in bytes: what their copy would take."""
    return sum(entry.about.st_size for entry in walk(folder))


def remove(folder: Path) -> None:
    """Remove a folder with its contents; a missing folder is no error.

    Raises:
        OSError: Something could not be removed; the rest is removed.
    """
    walk = _Walk(_made_enterable)
    try:
        descriptor = _made_enterable(folder)
    except FileNotFoundError:
        return
    for entry in walk.entries(descriptor, on_leave=walk.remove_folder):
        walk.attempt(os.unlink, entry.name, entry.folder)
    walk.attempt(os.rmdir, folder)
    if walk.failure is not None:
        raise walk.failure


def remove_if_possible(folder: Path) -> None:
    """Remove a folder with its contents as far as possible; a missing folder is no error."""
    with contextlib.suppress(OSError):
        remove(folder)


@dataclass(slots=True)
class _Level:
    """A folder above the current position: its identity, its name, and its subfolders still to enter."""

    identity: tuple[int, int]
    name: str
    left: list[str] = field(default_factory=list)


class _Walk:
    """One walk through a folder tree.

    Args:
        enter: Opens a folder by its name and a descriptor of its parent.
    """

    def __init__(self, enter: Callable[[str, int], int]) -> None:
        self._enter = enter
        self.failure: OSError | None = None

    def attempt(self, call: Callable[..., object], name: str | Path, folder: int | None = None) -> None:
        """Call a function on an entry, and keep the first failure; a missing entry is no failure."""
        try:
            call(name, dir_fd=folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            self.failure = self.failure or error

    def remove_folder(self, name: str, folder: int) -> None:
        """Remove a folder whose contents are removed."""
        self.attempt(os.rmdir, name, folder)

    def entries(
        self, descriptor: int, on_leave: Callable[[str, int], object] = lambda *_: None
    ) -> Iterator[Entry]:
        """Yield the entries below an open folder, which is closed at the end.

        Args:
            descriptor: The folder.
            on_leave: Called with the name and parent of each folder below, when the walk leaves it.
        """
        levels: list[_Level] = []
        try:
            levels.append(_Level(_identity(descriptor), ""))
            yield from self._files(descriptor, levels)
            while True:
                if levels[-1].left:
                    name = levels[-1].left.pop()
                    try:
                        descriptor = _replaced(descriptor, self._enter(name, descriptor))
                    except FileNotFoundError:
                        continue
                    except OSError as error:
                        self.failure = self.failure or error
                        continue
                    levels.append(_Level(_identity(descriptor), name))
                    yield from self._files(descriptor, levels)
                    continue
                name = levels.pop().name
                if not levels:
                    return
                descriptor = _replaced(descriptor, os.open("..", _FOLDER, dir_fd=descriptor))
                if _identity(descriptor) != levels[-1].identity:
                    raise OSError(errno.ESTALE, "a folder was moved while it was read", name)
                on_leave(name, descriptor)
        finally:
            os.close(descriptor)

    def _files(self, descriptor: int, levels: list[_Level]) -> Iterator[Entry]:
        try:
            names = sorted(os.listdir(descriptor))
        except OSError as error:
            self.failure = self.failure or error
            return
        for name in names:
            try:
                about = os.lstat(name, dir_fd=descriptor)
            except OSError:
                # It is gone.
                continue
            if stat.S_ISDIR(about.st_mode):
                levels[-1].left.append(name)
            else:
                yield Entry(name, descriptor, about, levels)
        levels[-1].left.reverse()


def _enterable(name: str, folder: int) -> int:
    """Open a folder that can be left again by ".."."""
    descriptor = os.open(name, _FOLDER, dir_fd=folder)
    if not os.access(".", os.X_OK, dir_fd=descriptor):
        os.close(descriptor)
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
    return descriptor


def _made_enterable(name: str | Path, folder: int | None = None) -> int:
    """Open a folder, and grant this user all rights."""
    try:
        descriptor = os.open(name, _FOLDER, dir_fd=folder)
    except PermissionError:
        # By its name: a folder without read permission has no descriptor. If a link has replaced it, the
        # link's target belongs to this user too, and is not entered.
        os.chmod(name, 0o700, dir_fd=folder)
        descriptor = os.open(name, _FOLDER, dir_fd=folder)
    with contextlib.suppress(OSError):
        os.fchmod(descriptor, 0o700)
    return descriptor


def _identity(descriptor: int) -> tuple[int, int]:
    about = os.fstat(descriptor)
    return about.st_dev, about.st_ino


def _replaced(before: int, after: int) -> int:
    """Close a descriptor, and return the one that replaces it."""
    os.close(before)
    return after
