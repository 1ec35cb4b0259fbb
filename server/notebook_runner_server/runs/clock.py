"""The time of one run, which only goes forward."""

from __future__ import annotations

import time


class Clock:
    """Tells the time of a run: of the system's clock at its beginning, and a monotonic clock from there on.

    The system's clock may be set while a run goes on; its times shall stay in order all the same, and the
    time between two of them be the time that passed.

    Args:
        not_before: Nanoseconds since the epoch that the run has already seen.
    """

    def __init__(self, not_before: int = 0) -> None:
        self._origin = max(time.time_ns(), not_before) - time.monotonic_ns()

    def now(self) -> int:
        """Return nanoseconds since the epoch, UTC."""
        return self._origin + time.monotonic_ns()
