"""Walks, measures and removes folders that a notebook may have filled, and may be changing at this moment.

Nothing here follows a symbolic link, and nothing depends on how deep folders are nested: one folder is open
at a time. It is entered by its name in the folder above, and left by "..", which must lead back to that one
(as fts(3) has it); so what is moved or replaced meanwhile cannot lead anywhere else.
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


@dataclass(frozen=True, slots=True)
class Entry:
    """What is in a folder, and is none; to be looked at before the walk goes on.

    Attributes:
        name: Its name.
        folder: A descriptor of the folder that it is in.
        about: What `lstat` tells of it.
        above: The names of the folders that it is in, from where the walk began.
    """

    name: str
    folder: int
    about: os.stat_result
    above: Sequence[_Level]

    @property
    def path(self) -> str:
        """Its path from where the walk began."""
        # Not kept: to join the names at each folder takes time that is quadratic in the depth.
        return "/".join([*(level.name for level in self.above[1:]), self.name])

    def open(self) -> int:
        """Open a file for reading, without following a link and without waiting for the other end of a pipe.

        Raises:
            OSError: It is gone, or is a link by now.
        """
        return os.open(
            self.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.folder
        )


def open_path(path: Path) -> int:
    """Open a file or folder none of whose parents is a symbolic link, nor itself.

    What an operator's path leads to is settled when the server starts; what a notebook may write can become
    a link at any moment, and lead to what it may not. `openat2` with `RESOLVE_NO_SYMLINKS` would do the
    same, but not on each system, and under each seccomp profile, that this runs on.

    Args:
        path: Absolute, without "..".

    Returns:
        A descriptor (`O_PATH`), which the caller closes.

    Raises:
        OSError: It is not there, or leads over a link.
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


def open_entry(name: str, folder: int) -> int:
    """Open what is in a folder, a file or a folder itself.

    Returns:
        A descriptor (`O_PATH`), which the caller closes.

    Raises:
        OSError: It is not there, or is a link.
    """
    descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    if stat.S_ISLNK(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _is_link(name)
    return descriptor


def _is_link(path: str) -> OSError:
    return OSError(errno.ELOOP, "is a symbolic link, or leads over one", path)


def open_below(root: Path, relative: str | Path, *, make: bool = False) -> int:
    """Open a folder below another one, none of whose parts below that is a symbolic link.

    Args:
        root: The folder above, itself resolved as usual.
        relative: The path from there.
        make: Make the folders that are missing, for this user alone.

    Returns:
        A descriptor (`O_RDONLY`), which the caller closes.

    Raises:
        OSError: It is not there, or leads over a link, or out of the folder above.
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
    """Yield what is below a folder and is no folder: files, links and others, by name, those nearest first.

    What cannot be read is left out, and so is what is moved away meanwhile.
    """
    with contextlib.suppress(OSError):
        yield from _Walk(_enterable).entries(os.open(folder, _FOLDER))


def size(folder: Path) -> int:
    """Return how many bytes the files below a folder have together; links count as themselves."""
    return sum(entry.about.st_size for entry in walk(folder))


def remove(folder: Path) -> None:
    """Remove a folder with all that is in it; not being there is well.

    Raises:
        OSError: Something could not be removed; all else is.
    """
    walk = _Walk(_made_enterable)
    try:
        descriptor = _made_enterable(folder)
    except FileNotFoundError:
        return
    for entry in walk.entries(descriptor, emptied=walk.remove_folder):
        walk.attempt(os.unlink, entry.name, entry.folder)
    walk.attempt(os.rmdir, folder)
    if walk.failure is not None:
        raise walk.failure


def remove_if_possible(folder: Path) -> None:
    """Remove a folder with all that is in it, or as much as can be removed; not being there is well."""
    with contextlib.suppress(OSError):
        remove(folder)


@dataclass(slots=True)
class _Level:
    """A folder on the way: which one it is, its name in the one above, and what in it is still to enter."""

    identity: tuple[int, int]
    name: str
    left: list[str] = field(default_factory=list)


class _Walk:
    """One way through a folder tree.

    Args:
        enter: Opens a folder by its name and a descriptor of the folder that it is in.
    """

    def __init__(self, enter: Callable[[str, int], int]) -> None:
        self._enter = enter
        self.failure: OSError | None = None

    def attempt(self, call: Callable[..., object], name: str | Path, folder: int | None = None) -> None:
        """Do something to an entry, and keep the first failure; not being there is well."""
        try:
            call(name, dir_fd=folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            self.failure = self.failure or error

    def remove_folder(self, name: str, folder: int) -> None:
        """Remove a folder that is empty by now, if all could be removed."""
        self.attempt(os.rmdir, name, folder)

    def entries(
        self, descriptor: int, emptied: Callable[[str, int], object] = lambda *_: None
    ) -> Iterator[Entry]:
        """Yield what is below an open folder, which is closed at the end.

        Args:
            descriptor: The folder.
            emptied: Called with name and folder of each folder below, when it has been left.
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
                emptied(name, descriptor)
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
    """Open a folder that can be left again."""
    descriptor = os.open(name, _FOLDER, dir_fd=folder)
    if not os.access(".", os.X_OK, dir_fd=descriptor):
        os.close(descriptor)
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
    return descriptor


def _made_enterable(name: str | Path, folder: int | None = None) -> int:
    """Open a folder with all rights for this user."""
    try:
        descriptor = os.open(name, _FOLDER, dir_fd=folder)
    except PermissionError:
        # By its name, for without the right to read there is no descriptor that could be given rights. Of a
        # link that has taken its place, what it leads to would be this user's, and is not entered.
        os.chmod(name, 0o700, dir_fd=folder)
        descriptor = os.open(name, _FOLDER, dir_fd=folder)
    with contextlib.suppress(OSError):
        os.fchmod(descriptor, 0o700)
    return descriptor


def _identity(descriptor: int) -> tuple[int, int]:
    about = os.fstat(descriptor)
    return about.st_dev, about.st_ino


def _replaced(before: int, after: int) -> int:
    """Close a descriptor, and return the one that takes its place."""
    os.close(before)
    return after
