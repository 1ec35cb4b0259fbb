"""What brings notebooks from and to URIs, as the rest of the server sees it, and what can go wrong with it.

::

    TransferError
    ├── RefusedError      the operator does not allow the URI, or the URI is none
    ├── MissingError      nothing is there, or the server may not have it
    ├── TooLargeError     it has more bytes than the server allows
    ├── UnreachableError  who holds it does not answer, or answers that it cannot now
    └── StoppedError      the server is shutting down

Each message is a sentence without its subject and without a full stop, that shows nothing secret.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol


class TransferError(Exception):
    """A notebook could not be read or written."""


class RefusedError(TransferError):
    """The operator does not allow the URI, or the URI is none."""


class MissingError(TransferError):
    """Nothing is there, or the server may not have it: services do not tell the two apart."""


class TransferTooLargeError(TransferError):
    """It has more bytes than the server allows."""


class UnreachableError(TransferError):
    """Who holds it does not answer, or answers that it cannot now: later it may."""


class StoppedError(TransferError):
    """The server is shutting down."""


class Transfer(Protocol):
    """Reads and writes notebooks (`transfer.service.TransferService`)."""

    @property
    def schemes(self) -> Collection[str]:
        """The schemes that URIs may have; none: no URI can be used."""

    def check(self, uri: str) -> None:
        """Refuse a URI that is not allowed, as far as the URI alone tells.

        Raises:
            RefusedError: It is not allowed.
        """

    async def read(self, uri: str) -> bytes:
        """Return the notebook that a URI names. To cancel it is to abandon it, at once.

        Raises:
            TransferError: It could not be read.
        """

    async def write(self, uri: str, notebook: int) -> None:
        """Write the notebook in an open file to a URI. To cancel it is to abandon it, at once.

        Args:
            uri: Where to.
            notebook: A descriptor of the file.

        Raises:
            TransferError: It could not be written.
        """

    def stop_reading(self) -> None:
        """Abandon what is being read, and read no more: the server is shutting down."""


def shown(uri: str) -> str:
    """Return a URI as it may be shown: what follows a question mark may be a signature, and is left out."""
    before, mark, _ = uri.partition("?")
    return f"{before}?…" if mark else before
