"""The processor time of processes: while they live, and when they are reaped."""

import os
import subprocess
import sys

import pytest

from notebook_runner_server.execution.processes import RunProcesses, processor_seconds

pytestmark = pytest.mark.integration

BURN = "import time\nwhile time.process_time() < {}: pass\n"
# It has burned 0.3 s itself, and 0.3 s in a child that it has reaped.
BURNT = (
    f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN.format(0.3)!r}], check=True)\n"
    f"{BURN.format(0.3)}print(flush=True)\nsys.stdin.read()"
)


def test_a_living_process_counts_with_its_reaped_children() -> None:
    """Its own time is exact, that of children to a hundredth of a second; a process that is gone has none."""
    command = [sys.executable, "-c", BURNT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert 0.57 <= processor_seconds(process.pid) < 2
        process.communicate()
    assert processor_seconds(process.pid) == 0


def test_reaped_processes_count_once() -> None:
    """A process counts when it is reaped, with its reaped children; one that has not ended does not count."""
    run = RunProcesses()
    command = [sys.executable, "-c", BURNT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert run.wait(process.pid) is None
        assert process.pid not in run.reaped
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        status = run.wait(process.pid)
        assert status is not None
        assert os.WTERMSIG(status) == 9
        assert process.pid in run.reaped
        with pytest.raises(ChildProcessError):
            run.wait(process.pid)
    assert 0.6 <= run.reaped.cpu_seconds < 2
    assert run.reaped.peak_bytes > 1024 * 1024
