"""The command `notebook-runner`: starts, follows and kills runs, and reads their results."""

from __future__ import annotations

from ._complete import completion
from ._doctor import doctor
from ._group import main
from ._health import health
from ._login import login, logout
from ._mcp import mcp
from ._runs import delete, kill, list_runs, logs, output, show, watch
from ._start import rerun, run, start

__all__ = ["main"]

for _command in (
    run,
    start,
    rerun,
    watch,
    logs,
    output,
    show,
    list_runs,
    kill,
    delete,
    doctor,
    health,
    login,
    logout,
    mcp,
    completion,
):
    main.add_command(_command)
