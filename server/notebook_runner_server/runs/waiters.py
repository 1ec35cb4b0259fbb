"""Lets readers wait for something new without a queue for each of them."""

from __future__ import annotations

import asyncio


class Waiters:
    """Readers that wait until they are woken, or until a time has passed."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[bool], None] = {}

    def wake(self) -> None:
        """Wake all readers that wait now."""
        waiting, self._waiting = self._waiting, {}
        for one in waiting:
            _resume(one, True)

    async def wait(self, seconds: float) -> bool:
        """Wait to be woken; false: nobody woke the reader in this time."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[bool] = loop.create_future()
        self._waiting[waiting] = None
        timer = loop.call_later(seconds, _resume, waiting, False)
        try:
            return await waiting
        finally:
            timer.cancel()
            self._waiting.pop(waiting, None)


def _resume(waiting: asyncio.Future[bool], is_woken: bool) -> None:
    if not waiting.done():
        waiting.set_result(is_woken)
