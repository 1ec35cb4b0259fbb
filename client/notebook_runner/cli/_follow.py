"""Following a run in a view, until it has ended or the reader has enough."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from notebook_runner._states import is_terminal
from notebook_runner.errors import Unavailable
from notebook_runner.v1.notebook_runner_pb2 import Run

from ._exit import ExitCode

if TYPE_CHECKING:
    from notebook_runner.client import Client

    from ._group import Server
    from ._views import View

__all__ = ["follow"]


def follow(ctx: click.Context, client: Client, run_id: str, view: View, **request: Any) -> Run:
    """Show a run until it has ended, and answer it as it was last told. Leaves the command on Ctrl-C."""
    server: Server = ctx.obj
    run = Run(run_id=run_id)
    try:
        with view:
            for event in client.progress(run_id, **request):
                view.event(event)
                run = event.run_changed if event.HasField("run_changed") else run
    except KeyboardInterrupt:
        click.echo(f"\nrun {run.run_id} goes on\n{server.hint(run)}", err=True)
        ctx.exit(ExitCode.CTRL_C)
    except Unavailable:
        click.echo(f"lost the server; run {run.run_id} may go on\n{server.hint(run)}", err=True)
        raise
    if is_terminal(run.state):
        view.ended(run)
    return run
