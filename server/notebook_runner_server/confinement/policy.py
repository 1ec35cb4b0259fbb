"""Which files and folders a kernel may read and write: settings, policy, and rulesets of Landlock.

Landlock allows and cannot deny: what is below an allowed folder is allowed. To hide a folder, every entry of
every folder above it is allowed, except the one that leads to it. So what is made later in one of the folders
above, a kernel that was started before does not see: `KernelRules.is_current` tells.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
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

# Number of file rights of each version; rights that are not handled are allowed.
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_MOST_RIGHTS = 16
_SCOPES_SINCE = 6
_NETWORK_SINCE = 4


class Ruleset:
    """A ruleset of Landlock: created here, and applied by the kernel's process, which gets its descriptor.

    A rule is for a file or folder rather than its name. So each is opened here, where a missing one is an
    error, and keeps its rule when it is renamed. Links are not followed: a notebook may have created them.
    A file that is removed keeps its disk space while a process has a rule for it.

    Args:
        reading: Restrict reading as well as writing.
        alone: Deny signals, and connections to abstract sockets, except to processes that are restricted by
            the same call.

    Attributes:
        readable: The paths that may be read, without links.
        writable: The paths that may be written, without links.
        files: The regular files among both, each with its device and inode.

    Raises:
        OSError: The system refused.
    """

    def __init__(self, *, reading: bool, alone: bool) -> None:
        self.readable: list[Path] = []
        self.writable: list[Path] = []
        self.files: dict[Path, tuple[int, int]] = {}
        version = confine.landlock_version()
        every = (1 << _RIGHTS.get(version, _MOST_RIGHTS)) - 1
        self._handled = every if reading else every & ~_READ
        scoped = _SCOPE_SIGNALS | _SCOPE_ABSTRACT_SOCKETS if alone else 0
        # Older versions have a shorter structure.
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
            about = os.fstat(descriptor)
            allowed = rights & self._handled & (-1 if stat.S_ISDIR(about.st_mode) else _OF_FILES)
            rule = struct.pack("=Qi", allowed, descriptor)
            confine.system_call(_ADD_RULE, self._descriptor, _RULE_PATH_BENEATH, rule, 0)
            if stat.S_ISREG(about.st_mode):
                self.files[path] = about.st_dev, about.st_ino
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        finally:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor; processes that have applied it stay restricted."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


CACHES = ("XDG_CACHE_HOME", "~/.cache"), ("MPLCONFIGDIR", "~/.config/matplotlib")
"""Folders that libraries share between processes: the variable that names one, and its default."""

DEVICES = "/dev"
"""Devices have their own permissions, and /dev/shm is needed for shared memory."""

_EXHAUSTED = {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EINVAL}
"""Errors of a rule whose entry exists. Any other error means that the entry has vanished, may not be entered,
or is a mount whose server is gone: without a rule, access to it is denied, and to nothing else."""


@dataclass(frozen=True, slots=True)
class SandboxPolicy:
    """The rules for the kernels of all runs; all paths except the hidden ones are without links.

    Attributes:
        staging_folder: The folder of the staging folders of warm kernels, on the file system of the run
            folders.
        hidden: Files and folders that no kernel may read. Links are followed when a kernel is started:
            Kubernetes renews a secret by changing one.
        writable: Folders that each kernel may read and write, whatever they contain.
        root: The notebook root; a notebook works in its own folder below it. None: there is no root.
        caches: Folders that libraries share between processes, which kernels may write as well.
        logs: Files that no kernel may read, nor what they were renamed to (`_rotated`).
    """

    staging_folder: Path
    hidden: tuple[Path, ...]
    writable: tuple[Path, ...] = ()
    root: Path | None = None
    caches: tuple[Path, ...] = ()
    logs: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class KernelRules:
    """The rules of one kernel.

    Attributes:
        ruleset: The ruleset for the kernel's process to apply; closed when the process has it.
        shared: Folders that all kernels may write.
        seen: The folders above hidden paths, with the time of their last change.
    """

    ruleset: Ruleset
    shared: tuple[Path, ...]
    seen: dict[Path, int] = field(default_factory=dict)

    def is_current(self) -> bool:
        """Return whether a kernel that was started now could read no more than this one.

        The folder for temporary files is ignored, because it changes all the time.
        """
        return all(_modified(folder) == at for folder, at in self.seen.items())

    def keeps_removed_file(self) -> bool:
        """Return whether a file with a rule was removed: the kernel keeps its disk space."""
        return any(_is_removed(path, identity) for path, identity in self.ruleset.files.items())


def rules(policy: SandboxPolicy, own: Iterable[Path]) -> KernelRules:
    """Return the rules for a kernel that is started now.

    Args:
        policy: The policy for all kernels.
        own: Folders of this kernel, without links.

    Raises:
        OSError: There can be no rule for a path, which the error names.
    """
    opened = _opened(policy)
    # The folders that the operator opens are open as a whole.
    hidden = _hidden(policy)
    closed = [one for one in hidden if not any(one.is_relative_to(folder) for folder in opened)]
    above = {folder for one in closed for folder in one.parents}
    # First, so that a change while the folders are read is noticed later.
    seen = {folder: _modified(folder) for folder in above if folder not in _temporary()}
    shared = (Path(DEVICES), *_existing(policy.writable), *filter(_create, policy.caches))
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
    """Return a ruleset for the main thread of a warm kernel that is assigned to a run.

    Args:
        shared: Folders that all kernels may write (`KernelRules.shared`).
        own: Folders of this kernel and its run, without links.

    Raises:
        OSError: There can be no rule for a path, which the error names.
    """
    ruleset = Ruleset(reading=False, alone=False)
    try:
        for one in (*shared, *own):
            ruleset.allow_writing(one)
    except BaseException:
        ruleset.close()
        raise
    return ruleset


def exposed(policy: SandboxPolicy) -> list[Path]:
    """Return the hidden paths that kernels can read, because the operator opened a folder above."""
    opened = _opened(policy)
    hidden = _hidden(policy)
    found = [one for one in hidden if any(one.is_relative_to(folder) for folder in opened)]
    return [one for one in found if not any(folder in one.parents for folder in found)]


def missing(policy: SandboxPolicy) -> list[Path]:
    """Return the writable folders that do not exist, for which there is no rule."""
    return [one for one in policy.writable if one not in _existing(policy.writable)]


def _hidden(policy: SandboxPolicy) -> list[Path]:
    """Return the files and folders that no kernel may read now, without links."""
    rotated = [found for one in policy.logs for found in _rotated(one)]
    return [one.resolve() for one in (*policy.hidden, *policy.logs, *rotated)]


def _rotated(log: Path) -> Iterable[Path]:
    """Return the files that a log was renamed to: their names begin with its own, as in `audit.log.1`."""
    return log.parent.glob(f"{glob.escape(log.name)}[.-]*")


def _opened(policy: SandboxPolicy) -> list[Path]:
    """Return the existing folders that the operator opened."""
    return _existing(one for one in (*policy.writable, policy.root) if one)


def _existing(folders: Iterable[Path]) -> list[Path]:
    """Return the folders that exist and are no links, which a notebook may have put there."""
    return [one for one in folders if one.exists() and one.resolve() == one]


def caches() -> tuple[Path, ...]:
    """Return the folders that libraries share between processes, without links."""
    return tuple(
        Path(os.environ.get(variable) or otherwise).expanduser().resolve() for variable, otherwise in CACHES
    )


def _create(folder: Path) -> bool:
    """Create a folder, which a confined kernel may not; return whether it exists and is no link."""
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return bool(_existing([folder]))


def _temporary() -> Sequence[Path]:
    return Path("/tmp"), Path(tempfile.gettempdir()).resolve()  # noqa: S108 - only compared


def _modified(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


def _is_removed(path: Path, identity: tuple[int, int]) -> bool:
    try:
        about = path.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        # Nothing is known about it.
        return False
    return (about.st_dev, about.st_ino) != identity


def _allow_entries(ruleset: Ruleset, folder: Path, but: AbstractSet[Path]) -> None:
    """Allow to read the entries of a folder, except some; links need no rule."""
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
        # Missing on this machine, or not readable for the kernel either, which has the same user.
        if error.errno in _EXHAUSTED:
            raise


def _allow_entry(ruleset: Ruleset, entry: Path, folder: int) -> None:
    try:
        ruleset.allow_reading(entry, folder=folder)
    except OSError as error:
        if error.errno in _EXHAUSTED:
            raise


WHOLE = 6
"""The first version of Landlock that can deny signals and abstract sockets (Linux 6.12)."""


class SandboxError(ValueError):
    """The required sandbox is not available."""


@dataclass(frozen=True, slots=True)
class SandboxConfig:
    """The settings of the sandbox.

    Attributes:
        mode: "auto": what the system supports; "require": all of it or an error; "off": nothing.
        kernel_environment: Names of variables to pass to kernels in addition to the usual ones.
        hidden: Files and folders that no kernel may read, besides the state folder and kernel sockets.
        logs: Files that no kernel may read, nor what they were renamed to.
        writable: Folders that each kernel may write.
        root: The notebook root; None: there is no root.
    """

    mode: str = "auto"
    kernel_environment: tuple[str, ...] = ()
    hidden: tuple[Path, ...] = ()
    logs: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()
    root: Path | None = None

    @property
    def is_on(self) -> bool:
        """Whether the sandbox is on."""
        return self.mode != "off"

    def policy(self, state: Path, sockets: Path) -> SandboxPolicy | None:
        """Return the policy for kernels; None: the sandbox is off, or not supported.

        Args:
            state: The state folder.
            sockets: The folder for kernel sockets.
        """
        if not self.is_on or not confine.landlock_version():
            return None
        # Resolved once, before any notebook runs, which may replace a folder by a link.
        writable = tuple(one.resolve() for one in self.writable)
        root = self.root and self.root.resolve()
        staging_folder = state.resolve() / "places"
        return SandboxPolicy(
            staging_folder, (state, sockets, *self.hidden), writable, root, caches(), self.logs
        )

    def protections(self, policy: SandboxPolicy | None) -> dict[str, object]:
        """Return the active protections, for the log.

        Raises:
            SandboxError: A required protection is not available.
        """
        version = confine.landlock_version() if policy else 0
        seen = [str(one) for one in exposed(policy)] if policy else []
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
