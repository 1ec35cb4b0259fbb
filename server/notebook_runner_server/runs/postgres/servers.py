"""The servers of a database, and which of them are gone.

A server counts up a number in its row. One whose number has stood still for long enough, by the clock of the
server that looks, is gone. No clocks are compared, so a clock that is wrong or jumps makes no difference.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

RECORDS = (
    "SELECT server_id, epoch, name, place, renewals, workers, is_draining, schema_version FROM servers"
    " ORDER BY epoch"
)
"""Returns the fields of a `ServerRecord` for each server."""


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """A server as the database has it.

    Attributes:
        server_id: Its id.
        epoch: The number of this server among all so far.
        name: Its name, for people.
        place: Its state folder, as `lease.place_of` returns it.
        renewals: How often it has renewed its lease.
        workers: How many runs it executes at a time.
        is_draining: Whether it begins no more runs.
        schema_version: The newest version of the schema that it knows.
    """

    server_id: str
    epoch: int
    name: str
    place: str
    renewals: int
    workers: int
    is_draining: bool
    schema_version: str


class _Sighting(NamedTuple):
    record: ServerRecord
    # Since when its number has stood still, by the monotonic clock.
    since: float
    # Whether its number has changed since it was seen first.
    has_renewed: bool


class ServerWatch:
    """Finds out which servers are gone.

    Args:
        server_id: This server.
        place: Its state folder: an earlier server of this folder is dead, since this one has locked it.
        silence: Seconds after which a server that has not renewed its lease is gone.

    Attributes:
        server_id: This server.
    """

    def __init__(self, server_id: str, place: str, silence: float) -> None:
        self.server_id = server_id
        self._place = place
        self._silence = silence
        self._seen: tuple[_Sighting, ...] = ()

    def see(self, records: Sequence[ServerRecord]) -> None:
        """Take note of all servers, as they are now."""
        now = time.monotonic()
        before = {one.record.server_id: one for one in self._seen}
        seen = []
        for record in records:
            last = before.get(record.server_id)
            if last is None:
                seen.append(_Sighting(record, now, has_renewed=False))
            elif last.record.renewals == record.renewals:
                seen.append(last._replace(record=record))
            else:
                seen.append(_Sighting(record, now, has_renewed=True))
        self._seen = tuple(seen)

    @property
    def all(self) -> Sequence[ServerRecord]:
        """All servers, those that are gone and not replaced yet too."""
        return [one.record for one in self._seen]

    @property
    def gone(self) -> Sequence[ServerRecord]:
        """The servers that are gone, and that no other server has replaced."""
        return [one.record for one in self._seen if self._is_gone(one)]

    @property
    def others(self) -> Sequence[ServerRecord]:
        """The other servers that are not gone."""
        return [
            one.record
            for one in self._seen
            if not self._is_gone(one) and one.record.server_id != self.server_id
        ]

    @property
    def unknown(self) -> Sequence[ServerRecord]:
        """Those of `others` that have not renewed their lease yet since they were seen first."""
        return [
            one.record
            for one in self._seen
            if not one.has_renewed and not self._is_gone(one) and one.record.server_id != self.server_id
        ]

    @property
    def seconds_left(self) -> Sequence[float]:
        """After how many seconds each of `others` is gone, if it is silent from now on."""
        now = time.monotonic()
        return [
            one.since + self._silence - now
            for one in self._seen
            if not self._is_gone(one) and one.record.server_id != self.server_id
        ]

    def _is_gone(self, one: _Sighting) -> bool:
        is_silent = one.since <= time.monotonic() - self._silence
        return (is_silent or one.record.place == self._place) and one.record.server_id != self.server_id
