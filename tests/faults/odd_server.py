"""The real server's command, with a clock that jumps and with less patience.

NBR_TEST_CLOCK    names a file that says by how many seconds the system's clock is wrong; none: it is right
NBR_TEST_STUCK    how many seconds a worker may take to end a run before it is ended itself
"""

import os
import time
from pathlib import Path

CLOCK, STUCK = "NBR_TEST_CLOCK", "NBR_TEST_STUCK"


def _bend_clock(order: Path) -> None:
    right, right_ns = time.time, time.time_ns

    def offset() -> int:
        try:
            return int(order.read_text())
        except FileNotFoundError:
            return 0

    time.time = lambda: right() + offset()
    time.time_ns = lambda: right_ns() + offset() * 10**9


def main() -> None:
    """Runs the server."""
    from notebook_runner_server.__main__ import main as serve  # noqa: PLC0415 - a worker imports this again
    from notebook_runner_server.execution import pool  # noqa: PLC0415 - as above

    if CLOCK in os.environ:
        _bend_clock(Path(os.environ[CLOCK]))
    pool.STUCK_SECONDS = float(os.environ.get(STUCK, pool.STUCK_SECONDS))
    serve()


if __name__ == "__main__":
    main()
