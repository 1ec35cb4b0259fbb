"""What holds for each asynchronous test: it ends, and so does every task that it started."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any


def guarded(
    test: Callable[..., Coroutine[Any, Any, None]], seconds: float | None
) -> Callable[..., Coroutine[Any, Any, None]]:
    """Returns the test as one that fails where it hangs, and when it leaves a task behind.

    Args:
        test: The test.
        seconds: How long it may take; None: any time.
    """

    @functools.wraps(test)
    async def guard(*args: Any, **kwargs: Any) -> None:
        before = asyncio.all_tasks()
        async with asyncio.timeout(seconds):
            await test(*args, **kwargs)
        left = asyncio.all_tasks() - before
        assert not left, f"tasks outlived the test: {left}"

    return guard
