"""The commands that start runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._exit import HELP, code_of_run
from ._follow import follow
from ._group import Server, usage_errors
from ._help_notebook import show_parameters
from ._options import complete_kernel, json_option, quiet_option
from ._papermill import PapermillCommand
from ._parameters import parameter_options, parameters_of
from ._results import STANDARD_STREAM, OutputOptions, result_options
from ._text import one_line, to_json
from ._types import duration, pair, size
from ._views import make_view

if TYPE_CHECKING:
    from collections.abc import Callable

    from notebook_runner._requests import StartOptions
    from notebook_runner.client import Client
    from notebook_runner.v1.notebook_runner_pb2 import Run

__all__ = ["run", "start"]

_START_OPTIONS: list[Callable[..., Any]] = [
    click.argument("notebook", required=False, type=click.Path(path_type=Path, allow_dash=True)),
    click.option("--server-path", metavar="PATH", help="Run this one, under the server's notebook root."),
    click.option("--notebook-uri", metavar="URI", help="Run this one, which the server reads."),
    parameter_options,
    click.option(
        "--help-notebook",
        is_flag=True,
        help="Show NOTEBOOK's parameters with types, defaults and comments, and run nothing.",
    ),
    click.option(
        "-k",
        "--kernel",
        metavar="NAME",
        shell_complete=complete_kernel,
        help="The kernelspec, instead of the notebook's own.",
    ),
    click.option("--output-uri", metavar="URI", help="Where the server writes the executed notebook."),
    click.option(
        "--run-timeout", type=duration, metavar="TIME", help="How long the run may take: 90, 90s, 5m, 2h."
    ),
    click.option(
        "--cell-timeout",
        "--execution-timeout",
        "cell_timeout",
        type=duration,
        metavar="TIME",
        help="How long one cell may take.",
    ),
    click.option(
        "--output-timeout", type=duration, metavar="TIME", help="How long a cell may go without output."
    ),
    click.option("--allow-errors", is_flag=True, help="Go on after a cell that raises."),
    click.option(
        "--env", multiple=True, type=pair, metavar="NAME=VALUE", help="An environment variable of the kernel."
    ),
    click.option(
        "--memory-limit", type=size, metavar="BYTES", help="Memory of all its processes: bytes, 512Mi, 2Gi."
    ),
    click.option(
        "--cell-output-limit", type=size, metavar="BYTES", help="Output of one cell; what is over is cut."
    ),
    click.option(
        "--run-output-limit", type=size, metavar="BYTES", help="Output of all cells; what is over is cut."
    ),
    click.option("--process-limit", type=int, metavar="N", help="How many processes it may have at once."),
    click.option(
        "-l", "--label", multiple=True, type=pair, metavar="NAME=VALUE", help="A label to find the run by."
    ),
    click.option(
        "--retention", type=duration, metavar="TIME", help="How long it is kept after its end: 12h, 7d."
    ),
    click.option("--request-id", metavar="ID", help="Makes the command safe to repeat: one id, one run."),
]


def _start_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_START_OPTIONS):
        command = option(command)
    return command


@click.command(cls=PapermillCommand)
@_start_options
@json_option("the run")
@click.pass_obj
def start(
    server: Server, /, notebook: Path | None, as_json: bool, help_notebook: bool, **options: Any
) -> None:
    """Start NOTEBOOK and print the run's id.

    The run goes on; `notebook-runner watch` follows it. Without NOTEBOOK, --server-path and
    --notebook-uri the server runs its default notebook. - reads it from standard input.
    """
    if help_notebook:
        show_parameters(notebook, as_json=as_json)
        return
    with server.connect() as client:
        admitted = _admit(client, notebook, options)
    click.echo(to_json(admitted) if as_json else one_line(admitted.run_id))


@click.command(cls=PapermillCommand, epilog=HELP)
@_start_options
@result_options
@quiet_option
@json_option("each event")
@click.pass_context
def run(
    ctx: click.Context,
    /,
    notebook: Path | None,
    as_json: bool,
    quiet: bool,
    help_notebook: bool,
    **options: Any,
) -> None:
    """Run NOTEBOOK and show what happens until it has ended.

    Without NOTEBOOK, --server-path and --notebook-uri the server runs its default notebook.
    - reads it from standard input. Ctrl-C asks whether to kill the run or to leave it running.
    """
    if help_notebook:
        show_parameters(notebook, as_json=as_json)
        return
    wanted = OutputOptions.of(options, as_json=as_json)
    view = make_view(as_json=as_json, quiet=quiet, on_stderr=wanted.uses_stdout)
    server: Server = ctx.obj
    with server.connect() as client:
        admitted = _admit(client, notebook, options)
        ended = follow(ctx, client, admitted.run_id, view, asks=not as_json)
        saved = wanted.save(client, ended, quiet=quiet)
    ctx.exit(code_of_run(ended) or saved)


def _admit(client: Client, notebook: Path | None, options: dict[str, Any]) -> Run:
    content: bytes | Path | None = notebook
    if str(notebook) == STANDARD_STREAM:
        content = sys.stdin.buffer.read()
    elif notebook and not notebook.exists():
        hint = "one under the server's notebook root is named by --server-path"
        raise click.UsageError(f"{notebook}: no such notebook here; {hint}")
    with usage_errors():
        try:
            return client.start(content, **_translated(options))
        except KeyboardInterrupt:
            click.echo("interrupted before the server answered; it may have started the run", err=True)
            raise


def _translated(options: dict[str, Any]) -> StartOptions:
    result: StartOptions = {
        "parameters": parameters_of(options),
        "environment": dict(options["env"]),
        "labels": dict(options["label"]),
        "memory_limit": options["memory_limit"] or 0,
        "cell_output_limit": options["cell_output_limit"] or 0,
        "run_output_limit": options["run_output_limit"] or 0,
        "process_limit": options["process_limit"] or 0,
        "kernel_name": options["kernel"] or "",
        "output_uri": options["output_uri"] or "",
        "allow_errors": options["allow_errors"],
    }
    # An absent one and a zero are two things here.
    for name in (
        "server_path",
        "notebook_uri",
        "run_timeout",
        "cell_timeout",
        "output_timeout",
        "retention",
        "request_id",
    ):
        if options[name] is not None:
            result[name] = options[name]
    return result
