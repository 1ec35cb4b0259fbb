"""Process trees of every kind that a notebook can start: all of it is found, ended and counted."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest

from notebook_runner_server.execution.processes import (
    ProcessesLeftError,
    children,
    descendants,
    kill_descendants,
)
from tests.execution import reaper
from tests.support.processes import is_alive, marked, outlived

pytestmark = pytest.mark.integration

# How many processes each kind of tree has, when it is looked at.
ALIVE = {
    "child": 1,
    "setsid": 1,
    "group": 1,
    "scrubbed": 1,
    "double": 1,
    "nested": 4,
    "stubborn": 2,
    "stopped": 1,
    "dead": 0,
}

# Has a child that ends, and does not wait for it.
KEEPER = """
import os, sys
pid = os.fork()
if not pid:
    os._exit(0)
print(pid, flush=True)
sys.stdin.read()
"""


@contextmanager
def reaped(*kinds: str) -> Iterator[tuple[dict[str, Any], str]]:
    """What a process says that had these trees and ended them, and the mark that all of them carry."""
    mark = uuid4().hex
    command = [sys.executable, reaper.__file__, *kinds]
    environment = {**os.environ, "NBR_TREE_MARK": mark, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdin is not None
        line = owner.stdout.readline()
        assert line, f"the owner of {kinds} failed"
        left = {pid: command for pid, command in marked(mark).items() if pid != owner.pid}
        yield {**json.loads(line), "marked": left}, mark
        owner.stdin.close()
        assert owner.wait(60) == 0
    # It has sent them SIGKILL, and did not wait.
    assert outlived(marked(mark), 60) == []


@pytest.mark.parametrize("kind", list(ALIVE))
def test_each_kind_of_tree_is_ended_and_counted(kind: str) -> None:
    """Whatever its session, group, environment or signals: gone, reaped, and told by its id."""
    with reaped(kind) as (told, _):
        assert len(told["killed"]) == ALIVE[kind]
        assert set(told["killed"]) <= set(told["found"])
        assert (told["left"], told["marked"]) == ([], {})
        assert not any(is_alive(pid) for pid in told["found"])


def test_a_whole_forest_is_ended_at_once() -> None:
    """Trees of all kinds together: each process is counted once."""
    with reaped(*ALIVE) as (told, _):
        assert len(told["killed"]) == sum(ALIVE.values())
        assert (told["left"], told["marked"]) == ([], {})


def test_a_chain_of_forks_cannot_run_away() -> None:
    """A process that is another one at every look is caught, with whatever it has started meanwhile."""
    for _ in range(3):
        with reaped("chain", "child") as (told, _):
            assert len(told["killed"]) >= 2
            assert (told["left"], told["marked"]) == ([], {})


def test_nothing_to_end_is_well() -> None:
    """A process without children is done at once, and kills nobody."""
    with reaped() as (told, _):
        assert (told["found"], told["killed"], told["left"]) == ([], [], [])


def test_what_is_in_the_own_session_can_be_spared() -> None:
    """Orphans of other sessions are ended; the process's own helpers go on, with what is below them."""
    with reaped("orphans", "child", "group", "setsid", "double", "scrubbed") as (told, _):
        assert len(told["killed"]) == 3
        alive = {pid for pid in told["left"] if is_alive(pid)}
        assert len(alive) == 2
        assert alive == set(told["marked"])
        assert not alive & set(told["killed"])


def test_descendants_are_found_by_generation() -> None:
    """Children first, then theirs; a process that is gone has none."""
    with subprocess.Popen(["/bin/sh", "-c", reaper.NESTED], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        generations = [[parent.pid]]
        while below := [child for one in generations[-1] for child in children(one)]:
            generations.append(below)
        assert [len(one) for one in generations] == [1, 1, 1, 1]
        found = descendants(parent.pid)
        assert [[pid] for pid in found] == generations[1:]
        for pid in [*found, parent.pid]:
            os.kill(pid, signal.SIGKILL)
    assert children(parent.pid) == descendants(parent.pid) == []


def test_what_cannot_be_ended_is_named() -> None:
    """At the deadline the error says which processes are there: here one whose parent does not reap it."""
    with subprocess.Popen(
        [sys.executable, "-c", KEEPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        zombie = int(parent.stdout.readline())
        with pytest.raises(ProcessesLeftError, match=str(zombie)):
            kill_descendants(parent.pid, deadline=0.05)
