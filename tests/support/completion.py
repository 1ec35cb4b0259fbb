"""The command as a shell calls it to complete a line, for a busy machine."""

import sys

_PROGRAM = """
from notebook_runner.cli import _options, main
_options.COMPLETION_TIMEOUT = 60.0
main(prog_name="notebook-runner")
"""
PATIENT = (sys.executable, "-c", _PROGRAM)
"""It waits a minute for the server. The command itself offers no names rather than keep a person waiting."""
