"""Writes, reads and removes archives, in a process of its own (`run_in_subprocess`)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from notebook_runner_server.transfer.interface import (
    DamagedObjectError,
    MissingError,
    Removal,
    TransferError,
    UnreachableError,
)
from notebook_runner_server.transfer.policy import ParsedUri, parse

_COPY_BYTES = 8 * 1024 * 1024
_SHOWN = 300


class _Object(Protocol):
    """An object in a store, or a file in a folder."""

    def put(self, source: str) -> None:
        """Write a file to it, and make it durable."""

    def opened(self) -> contextlib.AbstractContextManager[IO[bytes]]:
        """Open it to read it."""

    def remove(self) -> None:
        """Remove it."""


def check(uri: str) -> None:
    """Write, read and remove an object.

    Raises:
        TransferError: That is not possible.
    """
    content = os.urandom(16)
    descriptor = os.memfd_create("probe")
    os.write(descriptor, content)
    probe = _object(uri)
    with _as_transfer_error():
        probe.put(f"/proc/self/fd/{descriptor}")
        try:
            with probe.opened() as file:
                found = file.read(len(content) + 1)
        finally:
            probe.remove()
    if found != content:
        raise DamagedObjectError("what was written there is not what is read")


def write(uri: str, source: str, deadline: float) -> None:
    """Write a file to an object.

    Args:
        uri: The object.
        source: The file.
        deadline: When this process ends at the latest, by the monotonic clock.

    Raises:
        TransferError: It could not be written.
    """
    rest = deadline - time.monotonic()
    if rest <= 0:
        raise UnreachableError("no time was left")
    # The server may stand still, and what nobody waits for must not appear after that.
    signal.setitimer(signal.ITIMER_REAL, rest)
    with _as_transfer_error():
        _object(uri).put(source)


def read(uri: str, target: str, size: int, sha256: str) -> None:
    """Write the content of an object to a file.

    Args:
        uri: The object.
        target: The file.
        size: The size of the object in bytes.
        sha256: Its SHA-256 in hexadecimal.

    Raises:
        TransferError: It could not be read, or is not as it was written.
        OSError: The file cannot be written.
    """
    found, digest = 0, hashlib.sha256()
    with open(target, "wb", opener=_private) as file:
        for chunk in _chunks(_object(uri)):
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


def _chunks(one: _Object) -> Iterator[bytes]:
    with _as_transfer_error(), one.opened() as file:
        while chunk := file.read(_COPY_BYTES):
            yield chunk


def remove(uri: str, names: Sequence[str]) -> Removal:
    """Remove objects below a URI.

    Raises:
        TransferError: None of them can be removed.
    """
    gone: list[str] = []
    problem = ""
    for name in names:
        try:
            with _as_transfer_error():
                _object(f"{uri}/{name}").remove()
        except MissingError:
            gone.append(name)
        except TransferError as error:
            problem = problem or str(error)
        else:
            gone.append(name)
    return Removal(gone, problem)


def _object(uri: str) -> _Object:
    parsed = parse(uri)
    return _File(parsed.path) if parsed.scheme == "file" else _CloudObject(parsed)


class _File:
    """A file in a shared folder. It needs no draft: until the history names it, nobody reads it."""

    def __init__(self, path: str) -> None:
        self._path = path

    def put(self, source: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)
        with open(descriptor, "wb") as target, open(source, "rb") as file:
            shutil.copyfileobj(file, target, _COPY_BYTES)
            target.flush()
            os.fsync(descriptor)
        folder = os.open(os.path.dirname(self._path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        os.fsync(folder)
        os.close(folder)

    def opened(self) -> IO[bytes]:
        # Not blocking: somebody may have put a pipe there.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return open(os.open(self._path, flags), "rb")

    def remove(self) -> None:
        Path(self._path).unlink()


class _CloudObject:
    """An object in cloud storage."""

    def __init__(self, parsed: ParsedUri) -> None:
        from notebook_runner_server.transfer import objects  # noqa: PLC0415 - an extra

        self._parsed = parsed
        self._store, self._options = objects.store(parsed.scheme), objects.put_options(parsed.scheme)

    def put(self, source: str) -> None:
        self._store.put_file(source, self._parsed.path, **self._options)

    def opened(self) -> Any:
        return self._store.open(self._parsed.path, "rb", cache_type="none")

    def remove(self) -> None:
        self._store.rm_file(self._parsed.path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


@contextlib.contextmanager
def _as_transfer_error() -> Iterator[None]:
    try:
        yield
    except TransferError:
        raise
    except FileNotFoundError as error:
        raise MissingError(f"no such bucket, folder or object: {error}"[:_SHOWN]) from error
    # The libraries' errors have no common base class.
    except Exception as error:
        raise UnreachableError(f"{type(error).__name__}: {error}"[:_SHOWN]) from error
