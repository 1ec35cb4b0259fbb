"""Reads and writes objects in cloud storage with fsspec; runs in the helper process only.

Credentials, endpoint and region are the server's: those that the cloud's library finds in the environment,
its files and the machine's roles, and those in fsspec's configuration.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec

from notebook_runner_server.transfer.interface import MissingError, TransferTooLargeError
from notebook_runner_server.transfer.policy import ParsedUri

_DENIED = (401, 403)
# By default s3fs holds ten pieces of 50 MiB in memory, and some versions of adlfs do not overwrite.
_PUT_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"chunksize": 8 * 1024 * 1024, "max_concurrency": 2},
    "abfs": {"overwrite": True},
}


def read(parsed: ParsedUri, limit: int) -> bytes:
    """Return an object.

    Args:
        parsed: Which.
        limit: The most bytes.

    Raises:
        TransferError: It cannot be read.
        Exception: Whatever the cloud's library raises.
    """
    with _translated_errors():
        files = store(parsed.scheme)
        about = files.info(parsed.path)
        if about["type"] != "file":
            raise FileNotFoundError
        if about["size"] > limit:
            raise TransferTooLargeError("the notebook is too large")
        with files.open(parsed.path, "rb", cache_type="none") as file:
            content: bytes = file.read(limit + 1)
    return content


def write(parsed: ParsedUri, notebook: int) -> None:
    """Write an object atomically.

    Raises:
        TransferError: It cannot be written.
        Exception: Whatever the cloud's library raises.
    """
    with _translated_errors():
        store(parsed.scheme).put_file(f"/proc/self/fd/{notebook}", parsed.path, **put_options(parsed.scheme))


def store(scheme: str) -> Any:
    """Return the file system of a scheme."""
    return fsspec.filesystem(scheme)


def put_options(scheme: str) -> dict[str, Any]:
    """Return what `put_file` of a scheme needs to know."""
    return _PUT_OPTIONS.get(scheme, {})


@contextmanager
def _translated_errors() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise MissingError(f"no such bucket or object: {error}"[:300]) from error
    except Exception as error:
        # Each library has its own name for it.
        status = getattr(error, "code", None) or getattr(error, "status_code", None)
        denied = isinstance(error, PermissionError) or status in _DENIED
        if denied or "Credentials" in type(error).__name__:
            raise MissingError(f"no such object, or access denied: {error}"[:300]) from error
        raise
