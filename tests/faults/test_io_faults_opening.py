"""A damaged history is rebuilt while file operations fail: at every call in turn, and no run is lost."""

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
from tests.runs.stores import finish, insert, opened

pytestmark = [pytest.mark.integration, needs_compiler]

PROGRAM = Path(__file__).with_name("state_opener.py")
DATABASE = "notebook-runner.db"
RUNS = "run-0 run-1 run-2"


class Opener:
    """A process that opens state folders, and meets faults."""

    def __init__(self, faults: IoFaults, answers: IO[str], folders: IO[str]) -> None:
        self.faults = faults
        self._answers, self._folders = answers, folders

    def open(self, folder: Path) -> str:
        """The runs of a state folder."""
        self._folders.write(f"{folder}\n")
        self._folders.flush()
        return self._answers.readline().strip()


@contextmanager
def opener(folder: Path) -> Iterator[Opener]:
    """Such a process; faults concern what is below `state` in the folder."""
    faults = IoFaults(folder, folder / "state")
    with subprocess.Popen(
        [sys.executable, str(PROGRAM)],
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
            first = one.open(state)
            one.faults.lift()
            about = f"{kind.name} {number}: {first}"
            assert first == RUNS or first.startswith("failed: "), about
            assert one.open(state) == RUNS, about
            if one.faults.struck == before:
                break
    assert number > 0, "no call was struck"
