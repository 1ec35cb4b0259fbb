"""The command `notebook-runner`: starts runs, follows them, reads their results, ends them."""

from __future__ import annotations

from ._group import main
from ._runs import kill, list_runs, output, progress
from ._start import run, start

__all__ = ["main"]

for _command in (run, start, progress, output, kill, list_runs):
    main.add_command(_command)
