"""The command `notebook-runner`: starts, follows and kills runs, and reads their results."""

from __future__ import annotations

from ._complete import completion
from ._doctor import doctor
from ._group import main
from ._health import health
from ._runs import kill, list_runs, logs, output, watch
from ._start import run, start

__all__ = ["main"]

for _command in (run, start, watch, logs, output, kill, list_runs, doctor, health, completion):
    main.add_command(_command)
