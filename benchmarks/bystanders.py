"""Start many Dask workers without slots in one process, to measure what their number costs."""

import asyncio
import sys

from distributed import Worker


async def main(scheduler: str, count: int) -> None:
    """Run `count` workers until this process is ended."""
    await asyncio.gather(*(Worker(scheduler, nthreads=1, memory_limit=0) for _ in range(count)))
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
