"""The processor time of processes: while they live, and when they are reaped."""

import os
import subprocess
import sys

import pytest

from notebook_runner_server.execution.processes import RunProcesses, processor_seconds

pytestmark = pytest.mark.integration

BURN = "import time\nwhile time.process_time() < {}: pass\n"
# It has burned 0.3 s itself, and 0.3 s in a child that it has reaped; says how much that was with the starts
# of both, and does nothing more.
BURNT = f"""
import resource, subprocess, sys
subprocess.run([sys.executable, '-c', {BURN.format(0.3)!r}], check=True)
{BURN.format(0.3)}
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(sum(one.ru_utime + one.ru_stime for one in used), flush=True)
sys.stdin.read()
"""
# What the process uses to say it, at most. What is counted twice would be far more.
REST = 0.2


def test_a_living_process_counts_with_its_reaped_children() -> None:
    """Its own time is exact, that of children to a hundredth of a second; a process that is gone has none."""
    command = [sys.executable, "-c", BURNT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        used = float(process.stdout.readline())
        assert used >= 0.6
        assert used - 0.03 <= processor_seconds(process.pid) < used + REST
        process.communicate()
    assert processor_seconds(process.pid) == 0


def test_reaped_processes_count_once() -> None:
    """A process counts when it is reaped, with its reaped children; one that has not ended does not count."""
    run = RunProcesses()
    command = [sys.executable, "-c", BURNT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        used = float(process.stdout.readline())
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
    assert used <= run.reaped.cpu_seconds < used + REST
    assert run.reaped.peak_bytes > 1024 * 1024
