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
_BYTES = 32


def request_key(folder: Path) -> bytes:
    """Return the key of a state folder, made where it has none; blocks.

    Raises:
        OSError: It cannot be read or written.
    """
    path = folder / FILE
    with contextlib.suppress(FileNotFoundError):
        # One that somebody has cut short could be guessed.
        if len(key := path.read_bytes()) == _BYTES:
            return key
    key = secrets.token_bytes(_BYTES)
    draft = folder / f"{FILE}.new"
    with open(draft, "wb", opener=private) as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(folder)
    return key
