"""What a process does to itself by prctl and Landlock, before it executes any code of a notebook.

Programs load it that the interpreter of a kernelspec executes, which need not have this package: only the
standard library is imported here, and ipykernel's dependencies in functions for its kernels.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

# From linux/prctl.h and linux/landlock.h; the system calls have these numbers on every architecture of today.
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
_SIGKILL = 9  # `signal` takes some milliseconds to import, in each kernel
_CREATE_RULESET, _RESTRICT_SELF = 444, 446
_CREATE_RULESET_VERSION = 1

_libc = ctypes.CDLL(None, use_errno=True)


def set_dumpable(dumpable: bool) -> None:
    """Set whether other processes of this user may read this one's environment, memory and descriptors.

    Forks inherit it; an executed program is dumpable again.
    """
    _prctl(PR_SET_DUMPABLE, int(dumpable))


def become_subreaper() -> None:
    """Have orphaned descendants handed to this process.

    Raises:
        OSError: The system refused.
    """
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """End this process with SIGKILL when the thread that started it ends."""
    _prctl(PR_SET_PDEATHSIG, _SIGKILL)


def landlock_version() -> int:
    """Return the system's version of Landlock; zero: not available."""
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _CREATE_RULESET_VERSION)))


def restrict(ruleset: int) -> None:
    """Restrict this thread, and all threads and processes that it starts, irrevocably.

    Args:
        ruleset: The descriptor of a ruleset (`policy.py`), which is closed.

    Raises:
        OSError: The system refused.
    """
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    system_call(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def system_call(number: int, *arguments: Any) -> int:
    """Call the system.

    Raises:
        OSError: It refused.
    """
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0))) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def restrict_peer_pid(app: Any, pid: int) -> None:
    """Have ipykernel's sockets accept connections only from one process; others could read its output."""
    import zmq  # noqa: PLC0415 - see the module's docstring

    bind = app._bind_socket  # noqa: SLF001 - there is no other way

    def bind_for_one(one: Any, port: int) -> Any:
        one.setsockopt(zmq.IPC_FILTER_PID, pid)
        return bind(one, port)

    app._bind_socket = bind_for_one  # noqa: SLF001 - as above


def remove_from_sys_path() -> None:
    """Remove this folder from the module search path, so that kernels do not import from it."""
    sys.path[:] = [one for one in sys.path if one != os.path.dirname(__file__)]
    del sys.modules[__name__]
