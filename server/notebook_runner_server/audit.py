"""The audit log: who did what to which run, and who was refused; in a file, or on the server's log.

A line is an object of JSON, whose texts are escaped to ASCII: nothing that a caller sends can start a line of
its own. It never has a token, a parameter or anything else of a notebook.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import threading
from collections.abc import Collection, Mapping
from contextvars import Context
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

ON_LOG = "log"
OFF = "off"

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_logger = logging.getLogger(__name__)
# The lines are not messages of some severity: --log-level does not remove them.
_lines = logging.getLogger(f"{__name__}.lines")
_lines.setLevel(logging.INFO)


@dataclass(frozen=True)
class AccessChange:
    """What changed in a file that grants access.

    Attributes:
        added: The names that are new in it.
        removed: The names that are no longer in it.
        changed: The names whose credentials or scopes changed.
    """

    added: Collection[str] = ()
    removed: Collection[str] = ()
    changed: Collection[str] = ()

    @property
    def is_any(self) -> bool:
        """Whether anything changed; comments of a file do not count."""
        return bool(self.added or self.removed or self.changed)

    @classmethod
    def between(cls, before: Mapping[str, object], after: Mapping[str, object]) -> AccessChange:
        """Compare what names had with what they have."""
        common = before.keys() & after.keys()
        return cls(
            sorted(after.keys() - before.keys()),
            sorted(before.keys() - after.keys()),
            sorted(name for name in common if before[name] != after[name]),
        )


class AuditLog:
    """Writes the lines; may be used from any thread.

    A line that cannot be written to the file goes to the server's log instead, and the calls continue: with a
    full disk, runs can still be killed and deleted.

    Args:
        target: `log`, `off`, or the path of the file, which is created when it does not exist.

    Attributes:
        failures: How many lines could not be written to the file.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, target: str) -> None:
        path = file_path(target)
        self.is_on = target != OFF
        self.failures = 0
        self._file = None if path is None else _AppendedFile(path)
        self._is_failing = False
        self._lock = threading.Lock()

    def write(self, action: str, **fields: object) -> None:
        """Write a line.

        Args:
            action: What was done, or attempted.
            fields: The rest of the line.
        """
        if not self.is_on:
            return
        if self._file is None:
            _log_line(action, fields)
            return
        time = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        line = json.dumps({"time": time, "action": action, **fields}) + "\n"
        with self._lock:
            try:
                self._file.append(line.encode())
            except OSError as error:
                self._has_failed(error)
                _log_line(action, fields)
            else:
                self._has_succeeded()

    def access_changed(self, action: str, change: AccessChange) -> None:
        """Write a line about a file that grants access."""
        self.write(action, added=[*change.added], removed=[*change.removed], changed=[*change.changed])

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _has_failed(self, error: OSError) -> None:
        self.failures += 1
        if not self._is_failing:
            self._is_failing = True
            about = {"why": str(error), "action": "lines go to this log until the file can be written"}
            _logger.error("audit_not_written", extra=about)

    def _has_succeeded(self) -> None:
        if self._is_failing:
            self._is_failing = False
            _logger.info("audit_written_again", extra={"failures": self.failures})


def _log_line(action: str, fields: Mapping[str, object]) -> None:
    # In an empty context: a line has the ids of a call only if it is about that call.
    Context().run(_lines.info, "audit", extra={"action": action, **fields})


class _AppendedFile:
    """A file that lines are appended to, each with one write, also after the file was renamed or removed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._opened = (0, 0)
        self._is_torn = False
        self._open()

    def append(self, line: bytes) -> None:
        """Append a line.

        Raises:
            OSError: It could not be written, or only in part.
        """
        if not self._is_current():
            self._open()
        # After a part of a line, the next one starts on a line of its own.
        line = b"\n" * self._is_torn + line
        written = os.write(self._descriptor, line)
        self._is_torn = written < len(line)
        if self._is_torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _is_current(self) -> bool:
        if self._descriptor < 0:
            return False
        try:
            status = self._path.lstat()
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == self._opened

    def _open(self) -> None:
        self.close()
        descriptor = os.open(self._path, _FLAGS | os.O_CREAT, 0o600)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "not a regular file", str(self._path))
        self._descriptor, self._is_torn = descriptor, False
        self._opened = status.st_dev, status.st_ino


def file_path(target: str) -> Path | None:
    """Return the path of the file; None: the lines go elsewhere, or nowhere."""
    return None if target in (ON_LOG, OFF) else Path(target).expanduser().absolute()


def check_path(path: Path) -> None:
    """Check that a file can be used, and change nothing.

    Raises:
        OSError: It cannot be written.
        ValueError: It is no regular file, or other users can write to it.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise ValueError(f"the folder {path.parent} does not exist. Create it.") from None
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise ValueError(
                f"the server's user cannot create files in {path.parent}. Give it access."
            ) from None
        return
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it must be a regular file, and no link.")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError(f"other users can write to it. Run: chmod go-w {path}")
    os.close(os.open(path, _FLAGS))
