"""Asynchronous tests run, and fail when they hang or leave something behind."""

import asyncio
import inspect
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.async_guard import guarded


async def test_a_test_that_hangs_fails() -> None:
    """The failure shows the line at which it waits."""

    async def hangs() -> None:
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError) as caught:
        await guarded(hangs, 0.01)()
    assert "await asyncio.Event().wait()" in "".join(traceback.format_exception(caught.value))


async def test_a_test_that_leaves_a_task_fails() -> None:
    """The failure names the task; a task that has ended is no fault."""
    tasks: list[asyncio.Task[bool]] = []

    async def leaves() -> None:
        tasks.append(asyncio.create_task(asyncio.Event().wait(), name="left behind"))

    async def ends() -> None:
        await asyncio.create_task(asyncio.sleep(0))

    with pytest.raises(AssertionError, match="left behind"):
        await guarded(leaves, None)()
    tasks[0].cancel()
    await asyncio.wait(tasks)
    await guarded(ends, None)()


async def test_each_asynchronous_test_is_guarded() -> None:
    """Nobody has to ask for it."""
    assert inspect.stack()[1].function == "guard"


@given(st.none())
async def test_each_asynchronous_property_is_guarded(example: None) -> None:
    """Each example is, when Hypothesis runs the test."""
    assert example is None
    assert inspect.stack()[1].function == "guard"
