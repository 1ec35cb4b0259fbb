"""Streams that share the event loop: many of them do not keep other calls waiting, and none is forgotten."""

import asyncio
from collections import Counter

from notebook_runner_server.api.pacer import MESSAGES_PER_TURN, Pacer

STREAMS = 10 * MESSAGES_PER_TURN


class Loop:
    """Counts the turns of the event loop, as a call sees them that needs one for each of its steps."""

    def __init__(self) -> None:
        self.turn = 0

    async def run(self, turns: int) -> None:
        """Takes a number of turns."""
        for _ in range(turns):
            await asyncio.sleep(0)
            self.turn += 1


async def test_other_calls_have_their_turns_between_the_messages_of_many_streams() -> None:
    """Each turn has a few messages, in the order in which the streams asked, until all are sent."""
    pacer, loop = Pacer(), Loop()
    sent: list[tuple[int, int]] = []

    async def stream(number: int) -> None:
        for _ in range(2):
            await pacer.take()
            sent.append((number, loop.turn))
            # As long as gRPC takes at least.
            await asyncio.sleep(0)

    other = asyncio.ensure_future(loop.run(100))
    await asyncio.gather(*map(stream, range(STREAMS)))
    await other
    assert [number for number, _ in sent[:STREAMS]] == list(range(STREAMS))
    assert sorted(number for number, _ in sent[STREAMS:]) == list(range(STREAMS))
    # Those that waited are resumed in one turn and send in the next, which may have its own.
    assert max(Counter(turn for _, turn in sent).values()) <= 2 * MESSAGES_PER_TURN


async def test_a_stream_alone_never_waits() -> None:
    """As many messages as one turn has are sent without a pause, in each turn."""
    pacer, loop = Pacer(), Loop()
    other = asyncio.ensure_future(loop.run(100))
    for _ in range(3):
        before = loop.turn
        for _ in range(MESSAGES_PER_TURN):
            await pacer.take()
        assert loop.turn == before
        await asyncio.sleep(0)
    await other


async def test_a_stream_that_is_cancelled_takes_no_turn() -> None:
    """The turns of streams that go away while they wait are those of the next ones."""
    pacer = Pacer()
    streams = [asyncio.ensure_future(pacer.take()) for _ in range(STREAMS)]
    await asyncio.sleep(0)
    assert sum(one.done() for one in streams) == MESSAGES_PER_TURN
    for one in streams[MESSAGES_PER_TURN:-1]:
        one.cancel()
    await streams[-1]
    assert not pacer._waiting
