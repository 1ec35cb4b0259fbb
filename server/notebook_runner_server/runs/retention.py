"""Forgets runs whose retention is over."""

from __future__ import annotations

import asyncio
import logging
from typing import NoReturn

from notebook_runner_server.runs.store import Store

INTERVAL = 60.0
"""Seconds between two looks for runs whose retention is over."""

_BATCH = 100
_logger = logging.getLogger(__name__)


async def forget_expired(store: Store) -> NoReturn:
    """Remove runs whose retention is over, with all that belongs to them, for as long as the server runs."""
    while True:
        try:
            while rows := await store.expired(_BATCH):
                for row in rows:
                    await store.delete(row)
        except Exception:
            # A full disk must not end the one thing that makes room.
            _logger.exception("expired runs could not be removed")
        await asyncio.sleep(INTERVAL)
