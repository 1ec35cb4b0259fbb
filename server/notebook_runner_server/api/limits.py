"""The limits of callers; without gRPC, which takes long to import: the settings refer to them."""

from __future__ import annotations

from dataclasses import dataclass

MESSAGE_OVERHEAD = 1024 * 1024
"""Maximum size of a Start without its notebook, in bytes."""


@dataclass(frozen=True)
class CallerLimits:
    """The limits of callers.

    Attributes:
        max_notebook_bytes: Maximum size of a notebook in a Start.
        max_connections: Maximum number of open connections; further ones are closed.
    """

    max_notebook_bytes: int
    max_connections: int

    @property
    def max_message_bytes(self) -> int:
        """Maximum size of a message."""
        return self.max_notebook_bytes + MESSAGE_OVERHEAD
