"""Files that say who may call: read again when they change, and never half."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

RECHECK_SECONDS = 1.0
"""Maximum age of what `recent` returns."""

_MAX_FILE_BYTES = 1024 * 1024

ContentT = TypeVar("ContentT")


class AccessFileError(ValueError):
    """The file is invalid; the message names the file, the line and the error."""


class AccessFile(Generic[ContentT]):
    """The content of a file that grants access.

    If the file becomes unreadable or invalid, the previous content stays in use.

    Args:
        path: The file.
        parse: Parses the file's bytes; its second argument is the file's name in messages.
        on_reload: Handles the previous content and the new one.
        on_error: Handles the reason why a file cannot be used, once for each reason.
        is_secret: Whether other users must not read the file.

    Raises:
        OSError: The file cannot be read.
        AccessFileError: The file is invalid.
    """

    def __init__(
        self,
        path: Path,
        parse: Callable[[bytes, str], ContentT],
        on_reload: Callable[[ContentT, ContentT], object],
        on_error: Callable[[str], object],
        *,
        is_secret: bool = False,
    ) -> None:
        self._path, self._parse = path, parse
        self._on_reload, self._on_error = on_reload, on_error
        self._is_secret = is_secret
        self._seen = read(path, is_secret=is_secret)
        self._content = parse(self._seen, str(path))
        self._checked = time.monotonic()
        self._complaint = ""

    def latest(self) -> ContentT:
        """Return the content, after a look at the file."""
        self._reload()
        return self._content

    def recent(self) -> ContentT:
        """Return the content, which is at most `RECHECK_SECONDS` old."""
        if time.monotonic() - self._checked > RECHECK_SECONDS:
            self._reload()
        return self._content

    def _reload(self) -> None:
        self._checked = time.monotonic()
        try:
            content = read(self._path, is_secret=self._is_secret)
            if content == self._seen:
                return
            parsed = self._parse(content, str(self._path))
        except (OSError, AccessFileError) as error:
            self._complain(str(error))
            return
        self._seen, self._complaint = content, ""
        before, self._content = self._content, parsed
        self._on_reload(before, parsed)

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:
            self._complaint = complaint
            self._on_error(complaint)


def read(path: Path, *, is_secret: bool = False) -> bytes:
    """Read a file that grants access.

    Args:
        path: The file.
        is_secret: Whether other users must not read it.

    Raises:
        OSError: The file cannot be read.
        AccessFileError: The file is too large, or other users can write to it or must not read it and can.
    """
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise AccessFileError(
                f"{path}: other users can write to it and give access. Run: chmod go-w {path}"
            )
        # A group may read it: that of a pod reads the secrets that Kubernetes mounts.
        if is_secret and mode & stat.S_IROTH:
            raise AccessFileError(f"{path}: every user of this machine can read it. Run: chmod o-r {path}")
        content = file.read(_MAX_FILE_BYTES + 1)
    if len(content) > _MAX_FILE_BYTES:
        raise AccessFileError(f"{path}: larger than {_MAX_FILE_BYTES} bytes.")
    return content
