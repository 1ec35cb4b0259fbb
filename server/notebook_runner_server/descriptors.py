"""File descriptors: each connection takes one, and runs must never find that there is none left."""

from __future__ import annotations

import resource

import structlog

SPARE = 512
"""Descriptors for all but connections: state, workers, runs, artefacts."""

_log = structlog.get_logger(__name__)


def connections(wanted: int) -> int:
    """Raise the soft limit of descriptors as far as is needed and allowed.

    The soft limit grows to what so many connections need and no further, because workers and kernels
    inherit it.

    Args:
        wanted: How many connections are to be taken.

    Returns:
        How many can be taken. Where the hard limit is lower, half of it stays for runs at the least.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + SPARE
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft >= needed:
        return wanted
    taken = max(soft - SPARE, soft // 2)
    _log.warning(
        "fewer connections than --max-connections: too few descriptors", taken=taken, descriptors=soft
    )
    return taken
