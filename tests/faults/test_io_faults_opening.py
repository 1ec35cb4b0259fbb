"""File operations fail at every call in turn, while a history is rebuilt and while a run is admitted.

No run is lost, and none is there that was refused.
"""

import errno
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from tests.faults.io_faults import FOR_EVER, IoFaults, Kind, Way, needs_compiler
from tests.faults.state_opener import ADMIT
from tests.runs.stores import finish, insert, opened
from tests.support.pages import REPOSITORY

pytestmark = [
    needs_compiler,
    pytest.mark.state_folder("it lets operations on the files of a state folder fail"),
]

PROGRAM = "tests.faults.state_opener"
DATABASE = "notebook-runner.db"
RUNS = "run-0 run-1 run-2"


class Opener:
    """A process that opens state folders, and meets faults."""

    def __init__(self, faults: IoFaults, answers: IO[str], lines: IO[str]) -> None:
        self.faults = faults
        self._answers, self._lines = answers, lines

    def tell(self, line: str) -> None:
        """Says something that has no answer."""
        self._lines.write(f"{line}\n")
        self._lines.flush()

    def say(self, line: str) -> str:
        """The answer to a line; to that of a state folder: its runs."""
        self.tell(line)
        return self._answers.readline().strip()


@contextmanager
def opener(folder: Path) -> Iterator[Opener]:
    """Such a process; faults concern what is below `state` in the folder."""
    faults = IoFaults(folder, folder / "state")
    with subprocess.Popen(
        [sys.executable, "-m", PROGRAM],
        cwd=REPOSITORY,
        env={**os.environ, **faults.environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Opener(faults, process.stdout, process.stdin)
        process.stdin.close()
        assert process.wait(60) == 0


@pytest.mark.parametrize("times", [1, FOR_EVER], ids=["once", "from-then-on"])
@pytest.mark.parametrize("kind", Kind)
async def test_no_run_is_lost_while_a_damaged_history_is_rebuilt(
    tmp_path: Path, kind: Kind, times: int
) -> None:
    """The start fails, or it has all runs; the next one, whose calls all pass, has them in any case."""
    original, state = tmp_path / "original", tmp_path / "state"
    async with opened(original) as store:
        for run_id in RUNS.split():
            await finish(store, await insert(store, run_id), run_id)
    (original / f"{DATABASE}-damaged").write_text("found by a test")
    with opener(tmp_path) as one:
        for number in itertools.count():
            shutil.rmtree(state, ignore_errors=True)
            shutil.copytree(original, state)
            before = one.faults.struck
            one.faults.inject([kind], Way.FAIL, errno.EIO, after=number, times=times)
            first = one.say(str(state))
            one.faults.lift()
            about = f"{kind.name} {number}: {first}"
            assert first == RUNS or first.startswith("failed: "), about
            assert one.say(str(state)) == RUNS, about
            if one.faults.struck == before:
                break
    assert number > 0, "no call was struck"


@pytest.mark.parametrize("times", [1, FOR_EVER], ids=["once", "from-then-on"])
@pytest.mark.parametrize("kind", [Kind.OPEN, Kind.WRITE, Kind.SYNC, Kind.MAKE])
def test_a_run_that_was_refused_is_in_no_later_history(tmp_path: Path, kind: Kind, times: int) -> None:
    """The server is killed then. A commit whose sync failed is in its file, for the next one to recover."""
    state, left = tmp_path / "state", tmp_path / "left"
    answers = []
    with opener(tmp_path) as one:
        for number in itertools.count():
            for folder in (state, left):
                shutil.rmtree(folder, ignore_errors=True)
            assert one.say(f"{ADMIT}{state}") == "opened"
            before = one.faults.struck
            one.faults.inject([kind], Way.FAIL, errno.EIO, after=number, times=times)
            answers.append(one.say("insert"))
            one.faults.lift()
            # What a server leaves that is killed now.
            shutil.copytree(state, left, symlinks=True)
            one.tell("close")
            assert one.say(str(left)) == {"refused": "", "admitted": "new"}[answers[-1]], f"call {number}"
            if one.faults.struck == before:
                break
    assert answers[-1] == "admitted"
    assert "refused" in answers
