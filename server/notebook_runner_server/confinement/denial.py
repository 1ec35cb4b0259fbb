"""Explains errors that the sandbox causes."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

PATH_NOTE = (
    "The server's sandbox (--sandbox) denies {!r} to notebooks. A run may write to its own folder "
    "(NOTEBOOK_RUNNER_RUN_DIR) and to TMPDIR; the server's operator can open other folders with "
    "--writable-folders."
)
SIGNAL_NOTE = (
    "The server's sandbox (--sandbox) may be the reason: it denies signals to processes outside the run, and "
    "new privileges (sudo)."
)

# The text is from a notebook, and the worker must not spend much time on it.
_MOST_LINES, _MOST_CHARACTERS, _MOST_PATHS = 1000, 4096, 20
_DENIED = re.compile(r"Permission denied|\[Errno 13\]|\bEACCES\b")
_NOT_PERMITTED = re.compile(r"PermissionError: \[Errno 1\] Operation not permitted\s*$")
# In quotes, or from a slash on.
_PATH = re.compile(r"""'([^']+)'|"([^"]+)"|(/[^\s'":(),]+)""")


def explain(
    text: str, folder: str, read: Sequence[Path], write: Sequence[Path], hidden: Sequence[Path] = ()
) -> str:
    """Return an explanation of an error; empty: the sandbox did not cause it.

    Args:
        text: The error with its traceback, without terminal colours.
        folder: The folder of relative paths.
        read: Folders that the sandbox allows to read.
        write: Folders that the sandbox allows to write as well.
        hidden: Paths that are not inspected: the explanation must not depend on what is there.
    """
    lines = [line[:_MOST_CHARACTERS] for line in text.splitlines()[-_MOST_LINES:]]
    for path in itertools.islice(_paths(lines), _MOST_PATHS):
        # Some text cannot be a path: it has a null byte, or is too long.
        with contextlib.suppress(OSError, ValueError):
            if _is_denied(os.path.join(folder, path), read, write, hidden):
                return PATH_NOTE.format(path)
    return SIGNAL_NOTE if any(map(_NOT_PERMITTED.search, lines)) else ""


def _paths(lines: Iterable[str]) -> Iterator[str]:
    for line in filter(_DENIED.search, lines):
        for found in _PATH.finditer(line):
            yield next(filter(None, found.groups()))


def _is_denied(path: str, read: Sequence[Path], write: Sequence[Path], hidden: Sequence[Path]) -> bool:
    """Return whether the sandbox denied access: this process, with the same user, has it."""
    real = Path(os.path.realpath(path))
    if _is_below(real, write):
        return False
    if _is_below(real, hidden):
        return True
    existing = real if real.exists() else real.parent
    return os.access(existing, os.W_OK) or (os.access(real, os.R_OK) and not _is_below(real, read))


def _is_below(path: Path, folders: Sequence[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)
