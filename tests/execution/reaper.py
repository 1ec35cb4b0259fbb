"""A process that owns trees of real processes, ends all of them, and says what it found and what is left.

Run as a program with the kinds of trees to start, it prints one line of JSON.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from notebook_runner_server.confinement import confine
from notebook_runner_server.execution.processes import (
    children,
    descendants,
    in_own_session,
    kill_descendants,
    spare_none,
)

WAITING = "sleep 100000 & echo ready; wait; :"
STUBBORN = f"trap '' TERM INT HUP; {WAITING}"
DAEMON = "setsid sh -c 'echo ready; exec sleep 100000' &"
NESTED = f"sh -c 'sh -c \"{WAITING}\"; :'; :"
# Each generation ends as soon as the next one is there.
CHAIN = """
import os
os.setsid()
print("ready", flush=True)
while True:
    if os.fork():
        os._exit(0)
"""
# A busy machine may need longer than the server allows itself.
DEADLINE = 300.0
# Kept, because subprocess reaps a child that has ended as soon as nobody refers to it.
STARTED: list[subprocess.Popen[str]] = []


def _ready(*command: str, **options: Any) -> int:
    """Starts a program and waits for its first word."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
    STARTED.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process.pid


def _sh(script: str, **options: Any) -> int:
    return _ready("/bin/sh", "-c", script, **options)


def _sleep(**options: Any) -> int:
    return _sh("echo ready; exec sleep 100000", **options)


def _daemon() -> None:
    """Starts a process whose parent has ended."""
    _sh(DAEMON)
    STARTED[-1].wait()


KINDS: dict[str, Callable[[], object]] = {
    "child": _sleep,
    "setsid": lambda: _sleep(start_new_session=True),
    "group": lambda: _sleep(process_group=0),
    "scrubbed": lambda: _sleep(env={"PATH": os.environ["PATH"]}, start_new_session=True),
    "double": _daemon,
    "nested": lambda: _sh(NESTED),
    "stubborn": lambda: _sh(STUBBORN),
    "stopped": lambda: os.kill(_sleep(), signal.SIGSTOP),
    "chain": lambda: _ready(sys.executable, "-c", CHAIN),
    "dead": lambda: os.waitid(os.P_PID, _sh("echo ready"), os.WEXITED | os.WNOWAIT),
}


def main(*kinds: str) -> None:
    """Starts trees, ends them and prints what came of it; `orphans` spares this process's session."""
    confine.become_subreaper()
    spare = in_own_session if "orphans" in kinds else spare_none
    try:
        for kind in kinds:
            KINDS.get(kind, lambda: None)()
        found = descendants(os.getpid())
        killed = kill_descendants(os.getpid(), spare, deadline=DEADLINE)
        report = {
            "found": found,
            "killed": sorted(killed),
            "left": children(os.getpid()),
        }
        sys.stdout.write(json.dumps(report) + "\n")
        sys.stdout.flush()
        # Whoever asked looks at what is left, then lets this process end.
        sys.stdin.read()
    finally:
        for pid in descendants(os.getpid()):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
