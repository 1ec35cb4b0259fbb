"""The interface for reading and writing notebooks by URI, and its errors.

::

    TransferError
    ├── RefusedError      the URI is malformed, or the operator does not allow it
    ├── MissingError      the notebook does not exist, or the server has no access to it
    ├── TransferTooLargeError  the notebook is larger than the server allows
    ├── UnreachableError  the service does not respond, or cannot respond now
    └── StoppedError      the server is shutting down

Each message is a clause without a full stop, and contains no secrets.
"""

from __future__ import annotations

from collections.abc import Collection
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


class StoppedError(TransferError):
    """The server is shutting down."""


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


def shown(uri: str) -> str:
    """Return a URI as it may be shown: what follows a question mark may be a signature, and is left out."""
    before, mark, _ = uri.partition("?")
    return f"{before}?…" if mark else before
