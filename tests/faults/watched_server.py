"""The real server's command, whose event loop tells what kept it for too long.

As asyncio's own check of slow callbacks, with 50 ms for its 100. But that goes by the clock on the wall, and
a shared machine keeps a process from its processor for that long; this goes by the thread's processor time.
A slower processor has as much more time as it takes longer for something that is always the same.
"""

import asyncio
import json
import sys
import time
from typing import Any

LIMIT_SECONDS = 0.05
# What the processor needs for `_always_the_same` that has this limit.
REFERENCE_SECONDS = 0.02


def _always_the_same() -> None:
    json.loads(json.dumps([{"number": number, "text": str(number)} for number in range(20_000)]))


def _seconds() -> float:
    begin = time.thread_time()
    _always_the_same()
    return time.thread_time() - begin


def _watch() -> None:
    run = asyncio.events.Handle._run
    limit = LIMIT_SECONDS * max(1.0, min(_seconds() for _ in range(5)) / REFERENCE_SECONDS)

    def timed(handle: Any) -> None:
        begin = time.thread_time()
        run(handle)
        taken = time.thread_time() - begin
        if taken > limit:
            sys.stderr.write(f"SLOW {taken:.3f} {handle!r}\n")

    asyncio.events.Handle._run = timed  # type: ignore[method-assign, assignment] # from outside


def main() -> None:
    """Runs the server."""
    from notebook_runner_server.__main__ import main as serve  # noqa: PLC0415 - a worker needs none of it

    _watch()
    serve()


if __name__ == "__main__":
    main()
