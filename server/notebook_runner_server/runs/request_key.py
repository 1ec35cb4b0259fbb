"""The key of the digests that the history keeps of requests.

A request may carry secrets, some of which can be guessed. So its digest, which stays for as long as the
history has the run, is of no use to who has the history and not this file.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from notebook_runner_server.runs.folder import private, sync_folder

FILE = "request-key"
KEY_BYTES = 32


def is_damaged(folder: Path) -> bool:
    """Tell whether a key has not the length that it was made with: one that is cut short can be guessed."""
    path = folder / FILE
    return path.is_file() and path.stat().st_size != KEY_BYTES


def request_key(folder: Path) -> bytes:
    """Return the key of a state folder, made where it has none; blocks.

    Raises:
        OSError: It cannot be read or written.
    """
    path = folder / FILE
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    key = secrets.token_bytes(KEY_BYTES)
    draft = folder / f"{FILE}.new"
    with open(draft, "wb", opener=private) as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(folder)
    return key
