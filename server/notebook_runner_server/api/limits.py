"""The limits of callers; without gRPC, which takes long to import: the settings refer to them."""

from __future__ import annotations

from dataclasses import dataclass

MESSAGE_OVERHEAD = 1024 * 1024
"""Maximum size of a Start without its notebook and files, in bytes."""

SMALL_MESSAGE = 256 * 1024
"""Maximum size of a request of any other call, in bytes. Its fields need much less, and to parse a few
million labels would keep the event loop busy for seconds."""

LARGEST_MESSAGE = 2**31 - 1
"""gRPC counts the bytes of a message in an int32."""


@dataclass(frozen=True)
class CallerLimits:
    """The limits of callers.

    Attributes:
        max_notebook_bytes: Maximum size of a notebook in a Start.
        max_input_files_bytes: Maximum size of the files in a Start.
        max_connections: Maximum number of open connections; further ones are closed.
    """

    max_notebook_bytes: int
    max_input_files_bytes: int
    max_connections: int

    @property
    def max_message_bytes(self) -> int:
        """Maximum size of a message."""
        return min(self.max_notebook_bytes + self.max_input_files_bytes + MESSAGE_OVERHEAD, LARGEST_MESSAGE)
