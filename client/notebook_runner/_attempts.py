"""Where a run stands, as text: in the queue, and among its attempts."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING

from ._values import seconds_of

if TYPE_CHECKING:
    from .v1 import notebook_runner_pb2 as pb

__all__ = ["attempt", "numbered", "place", "repeated"]


def attempt(run: pb.Run) -> str:
    """Return which attempt of several a run is: `attempt 2 of 4`; empty: the only one so far."""
    if run.attempt <= 1 and not run.retried_by:
        return ""
    return numbered(run, run.attempt or 1)


def numbered(run: pb.Run, number: int) -> str:
    """Return the number of an attempt of a run as `attempt 2 of 4`."""
    total = f" of {run.retry.max_retries + 1}" if run.HasField("retry") else ""
    return f"attempt {number}{total}"


def repeated(run: pb.Run) -> str:
    """Return which run repeats a run; empty: none."""
    return f"repeated by run {run.retried_by}" if run.retried_by else ""


def place(run: pb.Run) -> str:
    """Return what a queued run waits for: its time, or the runs ahead of it."""
    if run.HasField("not_before") and (moment := seconds_of(run.not_before)) > time.time():
        local, now = datetime.fromtimestamp(moment).astimezone(), datetime.now().astimezone()
        return f"not before {local:{'%H:%M:%S' if local.date() == now.date() else '%Y-%m-%d %H:%M:%S'}}"
    count = run.queue_position
    return f"{count} run{'s' * (count != 1)} ahead" if count else "next to start"
