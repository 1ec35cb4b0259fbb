"""The largest memory of a process, which the programs that it starts inherit."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration

MIB = 1 << 20
# The process that grows is one of its own: the test's must not be large.
GROWS = """
import os, subprocess, sys
from notebook_runner_server.confinement import confine
from notebook_runner_server.execution.own_peak import own_peak

own_peak.prepare()
confine.set_dumpable(False)
grown = b"x" * (300 << 20)
del grown
if sys.argv[1] == "forget":
    own_peak.forget()
started = subprocess.Popen(["true"])
print(os.wait4(started.pid, 0)[2].ru_maxrss * 1024)
"""


@pytest.mark.parametrize(("how", "is_inherited"), [("keep", True), ("forget", False)])
def test_what_a_started_program_inherits(how: str, is_inherited: bool) -> None:
    """It counts the earlier memory of the process that starts it as its own, unless that is forgotten."""
    done = subprocess.run([sys.executable, "-c", GROWS, how], check=True, capture_output=True, text=True)
    assert (int(done.stdout) > 300 * MIB) is is_inherited
