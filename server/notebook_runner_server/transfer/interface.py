"""The interfaces for reading and writing notebooks and archives by URI, and their errors.

::

    TransferError
    ├── RefusedError      the URI is malformed, or the operator does not allow it
    ├── MissingError      the notebook does not exist, or the server has no access to it
    ├── TransferTooLargeError  the notebook is larger than the server allows
    ├── UnreachableError  the service does not respond, or cannot respond now
    ├── DamagedObjectError  an object is not as it was written
    └── StoppedError      the server is shutting down, or the run was stopped

Each message is a clause without a full stop, and contains no secrets.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class TransferError(Exception):
    """A notebook could not be read or written."""


class RefusedError(TransferError):
    """The URI is malformed, or the operator does not allow it."""


class MissingError(TransferError):
    """The notebook does not exist, or the server has no access to it; services do not distinguish the two."""


class TransferTooLargeError(TransferError):
    """The notebook is larger than the server allows."""


class UnreachableError(TransferError):
    """The service does not respond, or cannot respond now; a later attempt may succeed."""


class DamagedObjectError(TransferError):
    """An object is not as it was written."""


class StoppedError(TransferError):
    """The server is shutting down, or the run was stopped."""


class Transfer(Protocol):
    """Reads and writes notebooks (`transfer.service.TransferService`)."""

    @property
    def schemes(self) -> Collection[str]:
        """The allowed schemes; none: URIs are disabled."""

    def check(self, uri: str) -> None:
        """Check a URI without resolving or opening anything.

        Raises:
            RefusedError: The URI is not allowed.
        """

    async def read(self, uri: str) -> bytes:
        """Return the notebook that a URI names. Cancelling it aborts it immediately.

        Raises:
            TransferError: It could not be read.
        """

    async def write(self, uri: str, notebook: int) -> None:
        """Write the notebook in an open file to a URI. Cancelling it aborts it immediately.

        Args:
            uri: Where to.
            notebook: A descriptor of the file.

        Raises:
            TransferError: It could not be written.
        """

    def stop_reading(self) -> None:
        """Cancel all reads, and refuse further ones: the server is shutting down."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A file that was written to an object store or shared folder.

    Attributes:
        name: Its name, relative to the URI of all.
        size: Its size in bytes.
        sha256: Its SHA-256 in hexadecimal.
    """

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Removal:
    """What a removal has done.

    Attributes:
        gone: The names of the objects that are gone.
        problem: Why the first of the others is not, in a clause; empty: all are gone.
        tried: The number of names, from the first on, whose removal was tried.
    """

    gone: Sequence[str]
    problem: str = ""
    tried: int = 0


@dataclass(frozen=True, slots=True)
class ArchiveLocation:
    """An object store or shared folder that belongs to one history.

    A marker object there has the id of the history. Without it, another place is there: an empty mount point,
    or the location of another history. Nothing can be concluded from an object that such a place lacks.

    Attributes:
        uri: Its URI without a slash at the end.
        history_id: The id of the history.
    """

    uri: str
    history_id: str


class Archives(Protocol):
    """Writes and reads archives in an object store or shared folder (`transfer.archives.UriArchives`)."""

    @property
    def uri(self) -> str:
        """Where they are."""

    @property
    def timeout(self) -> float:
        """Seconds that one call may take."""

    async def open(self, history_id: str, *, is_new: bool) -> None:
        """Check that the location belongs to a history and can be used; other calls need this one first.

        Args:
            history_id: The id of the history.
            is_new: Whether the history has no object yet: a location without a marker gets one.

        Raises:
            TransferError: It cannot be used.
        """

    async def write(self, name: str, source: Path, deadline: float) -> None:
        """Write an object; attempts that fail are repeated while time is left.

        Args:
            name: Its name.
            source: Its content.
            deadline: When the write ends at the latest, even if this process stands still, by the monotonic
                clock.

        Raises:
            TransferError: It could not be written; a part of it may be there.
        """

    async def read(self, stored: StoredObject, target: Path) -> None:
        """Write the content of an object to a file.

        Raises:
            MissingError: The location does not have it.
            DamagedObjectError: It is not as it was written.
            UnreachableError: It cannot be read now, or the location is not that of the history.
            OSError: The file cannot be written.
        """

    async def remove(self, names: Sequence[str]) -> Removal:
        """Remove objects; those that the location does not have count as gone.

        Raises:
            TransferError: Perhaps some were removed.
        """


def shown(uri: str) -> str:
    """Return a URI as it may be shown: what follows a question mark may be a signature, and is left out."""
    before, mark, _ = uri.partition("?")
    return f"{before}?…" if mark else before
