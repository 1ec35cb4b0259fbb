"""Which files and folders a kernel may read and write, as paths that Landlock takes.

Landlock allows and cannot deny: what is below an allowed folder is allowed. To hide a folder, every entry of
every folder above it is allowed, but the one that leads to it. So what is made later in one of the folders
above, a kernel that was started before does not see: `Rules.is_current` tells.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CACHES = ("XDG_CACHE_HOME", "~/.cache"), ("MPLCONFIGDIR", "~/.config/matplotlib")
"""Folders that libraries share between processes: the variable that names one, and its place otherwise."""

DEVICES = "/dev"
"""What is in it has its own permissions, and /dev/shm is needed for shared memory."""


@dataclass(frozen=True, slots=True)
class Confinement:
    """What holds for the kernels of all runs.

    Attributes:
        places: Where a kernel that is started before a run has its private working folder, until the run
            moves it to its place; on the file system of the runs' folders.
        hidden: Files and folders that no kernel may read.
        writable: Folders that each kernel may read and write, whatever is in them.
        root: The folder that notebooks are in; a notebook works in its own folder below it. None: none.
    """

    places: Path
    hidden: tuple[Path, ...]
    writable: tuple[Path, ...] = ()
    root: Path | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """What one kernel may reach.

    Attributes:
        read: Paths below which it may read.
        write: Paths below which it may write as well.
        seen: The folders above what is hidden, and when an entry of each was last added or removed.
    """

    read: tuple[str, ...]
    write: tuple[str, ...]
    seen: dict[str, int] = field(default_factory=dict)

    def encoded(self) -> dict[str, Any]:
        """Return what `confine.restrict` takes."""
        return {"read": self.read, "write": self.write, "alone": True}

    def is_current(self) -> bool:
        """Tell whether a kernel that was started now would see no more than this one.

        The system's folder for temporary files is not asked: it changes all the time.
        """
        return all(_changed(folder) == at for folder, at in self.seen.items())


def rules(confinement: Confinement, own: Iterable[Path]) -> Rules:
    """Return the rules for a kernel that is started now.

    Args:
        confinement: What holds for all.
        own: Folders of this kernel.
    """
    write = [DEVICES, *map(str, (*own, *confinement.writable, *caches()))]
    open_to_all = [Path(one).resolve() for one in (*confinement.writable, confinement.root) if one]
    hidden = [one.resolve() for one in confinement.hidden]
    # What the operator opens is open as a whole.
    closed = [one for one in hidden if not any(one.is_relative_to(folder) for folder in open_to_all)]
    above = {folder for one in closed for folder in one.parents}
    seen = {str(folder): _changed(str(folder)) for folder in above if folder not in _temporary()}
    read = (
        [entry for folder in sorted(above) for entry in _entries(folder, above, closed)] if closed else ["/"]
    )
    return Rules((*read, *map(str, open_to_all)), tuple(write), seen)


def exposed(confinement: Confinement) -> list[Path]:
    """Return what should be hidden and is not, for it is in a folder that the operator has opened."""
    opened = [one.resolve() for one in (*confinement.writable, confinement.root) if one]
    hidden = [one.resolve() for one in confinement.hidden]
    return [one for one in hidden if any(one.is_relative_to(folder) for folder in opened)]


def caches() -> list[Path]:
    """Return the folders that libraries share; they are made, for a confined kernel may not."""
    found = []
    for variable, otherwise in CACHES:
        folder = Path(os.environ.get(variable) or otherwise).expanduser()
        if _is_there(folder):
            found.append(folder)
    return found


def _is_there(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return True


def _temporary() -> Sequence[Path]:
    return Path("/tmp"), Path(tempfile.gettempdir()).resolve()  # noqa: S108 - it is asked about, not used


def _changed(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0


def _entries(folder: Path, above: set[Path], hidden: Sequence[Path]) -> list[str]:
    """Return the entries of a folder that lead to nothing hidden; a link leads where its target is."""
    try:
        with os.scandir(folder) as entries:
            found = [entry.path for entry in entries if not entry.is_symlink()]
    except OSError:
        return []
    return [path for path in found if Path(path) not in above and Path(path) not in hidden]
