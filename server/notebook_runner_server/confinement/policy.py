"""Which files and folders a kernel may read and write, as a ruleset of Landlock.

Landlock allows and cannot deny: what is below an allowed folder is allowed. To hide a folder, every entry of
every folder above it is allowed, but the one that leads to it. So what is made later in one of the folders
above, a kernel that was started before does not see: `KernelRules.is_current` tells.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
import tempfile
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from notebook_runner_server import folder_tree
from notebook_runner_server.confinement import confine

# From linux/landlock.h; the system calls have these numbers on every architecture of today.
_CREATE_RULESET, _ADD_RULE = 444, 445
_RULE_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS = 1 << 0, 1 << 1

# How many rights of files each version knows; what is not handled, is allowed.
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_MOST_RIGHTS = 16
_SCOPES_SINCE = 6
_NETWORK_SINCE = 4


class Ruleset:
    """What a process may reach from the moment on at which it applies this.

    Args:
        reading: Deny to read what is not allowed, too; otherwise to write alone.
        alone: Deny signals, and connections to abstract sockets, except to processes that are restricted by
            the same call.

    Attributes:
        readable: The paths that reading was allowed below, without links.
        writable: The paths that writing was allowed below, without links.

    Raises:
        OSError: The system refused.
    """

    def __init__(self, *, reading: bool, alone: bool) -> None:
        self.readable: list[Path] = []
        self.writable: list[Path] = []
        version = confine.landlock_version()
        every = (1 << _RIGHTS.get(version, _MOST_RIGHTS)) - 1
        self._handled = every if reading else every & ~_READ
        scoped = _SCOPE_SIGNALS | _SCOPE_ABSTRACT_SOCKETS if alone else 0
        # Older versions know a shorter structure.
        attributes = struct.pack("QQQ", self._handled, 0, scoped)
        size = 8 if version < _NETWORK_SINCE else 16 if version < _SCOPES_SINCE else 24
        self._descriptor = confine.system_call(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)

    def fileno(self) -> int:
        """Return the descriptor, for `confine.restrict` in another process."""
        return self._descriptor

    def allow_reading(self, path: Path, *, folder: int | None = None) -> None:
        """Allow to read a file, or all that is below a folder.

        Args:
            path: The file or folder, without links.
            folder: A descriptor of the folder that it is in, if that is open.

        Raises:
            OSError: It cannot be opened, is a link, or there can be no rule for it.
        """
        self._allow(path, _READ, folder)
        self.readable.append(path)

    def allow_writing(self, path: Path) -> None:
        """Allow to read and write a file, or all that is below a folder.

        Args:
            path: The file or folder, without links.

        Raises:
            OSError: It cannot be opened, is a link or leads over one, or there can be no rule for it.
        """
        self._allow(path, self._handled, None)
        self.writable.append(path)

    def _allow(self, path: Path, rights: int, folder: int | None) -> None:
        descriptor = (
            folder_tree.open_path(path) if folder is None else folder_tree.open_entry(path.name, folder)
        )
        try:
            is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            allowed = rights & self._handled & (-1 if is_folder else _OF_FILES)
            rule = struct.pack("=Qi", allowed, descriptor)
            confine.system_call(_ADD_RULE, self._descriptor, _RULE_PATH_BENEATH, rule, 0)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        finally:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor; who has applied it stays restricted."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


CACHES = ("XDG_CACHE_HOME", "~/.cache"), ("MPLCONFIGDIR", "~/.config/matplotlib")
"""Folders that libraries share between processes: the variable that names one, and its place otherwise."""

DEVICES = "/dev"
"""What is in it has its own permissions, and /dev/shm is needed for shared memory."""

_EXHAUSTED = {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EINVAL}
"""Why a rule fails although what it is for is there. Every other error is of an entry that has vanished, may
not be entered, or is a mount whose server is gone: without a rule it is denied, and nothing else is."""


@dataclass(frozen=True, slots=True)
class SandboxPolicy:
    """What holds for the kernels of all runs; all paths but those that are hidden are without links.

    Attributes:
        places: Where a kernel that is started before a run has its private working folder, until the run
            moves it to its place; on the file system of the runs' folders.
        hidden: Files and folders that no kernel may read. Of a link it is what the link leads to when a
            kernel is started: Kubernetes renews a secret by changing one.
        writable: Folders that each kernel may read and write, whatever is in them.
        root: The folder that notebooks are in; a notebook works in its own folder below it. None: none.
        caches: Folders that libraries share between processes, which kernels may write as well.
    """

    places: Path
    hidden: tuple[Path, ...]
    writable: tuple[Path, ...] = ()
    root: Path | None = None
    caches: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class KernelRules:
    """What one kernel may reach.

    Attributes:
        ruleset: All of it, for the kernel's process to apply; closed when that has it.
        shared: Paths below which it may write, as all kernels may.
        seen: The folders above what is hidden, and when an entry of each was last added or removed.
    """

    ruleset: Ruleset
    shared: tuple[Path, ...]
    seen: dict[Path, int] = field(default_factory=dict)

    def is_current(self) -> bool:
        """Tell whether a kernel that was started now would see no more than this one.

        The system's folder for temporary files is not asked: it changes all the time.
        """
        return all(_changed(folder) == at for folder, at in self.seen.items())


def rules(confinement: SandboxPolicy, own: Iterable[Path]) -> KernelRules:
    """Return the rules for a kernel that is started now.

    Args:
        confinement: What holds for all.
        own: Folders of this kernel, without links.

    Raises:
        OSError: There can be no rule for something, which the error names.
    """
    opened = _opened(confinement)
    # What the operator opens is open as a whole.
    hidden = [one.resolve() for one in confinement.hidden]
    closed = [one for one in hidden if not any(one.is_relative_to(folder) for folder in opened)]
    above = {folder for one in closed for folder in one.parents}
    # First, so that what is added while they are read is missed there.
    seen = {folder: _changed(folder) for folder in above if folder not in _temporary()}
    shared = (Path(DEVICES), *_there(confinement.writable), *filter(_is_made, confinement.caches))
    ruleset = Ruleset(reading=True, alone=True)
    try:
        for folder in sorted(above):
            _allow_entries(ruleset, folder, above.union(closed))
        for one in opened if closed else [Path("/")]:
            ruleset.allow_reading(one)
        for one in (*shared, *own):
            ruleset.allow_writing(one)
    except BaseException:
        ruleset.close()
        raise
    return KernelRules(ruleset, shared, seen)


def narrowed(shared: Iterable[Path], own: Iterable[Path]) -> Ruleset:
    """Return a ruleset for the main thread of a kernel that was started before its run was known.

    Args:
        shared: What all kernels may write, of the kernel's `KernelRules`.
        own: Folders of this kernel and its run, without links.

    Raises:
        OSError: There can be no rule for something, which the error names.
    """
    ruleset = Ruleset(reading=False, alone=False)
    try:
        for one in (*shared, *own):
            ruleset.allow_writing(one)
    except BaseException:
        ruleset.close()
        raise
    return ruleset


def exposed(confinement: SandboxPolicy) -> list[Path]:
    """Return what should be hidden and is not, for it is in a folder that the operator has opened."""
    opened = _opened(confinement)
    hidden = [one.resolve() for one in confinement.hidden]
    found = [one for one in hidden if any(one.is_relative_to(folder) for folder in opened)]
    return [one for one in found if not any(folder in one.parents for folder in found)]


def missing(confinement: SandboxPolicy) -> list[Path]:
    """Return the writable folders that are not there, and of which no rule is made."""
    return [one for one in confinement.writable if one not in _there(confinement.writable)]


def _opened(confinement: SandboxPolicy) -> list[Path]:
    """Return what the operator has opened, as far as it is there."""
    return _there(one for one in (*confinement.writable, confinement.root) if one)


def _there(folders: Iterable[Path]) -> list[Path]:
    """Return the folders that are there and have not become links: notebooks may write some of them."""
    return [one for one in folders if one.exists() and one.resolve() == one]


def caches() -> tuple[Path, ...]:
    """Return the folders that libraries share between processes, without links."""
    return tuple(
        Path(os.environ.get(variable) or otherwise).expanduser().resolve() for variable, otherwise in CACHES
    )


def _is_made(folder: Path) -> bool:
    """Make a folder, for a confined kernel may not; tell whether it is there, and is no link."""
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return bool(_there([folder]))


def _temporary() -> Sequence[Path]:
    return Path("/tmp"), Path(tempfile.gettempdir()).resolve()  # noqa: S108 - it is asked about, not used


def _changed(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


def _allow_entries(ruleset: Ruleset, folder: Path, but: AbstractSet[Path]) -> None:
    """Allow to read the entries of a folder, but some; a link leads where its target is."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with os.scandir(descriptor) as found:
                entries = [folder / entry.name for entry in found if not entry.is_symlink()]
            for one in entries:
                if one not in but:
                    _allow_entry(ruleset, one, descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # Not there on this machine, or not the kernel's to list either, which has the same user.
        if error.errno in _EXHAUSTED:
            raise


def _allow_entry(ruleset: Ruleset, entry: Path, folder: int) -> None:
    try:
        ruleset.allow_reading(entry, folder=folder)
    except OSError as error:
        if error.errno in _EXHAUSTED:
            raise


WHOLE = 6
"""The version of Landlock since which signals and abstract sockets can be denied (Linux 6.12)."""


class SandboxError(ValueError):
    """The operator requires what this system cannot do."""


@dataclass(frozen=True, slots=True)
class SandboxConfig:
    """How kernels are kept apart from the server and from each other.

    Attributes:
        mode: "auto": as far as the system can; "require": not without all of it; "off": not at all.
        kernel_environment: Names of variables that kernels find beside those that they always may.
        hidden: Files and folders that no kernel may read, beside the state folder and the kernels' sockets.
        writable: Folders that each kernel may write.
        root: The folder that notebooks are in; None: none.
    """

    mode: str = "auto"
    kernel_environment: tuple[str, ...] = ()
    hidden: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()
    root: Path | None = None

    @property
    def is_on(self) -> bool:
        """Whether anything is done."""
        return self.mode != "off"

    def confinement(self, state: Path, sockets: Path) -> SandboxPolicy | None:
        """Return what holds for kernels; None: they cannot be, or shall not be, confined.

        Args:
            state: The folder for history and results.
            sockets: The folder for the kernels' sockets.
        """
        if not self.is_on or not confine.landlock_version():
            return None
        # Resolved once, before any notebook runs: later one may have put a link where it may write.
        writable = tuple(one.resolve() for one in self.writable)
        root = self.root and self.root.resolve()
        places = state.resolve() / "places"
        return SandboxPolicy(places, (state, sockets, *self.hidden), writable, root, caches())

    def protections(self, confinement: SandboxPolicy | None) -> dict[str, object]:
        """Return what is active, for the log.

        Raises:
            SandboxError: All of it is required, and something is missing.
        """
        version = confine.landlock_version() if confinement else 0
        seen = [str(one) for one in exposed(confinement)] if confinement else []
        if self.mode == "require" and (version < WHOLE or seen):
            if seen:
                raise SandboxError(
                    f"--sandbox require cannot hide paths in readable folders: {', '.join(seen)}."
                )
            raise SandboxError(
                f"--sandbox require needs Landlock version {WHOLE} (Linux 6.12); "
                f"this system has version {version}."
            )
        return {
            "mode": self.mode,
            "processes_hidden": self.is_on,
            "landlock": version,
            "files": version > 0,
            "signals": version >= WHOLE,
            "exposed": seen,
        }
