"""Finds processes that wait for input from a terminal which nobody types at."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterable
from pathlib import Path

# Linux numbers system calls differently for each architecture. The first argument of `read` is the
# descriptor; that of `select` and `pselect6`, which readline calls first, is the highest descriptor plus one.
_READ = {"x86_64": {"0"}}.get(platform.machine(), {"63"})
_SELECT = {"x86_64": {"23", "270"}}.get(platform.machine(), {"72"})
_TERMINALS = ("/dev/pts/", "/dev/tty", "/dev/console")


def reader_of_terminal(pids: Iterable[int]) -> str:
    """Return the name of a process that waits for a terminal's input; empty: none is found."""
    for pid in pids:
        # A process vanishes between any two looks at it, and some systems hide what it waits for.
        with contextlib.suppress(OSError, ValueError):
            number, argument, *_ = Path(f"/proc/{pid}/syscall").read_text(encoding="ascii").split()
            if number not in _READ | _SELECT:
                continue
            descriptor = int(argument, 16) - (number in _SELECT)
            if os.readlink(f"/proc/{pid}/fd/{descriptor}").startswith(_TERMINALS):
                return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    return ""
