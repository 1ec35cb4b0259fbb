"""The command that prints what a notebook printed, and nothing else."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from ._exit import ExitCode
from ._options import json_option, run_argument
from ._terminal import write_printed
from ._text import dump

if TYPE_CHECKING:
    from ._group import Server

__all__ = ["logs"]


@click.command()
@run_argument
@click.option("-f", "--follow", is_flag=True, help="Keep printing until the run ends.")
@json_option("each piece of text, with its cell and time")
@click.pass_context
def logs(ctx: click.Context, /, *, run_id: str, follow: bool, as_json: bool) -> None:
    """Print what a notebook printed.

    Standard output and standard error each go to the same stream. Without RUN_ID, uses the newest run.
    Ctrl-C leaves the run running. The exit code does not depend on how the run ended.
    """
    server: Server = ctx.obj
    with server.connect() as client:
        try:
            for event in client.progress(run_id, snapshot_only=not follow):
                if event.cell_output.HasField("stream"):
                    _print(event, as_json=as_json)
        except KeyboardInterrupt:
            ctx.exit(ExitCode.CTRL_C)


def _print(event: Any, *, as_json: bool) -> None:
    stream = event.cell_output.stream
    if as_json:
        told = {
            "time": event.time.ToJsonString(),
            "cell_index": event.cell_output.cell_index,
            "name": stream.name,
            "text": stream.text,
        }
        click.echo(dump(told))
        return
    target = sys.stderr if stream.name == "stderr" else sys.stdout
    write_printed(target, stream.text)
