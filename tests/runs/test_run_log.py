"""The log of one run: every reader sees every event once and in order, however it reads."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from notebook_runner_server.execution.interface import (
    MAX_TYPES,
    DisplayOutput,
    ErrorOutput,
    StreamOutput,
)
from notebook_runner_server.runs.log import RECENT_BYTES, RunLog
from notebook_runner_server.runs.model import Body, Event, WriteBatch
from notebook_runner_server.runs.store import Store
from notebook_runner_server.runs.transitions import event_of
from tests.runs.reading import (
    RUNNING,
    CountingStore,
    a_log,
    end,
    everything,
    first,
    following,
    say,
    sequences,
)
from tests.runs.stores import a_store


async def test_a_reader_can_begin_at_every_cursor(tmp_path: Path) -> None:
    """After any sequence number exactly the rest comes, from memory and from the store alike."""
    async with a_log(a_store(Store, tmp_path)) as log:
        await say(log, *("abcdefgh"))
        await end(log)
        stored = RunLog(log._store, log.position, log.last_sequence, ended=True)
        for one in (log, stored):
            for after in range(11):
                assert await everything(one, after) == list(range(after + 1, 11))


async def test_nothing_follows_the_end_that_another_server_wrote(tmp_path: Path) -> None:
    """A log that does not know yet that the run has ended reads the end from the store, and no heartbeat."""
    async with a_log(a_store(Store, tmp_path)) as log:
        await say(log, "a")
        behind = RunLog(log._store, log.position, log.last_sequence, ended=False)
        await end(log)
        read = [[event.sequence for event in batch] async for batch in behind.follow(0, 0.01)]
        assert read == [[1, 2, 3]]


async def test_events_of_another_server_are_known_before_they_are_shown(tmp_path: Path) -> None:
    """A reader that comes from another server may have events that this server's log does not know yet."""
    async with a_log(a_store(Store, tmp_path)) as log:
        behind = RunLog(log._store, log.position, 0, ended=False)
        behind.publish(await log.read(0))
        await say(log, "a", "b")
        assert (behind.last_sequence, await behind.newest()) == (1, 3)
        assert [event.sequence for event in await behind.read(1)] == [2, 3]


async def test_two_thousand_events_come_from_the_store_without_a_gap(tmp_path: Path) -> None:
    """A long history is read in bounded reads, and none is lost between two of them."""
    async with a_log(a_store(Store, tmp_path)) as log:
        await say(log, *("x" for _ in range(2000)))
        await end(log)
        stored = RunLog(log._store, log.position, log.last_sequence, ended=True)
        assert await everything(stored, 7) == list(range(8, 2003))


async def test_readers_that_join_at_any_time_see_all_of_it(tmp_path: Path) -> None:
    """Some follow from the start, some come in between, some at the end: each sees each event once."""
    async with a_log(a_store(Store, tmp_path)) as log:
        joined = [0]
        readers = [asyncio.ensure_future(everything(log))]
        for number in range(20):
            await say(log, *(["x"] * (number % 4)))
            joined += [0, log.last_sequence]
            readers += [asyncio.ensure_future(everything(log, after)) for after in joined[-2:]]
        await end(log)
        seen = await asyncio.gather(*readers, everything(log))
        whole = list(range(1, log.last_sequence + 1))
        assert seen == [whole[after:] for after in [*joined, 0]]


async def test_a_slow_reader_holds_nobody_up_and_loses_nothing(tmp_path: Path) -> None:
    """A reader that takes one batch and then stands still delays neither the run nor other readers."""
    async with a_log(a_store(Store, tmp_path)) as log, following(log, 0) as slow:
        seen = await first(slow)
        fast = asyncio.ensure_future(everything(log))
        for _ in range(300):
            await say(log, "x" * (RECENT_BYTES // 100))
        await end(log)
        assert await fast == list(range(1, 303))
        seen += [event.sequence async for batch in slow for event in batch]
        assert seen == list(range(1, 303))


async def test_what_left_the_recent_window_is_read_from_the_store(tmp_path: Path) -> None:
    """Memory stays bounded; who is near reads from memory, who is far behind reads from the store."""
    store = a_store(CountingStore, tmp_path)
    async with a_log(store) as log:
        await say(log, "a", "b")
        assert sequences(await log.read(0)) == [1, 2, 3]
        assert store.reads == 0
        for _ in range(8):
            await say(log, "x" * (RECENT_BYTES // 4))
        kept = [event.body for event in log._recent]
        assert sum(len(body.text) for body in kept if isinstance(body, StreamOutput)) <= RECENT_BYTES
        assert sequences(await log.read(log.last_sequence - 1)) == [log.last_sequence]
        assert store.reads == 0
        # Of large events a read brings few: who reads no further keeps no more of them.
        assert sequences(await log.read(0)) == [1, 2, 3, 4]
        assert store.reads == 1
        assert sequences(await log.read(4)) == [5]


async def test_all_that_an_event_holds_is_counted(tmp_path: Path) -> None:
    """Names of types and texts of exceptions take room as what is printed does."""
    types = tuple((f"{'x' * 250}{number}", 1) for number in range(MAX_TYPES))
    large: list[tuple[Body, int]] = [
        (DisplayOutput(0, "display_data", types), 250 * MAX_TYPES),
        (ErrorOutput(0, "E", "x" * 4096), 4096),
    ]
    for place, (body, held) in enumerate(large):
        async with a_log(a_store(Store, tmp_path / str(place))) as log:
            for _ in range(2 * RECENT_BYTES // held):
                event = event_of(RUNNING, body, log.last_sequence + 1, 1)
                await log.append(RUNNING, [event], WriteBatch())
            assert len(log._recent) * held <= RECENT_BYTES


async def test_all_readers_share_one_encoded_form_of_an_event(tmp_path: Path) -> None:
    """Who reads from memory gets the same bytes, made once; what is older is made for each reader."""
    made: list[int] = []

    def encode(event: Event) -> bytes:
        made.append(event.sequence)
        return b"x" * (RECENT_BYTES // 4)

    async with a_log(a_store(Store, tmp_path)) as log:
        await say(log, "a", "b")
        for _ in range(3):
            events = await log.read(0)
            assert len({log.encoded(event, encode) for event in events}) == 1
        assert made == [1, 2, 3]
        # The encoded form takes room as its event does, and leaves with it.
        await say(log, "x" * (RECENT_BYTES // 2))
        assert sequences(list(log._recent)) == [3, 4]
        assert list(log._encoded) == [3]
        old = (await log.read(0))[0]
        log.encoded(old, encode)
        assert list(log._encoded) == [3]
        assert made == [1, 2, 3, 1]


async def test_one_event_larger_than_the_window_is_kept(tmp_path: Path) -> None:
    """The newest event is never evicted: whoever waits for it gets it without the store."""
    store = a_store(CountingStore, tmp_path)
    async with a_log(store) as log:
        await say(log, "x" * (RECENT_BYTES + 1))
        assert sequences(await log.read(1)) == [2]
        assert store.reads == 0


async def test_a_reader_that_waits_gets_the_next_event_at_once(tmp_path: Path) -> None:
    """Who has all that is there is woken by what comes; ten wait and ten are woken."""
    async with a_log(a_store(Store, tmp_path)) as log, AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(following(log, 1)) for _ in range(10)]
        waiting = [asyncio.ensure_future(first(reader)) for reader in readers]
        await asyncio.sleep(0)
        assert not any(one.done() for one in waiting)
        await say(log, "x")
        assert await asyncio.gather(*waiting) == [[2]] * 10


async def test_a_reader_that_leaves_takes_nobody_with_it(tmp_path: Path) -> None:
    """A stream that is dropped while it waits does not keep others from being woken."""
    async with a_log(a_store(Store, tmp_path)) as log:
        leaves, stays = asyncio.ensure_future(everything(log, 1)), asyncio.ensure_future(everything(log))
        await say(log, "x")
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        await end(log)
        assert leaves.cancelled()
        assert await stays == [1, 2, 3]


async def test_silence_gives_a_sign_of_life(tmp_path: Path) -> None:
    """Without an event an empty batch comes, as often as it is silent, and then what there is."""
    async with a_log(a_store(Store, tmp_path)) as log, following(log, 1, 0.01) as reader:
        assert [await anext(reader), await anext(reader)] == [(), ()]
        await say(log, "x")
        batch = await anext(reader)
        while not batch:
            batch = await anext(reader)
        assert sequences(batch) == [2]


async def test_readers_share_an_event_with_content(tmp_path: Path) -> None:
    """It is read and encoded once for each choice of content, also if they come together."""
    made: list[tuple[int, ...]] = []

    async def encode(key: tuple[int, ...]) -> bytes:
        await asyncio.sleep(0)
        made.append(key)
        return b"x" * (RECENT_BYTES // 4)

    async with a_log(a_store(Store, tmp_path)) as log:
        await say(log, "a", "b", "c")
        events = await log.read(0)

        async def read(event: Event, *indexes: int) -> bytes:
            key = (event.sequence, *indexes)
            return await log.encoded_with_content(event, indexes, lambda: encode(key))

        assert len({id(one) for one in await asyncio.gather(*(read(events[0], 0) for _ in range(9)))}) == 1
        await read(events[0], 0, 1)
        assert made == [(1, 0), (1, 0, 1)]
        # What has been kept for long makes room, and other readers do not notice.
        for event in events[1:]:
            await read(event, 0)
        assert list(log._with_content) == [(1, 0, 1), (2, 0), (3, 0), (4, 0)]
        assert sequences(await log.read(0)) == [1, 2, 3, 4]
        stored = RunLog(log._store, log.position, log.last_sequence, ended=True)
        for _ in range(2):
            await stored.encoded_with_content(events[0], [0], lambda: encode((0,)))
        assert made[-2:] == [(0,), (0,)]
