"""What a process does so that others cannot look into it, and, as a kernel, before any code of a notebook.

Loaded by programs that the interpreter of a kernelspec executes, which need not have this package: nothing
but the standard library is imported here, and ipykernel's only in functions for its kernels.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct
import sys
from typing import Any

# From linux/prctl.h and linux/landlock.h; the system calls have these numbers on every architecture of today.
PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 4, 38
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
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

_libc = ctypes.CDLL(None, use_errno=True)


def hide() -> None:
    """Let no other process of this user read this one's environment, memory and descriptors."""
    _prctl(PR_SET_DUMPABLE, 0)


def show() -> None:
    """Undo `hide`, which a fork inherits: a kernel reads what /proc tells of itself."""
    _prctl(PR_SET_DUMPABLE, 1)


def landlock_version() -> int:
    """Return which version of Landlock the system has; zero: none, or it may not be used."""
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _CREATE_RULESET_VERSION)))


def restrict(rules: dict[str, Any]) -> None:
    """Take rights from this thread, and from all threads and processes that it starts, for ever.

    Args:
        rules: `read` and `write`: the paths below which that is allowed, `write` including to read; without
            `read`, reading stays as it is. `alone`: it sends signals, and connects to abstract sockets, only
            of processes that are restricted by the same call.

    Raises:
        OSError: The system refused.
    """
    version = landlock_version()
    every = (1 << _RIGHTS.get(version, _MOST_RIGHTS)) - 1
    handled = every if "read" in rules else every & ~_READ
    scoped = _SCOPE_SIGNALS | _SCOPE_ABSTRACT_SOCKETS if rules.get("alone") else 0
    # Older versions know a shorter structure.
    attributes = struct.pack("QQQ", handled, 0, scoped)
    size = 8 if version < _NETWORK_SINCE else 16 if version < _SCOPES_SINCE else 24
    ruleset = _call(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    try:
        for path in rules.get("read", ()):
            _allow(ruleset, path, _READ & handled)
        for path in rules["write"]:
            _allow(ruleset, path, handled)
        _prctl(PR_SET_NO_NEW_PRIVS, 1)
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    # What has vanished meanwhile needs no rule, and what only others may open neither.
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            allowed = rights if stat.S_ISDIR(os.fstat(descriptor).st_mode) else rights & _OF_FILES
            _call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", allowed, descriptor), 0)
        finally:
            os.close(descriptor)


def _call(number: int, *arguments: Any) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0))) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def make_profile() -> None:
    """Make IPython's profile, if there is none, for a confined kernel may not."""
    from IPython.core.profiledir import ProfileDir  # noqa: PLC0415 - see the module's docstring

    folder = os.environ.get("IPYTHONDIR") or os.path.expanduser("~/.ipython")
    # Where nobody can write, IPython sees to itself.
    with contextlib.suppress(Exception):
        os.makedirs(folder, exist_ok=True)
        profile = ProfileDir.create_profile_dir_by_name(folder)
        os.makedirs(os.path.join(profile.location, "db"), exist_ok=True)


def answer_only(app: Any, pid: int) -> None:
    """Have ipykernel's sockets accept no connection but a process's; others could listen to its output."""
    import zmq  # noqa: PLC0415 - see the module's docstring

    bind = app._bind_socket  # noqa: SLF001 - there is no other way

    def bind_for_one(one: Any, port: int) -> Any:
        one.setsockopt(zmq.IPC_FILTER_PID, pid)
        return bind(one, port)

    app._bind_socket = bind_for_one  # noqa: SLF001 - as above


def forget_folder() -> None:
    """Remove this folder from where modules are found: they are not the kernel's."""
    sys.path[:] = [one for one in sys.path if one != os.path.dirname(__file__)]
    del sys.modules[__name__]
