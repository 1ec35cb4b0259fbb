"""Finds processes that wait for input from a terminal which nobody types at."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterable
from pathlib import Path

# Linux numbers the system call differently for each architecture.
_READ = {"x86_64": "0", "aarch64": "63", "riscv64": "63", "loongarch64": "63"}.get(platform.machine(), "3")
_TERMINALS = ("/dev/pts/", "/dev/tty", "/dev/console")


def reader_of_terminal(pids: Iterable[int]) -> str:
    """Return the name of a process that waits in `read` on a terminal; empty: none is found."""
    for pid in pids:
        # A process vanishes between any two looks at it, and some systems hide what it waits for.
        with contextlib.suppress(OSError, ValueError):
            number, descriptor, *_ = Path(f"/proc/{pid}/syscall").read_text(encoding="ascii").split()
            if number == _READ and os.readlink(f"/proc/{pid}/fd/{int(descriptor, 16)}").startswith(
                _TERMINALS
            ):
                return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    return ""
