"""The system clock of a server and its workers, which a test sets while they run."""

import sys
from collections.abc import Mapping
from pathlib import Path

from tests.faults import odd_server

PROGRAM = (sys.executable, odd_server.__file__)
HOUR, DAY = 3600, 86400


class OddClock:
    """The clock of a server and of its workers; not that of its kernels.

    Args:
        folder: For the file that sets it.

    Attributes:
        environment: The variables of a server that has this clock, and that is started as `PROGRAM`.
    """

    def __init__(self, folder: Path) -> None:
        self._order = folder / "clock"
        self.environment: Mapping[str, str] = {odd_server.CLOCK: str(self._order)}

    def set(self, seconds: int) -> None:
        """Makes it wrong by so much."""
        draft = self._order.with_suffix(".draft")
        draft.write_text(str(seconds))
        draft.rename(self._order)
