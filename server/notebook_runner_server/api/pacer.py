"""Shares the event loop between streams with many readers and all other calls."""

from __future__ import annotations

import asyncio
from collections import deque

MESSAGES_PER_TURN = 8
"""How many messages of streams are sent in one turn of the event loop (about half a millisecond)."""


class Pacer:
    """Lets streams send a few messages in each turn of the event loop, in the order in which they asked.

    An event of a run with many readers wakes all of them together. If all sent it in one turn, each step of
    every other call would wait for all of them; so other calls have their turns in between.
    """

    def __init__(self) -> None:
        self._sent = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_counting = False

    async def take(self) -> None:
        """Return when a stream may send its next message: immediately, unless many have sent in this turn."""
        if self._waiting or self._sent >= MESSAGES_PER_TURN:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn
        else:
            self._count()

    def _count(self) -> None:
        self._sent += 1
        if not self._is_counting:
            self._is_counting = True
            asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._is_counting = False
        self._sent = 0
        while self._waiting and self._sent < MESSAGES_PER_TURN:
            stream = self._waiting.popleft()
            # A stream that was cancelled meanwhile takes no turn.
            if not stream.done():
                stream.set_result(None)
                self._count()
