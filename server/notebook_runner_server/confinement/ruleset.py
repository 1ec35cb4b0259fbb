"""A ruleset of Landlock: made here, and applied by the kernel's own process, which gets its descriptor.

A rule is for a file or folder and not for its name. So each is opened here, where a missing one is an error,
and what is renamed afterwards keeps its rule. No link is followed: a notebook could have put it there.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
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
