"""Writes, reads and removes archives, in a process of its own (`run_in_subprocess`)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any, Protocol

from notebook_runner_server.transfer.interface import (
    ArchiveLocation,
    DamagedObjectError,
    MissingError,
    Removal,
    TransferError,
    UnreachableError,
)
from notebook_runner_server.transfer.policy import ParsedUri, archive_location

_COPY_BYTES = 8 * 1024 * 1024
_SHOWN = 300


MARKER = "notebook-runner-history"
"""The name of the marker object of a location."""

_PROBE = "notebook-runner-probe"


class _Store(Protocol):
    """A folder, or a prefix of a bucket."""

    def put(self, name: str, source: str) -> None:
        """Write a file to an object, and make it durable."""

    def opened(self, name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """Open an object to read it."""

    def remove(self, name: str) -> None:
        """Remove an object."""


def check(location: ArchiveLocation, *, is_new: bool) -> None:
    """Check that a location belongs to a history, and that objects can be written, read and removed there.

    Args:
        location: The location.
        is_new: Whether the history has no object yet, so that the location gets its marker if it has none.

    Raises:
        TransferError: That is not so.
    """
    store = _store(location)
    if is_new and not _marker(store):
        _put(store, MARKER, location.history_id.encode())
    _check_marker(store, location)
    _put(store, _PROBE, b"")
    # Another server that starts may have removed it.
    with contextlib.suppress(MissingError), _as_transfer_error():
        store.remove(_PROBE)


def _put(store: _Store, name: str, content: bytes) -> None:
    descriptor = os.memfd_create(name)
    try:
        os.write(descriptor, content)
        with _as_transfer_error():
            store.put(name, f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _marker(store: _Store) -> str:
    """Return the id of the history that a location belongs to; empty: it belongs to none."""
    try:
        with _as_transfer_error(), store.opened(MARKER) as file:
            return file.read(_SHOWN).decode(errors="replace")
    except MissingError:
        return ""


def _check_marker(store: _Store, location: ArchiveLocation) -> None:
    found = _marker(store)
    if not found:
        raise UnreachableError(
            f"it has no {MARKER}, which the location of this history's files has: check that the URI is that "
            "of the other servers, and that the folder is mounted"
        )
    if found != location.history_id:
        raise UnreachableError(
            f"it belongs to the history {found[:50]!r} and not to {location.history_id!r} ({MARKER}): give "
            "each history a location of its own"
        )


def _opened(location: ArchiveLocation) -> _Store:
    """Open the location of a history.

    Raises:
        UnreachableError: It cannot be reached, or is not that of the history.
    """
    store = _store(location)
    _check_marker(store, location)
    return store


def write(location: ArchiveLocation, name: str, source: str, deadline: float) -> None:
    """Write a file to an object.

    Args:
        location: The location.
        name: The object.
        source: The file.
        deadline: When this process ends at the latest, by the monotonic clock.

    Raises:
        TransferError: It could not be written.
    """
    rest = deadline - time.monotonic()
    if rest <= 0:
        raise UnreachableError("no time was left")
    # If the server stops responding, nothing ends this process, and a late object would never be removed.
    signal.setitimer(signal.ITIMER_REAL, rest)
    store = _opened(location)
    with _as_transfer_error():
        store.put(name, source)


def read(location: ArchiveLocation, name: str, target: str, size: int, sha256: str) -> None:
    """Write the content of an object to a file.

    Args:
        location: The location.
        name: The object.
        target: The file.
        size: The size of the object in bytes.
        sha256: Its SHA-256 in hexadecimal.

    Raises:
        TransferError: It could not be read, or is not as it was written.
        OSError: The file cannot be written.
    """
    store = _opened(location)
    found, digest = 0, hashlib.sha256()
    with open(target, "wb", opener=_private) as file:
        for chunk in _chunks(store, name):
            found += len(chunk)
            if found > size:
                break
            digest.update(chunk)
            file.write(chunk)
    if found != size:
        raise DamagedObjectError(
            f"it has {'more than ' * (found > size)}{min(found, size)} bytes instead of {size}"
        )
    if digest.hexdigest() != sha256:
        raise DamagedObjectError(f"its SHA-256 is {digest.hexdigest()} instead of {sha256}")


def _chunks(store: _Store, name: str) -> Iterator[bytes]:
    with _as_transfer_error(), store.opened(name) as file:
        while chunk := file.read(_COPY_BYTES):
            yield chunk


def remove(location: ArchiveLocation, names: Sequence[str], deadline: float) -> Removal:
    """Remove objects, as many as there is time for.

    Args:
        location: The location.
        names: The objects.
        deadline: When to return, by the monotonic clock.

    Raises:
        TransferError: None of them can be removed.
    """
    gone: list[str] = []
    problem, tried = "", 0
    try:
        with _limited(deadline):
            store = _opened(location)
            for name in names:
                tried += 1
                try:
                    with _as_transfer_error():
                        store.remove(name)
                except MissingError:
                    gone.append(name)
                except _LateError:
                    raise
                except TransferError as error:
                    problem = problem or str(error)
                else:
                    gone.append(name)
    except _LateError as error:
        if not tried:
            raise
        problem = problem or str(error)
    return Removal(gone, problem, tried)


class _LateError(UnreachableError):
    """The deadline has passed."""


@contextlib.contextmanager
def _limited(deadline: float) -> Iterator[None]:
    """Raise _LateError once the deadline has passed, also from a call that waits."""

    def end(*_: object) -> None:
        raise _LateError("the time (--uri-timeout) has run out")

    before = signal.signal(signal.SIGALRM, end)
    # Repeated, because a library may swallow the error.
    signal.setitimer(signal.ITIMER_REAL, max(deadline - time.monotonic(), 0.001), 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _store(location: ArchiveLocation) -> _Store:
    parsed = archive_location(location.uri)
    if parsed.scheme != "file":
        return _Bucket(parsed)
    try:
        return _Folder(parsed.path)
    except OSError as error:
        raise UnreachableError(f"the folder cannot be opened: {error}"[:_SHOWN]) from error


class _Folder:
    """A shared folder. Files are written in place, because a file is read only once the history names it."""

    def __init__(self, path: str) -> None:
        # Held open: what is mounted or unmounted there meanwhile does not change the folder.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def put(self, name: str, source: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=self._descriptor)
        with open(descriptor, "wb") as target, open(source, "rb") as file:
            shutil.copyfileobj(file, target, _COPY_BYTES)
            target.flush()
            os.fsync(descriptor)
        os.fsync(self._descriptor)

    def opened(self, name: str) -> IO[bytes]:
        # Not blocking: somebody may have put a pipe there.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return open(os.open(name, flags, dir_fd=self._descriptor), "rb")

    def remove(self, name: str) -> None:
        os.unlink(name, dir_fd=self._descriptor)


class _Bucket:
    """A prefix of a bucket in cloud storage."""

    def __init__(self, parsed: ParsedUri) -> None:
        from notebook_runner_server.transfer import objects  # noqa: PLC0415 - an extra

        self._prefix = parsed.path
        self._store, self._options = objects.store(parsed.scheme), objects.put_options(parsed.scheme)

    def put(self, name: str, source: str) -> None:
        self._store.put_file(source, f"{self._prefix}/{name}", **self._options)

    def opened(self, name: str) -> Any:
        return self._store.open(f"{self._prefix}/{name}", "rb", cache_type="none")

    def remove(self, name: str) -> None:
        self._store.rm_file(f"{self._prefix}/{name}")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


@contextlib.contextmanager
def _as_transfer_error() -> Iterator[None]:
    try:
        yield
    except TransferError:
        raise
    except FileNotFoundError as error:
        raise MissingError(f"no such bucket or object: {error}"[:_SHOWN]) from error
    # The libraries' errors have no common base class.
    except Exception as error:
        raise UnreachableError(f"{type(error).__name__}: {error}"[:_SHOWN]) from error
