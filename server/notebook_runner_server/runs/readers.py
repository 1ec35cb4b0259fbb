"""Who reads which run, so that none is forgotten while somebody reads it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

PAGE_SECONDS = 60.0
"""How long after a page of an artefact the next one is waited for."""


class Readers:
    """Counts the open streams of each run, and remembers when a page of it was last read."""

    def __init__(self) -> None:
        self._streams: Counter[str] = Counter()
        self._pages: dict[str, float] = {}

    @contextmanager
    def stream(self, run_id: str) -> Iterator[None]:
        """Say that a stream of the run is open, between `with` and its end."""
        self._streams[run_id] += 1
        try:
            yield
        finally:
            self._streams[run_id] -= 1
            if not self._streams[run_id]:
                del self._streams[run_id]

    def page(self, run_id: str) -> None:
        """Say that a page of the run was read."""
        self._pages[run_id] = time.monotonic()

    def reads(self, run_id: str) -> bool:
        """Tell whether somebody reads the run."""
        now = time.monotonic()
        self._pages = {one: when for one, when in self._pages.items() if now - when < PAGE_SECONDS}
        return run_id in self._streams or run_id in self._pages
