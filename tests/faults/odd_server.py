"""The real server's command, with a clock that jumps and with less patience.

NBR_TEST_CLOCK    names a file that says by how many seconds the system's clock is wrong; none: it is right.
                  The clocks of the server and of its workers jump; the kernel's does not.
NBR_TEST_STUCK    how many seconds a worker may take to end a run before it is ended itself
NBR_TEST_LOOK     how many seconds lie between two looks for runs to forget
NBR_TEST_FORK     how many seconds a template of warm kernels may take to fork one
NBR_TEST_SWITCH   set: a warm kernel becomes ready only after a run has looked for one
NBR_TEST_PAGES    names a file: until it is there, whoever has read a page is waited for, and then nobody is
"""

import os
import threading
import time
from pathlib import Path

CLOCK, STUCK, LOOK, PAGES = "NBR_TEST_CLOCK", "NBR_TEST_STUCK", "NBR_TEST_LOOK", "NBR_TEST_PAGES"
FORK, SWITCH = "NBR_TEST_FORK", "NBR_TEST_SWITCH"
FOR_EVER = 1e9


def _bend_clock(order: Path) -> None:
    right, right_ns = time.time, time.time_ns

    def offset() -> int:
        try:
            return int(order.read_text())
        except FileNotFoundError:
            return 0

    time.time = lambda: right() + offset()
    time.time_ns = lambda: right_ns() + offset() * 10**9


def _end_pages(order: Path) -> None:
    from notebook_runner_server.runs import retention  # noqa: PLC0415 - a worker needs none of it

    is_read = retention.Readers.is_read

    def is_read_until_ordered(self: retention.Readers, run_id: str) -> bool:
        retention.PAGE_SECONDS = 0.0 if order.exists() else FOR_EVER
        return is_read(self, run_id)

    retention.Readers.is_read = is_read_until_ordered  # type: ignore[method-assign] # from outside


def _let_kernels_get_ready_after_a_look() -> None:
    from notebook_runner_server.execution import kernel  # noqa: PLC0415 - only where it is asked for
    from notebook_runner_server.execution.warm import pool  # noqa: PLC0415 - as above

    looked = threading.Event()
    pool.FORKED_SECONDS = FOR_EVER
    warm_up, take = kernel.Kernel.warm_up, pool.WarmPool._take

    def warm_up_after_a_look(self: kernel.Kernel, seconds: float) -> bool:
        looked.wait()
        return warm_up(self, seconds)

    def take_and_let_others_continue(self: pool.WarmPool, source: pool.KernelSource) -> kernel.Kernel | None:
        taken = take(self, source)
        looked.set()
        # Whoever holds the lock keeps the kernel from getting ready.
        while taken is None and not self._lock._is_owned():  # type: ignore[attr-defined] # of CPython
            if any(one.state is pool.State.READY for one in self._kernels):
                break
            time.sleep(0.001)
        return taken

    kernel.Kernel.warm_up = warm_up_after_a_look  # type: ignore[method-assign] # from outside
    pool.WarmPool._take = take_and_let_others_continue  # type: ignore[method-assign] # from outside


# A worker imports this module again, and does not come to main().
if CLOCK in os.environ:
    _bend_clock(Path(os.environ[CLOCK]))
if FORK in os.environ:
    from notebook_runner_server.execution.warm import forking

    forking.FORK_SECONDS = float(os.environ[FORK])
if SWITCH in os.environ:
    _let_kernels_get_ready_after_a_look()


def main() -> None:
    """Runs the server."""
    from notebook_runner_server.__main__ import main as serve  # noqa: PLC0415 - a worker needs none of it
    from notebook_runner_server.execution import pool  # noqa: PLC0415 - as above
    from notebook_runner_server.runs import retention  # noqa: PLC0415 - as above

    pool.STUCK_SECONDS = float(os.environ.get(STUCK, pool.STUCK_SECONDS))
    retention.INTERVAL = float(os.environ.get(LOOK, retention.INTERVAL))
    if PAGES in os.environ:
        _end_pages(Path(os.environ[PAGES]))
    serve()


if __name__ == "__main__":
    main()
