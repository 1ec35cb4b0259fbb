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
    click.option(
        "--server-path", metavar="PATH", help="Run the notebook at PATH under the server's notebook root."
    ),
    click.option("--notebook-uri", metavar="URI", help="Run the notebook at URI, which the server reads."),
    parameter_options,
    click.option(
        "--help-notebook",
        is_flag=True,
        help="Show NOTEBOOK's parameters with types, defaults and comments, and exit.",
    ),
    click.option(
        "-k",
        "--kernel",
        metavar="NAME",
        shell_complete=complete_kernel,
        help="Kernelspec to use instead of the notebook's own.",
    ),
    click.option("--output-uri", metavar="URI", help="Have the server write the executed notebook to URI."),
    click.option(
        "--run-timeout", type=duration, metavar="TIME", help="Maximum duration of the run: 90, 90s, 5m, 2h."
    ),
    click.option(
        "--cell-timeout",
        "--execution-timeout",
        "cell_timeout",
        type=duration,
        metavar="TIME",
        help="Maximum duration of a cell.",
    ),
    click.option(
        "--output-timeout", type=duration, metavar="TIME", help="Maximum time a cell may go without output."
    ),
    click.option("--allow-errors", is_flag=True, help="Continue after a cell that raises an exception."),
    click.option(
        "--env",
        multiple=True,
        type=pair,
        metavar="NAME=VALUE",
        help="Set an environment variable of the kernel.",
    ),
    click.option(
        "--memory-limit",
        type=size,
        metavar="BYTES",
        help="Maximum memory of all processes: bytes, 512Mi, 2Gi.",
    ),
    click.option(
        "--cell-output-limit",
        type=size,
        metavar="BYTES",
        help="Maximum output of a cell. Further output is cut.",
    ),
    click.option(
        "--run-output-limit",
        type=size,
        metavar="BYTES",
        help="Maximum output of all cells. Further output is cut.",
    ),
    click.option("--process-limit", type=int, metavar="N", help="Maximum number of concurrent processes."),
    click.option(
        "-l",
        "--label",
        multiple=True,
        type=pair,
        metavar="NAME=VALUE",
        help="Set a label to find the run by.",
    ),
    click.option(
        "--retention", type=duration, metavar="TIME", help="How long to keep the run after it ends: 12h, 7d."
    ),
    click.option(
        "--request-id", metavar="ID", help="Make the command safe to repeat: one ID starts one run."
    ),
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

    The run continues in the background; follow it with `notebook-runner watch`. Without NOTEBOOK,
    --server-path and --notebook-uri, the server runs its default notebook. If NOTEBOOK is -, it is
    read from standard input.
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
    """Run NOTEBOOK and follow the run until it ends.

    Without NOTEBOOK, --server-path and --notebook-uri, the server runs its default notebook.
    If NOTEBOOK is -, it is read from standard input. Ctrl-C asks whether to kill the run or leave
    it running.
    """
    if help_notebook:
        show_parameters(notebook, as_json=as_json)
        return
    results = OutputOptions.of(options, as_json=as_json)
    view = make_view(as_json=as_json, quiet=quiet, on_stderr=results.uses_stdout)
    server: Server = ctx.obj
    with server.connect() as client:
        admitted = _admit(client, notebook, options)
        ended = follow(ctx, client, admitted.run_id, view, asks=not as_json)
        saved = results.save(client, ended, quiet=quiet)
    ctx.exit(code_of_run(ended) or saved)


def _admit(client: Client, notebook: Path | None, options: dict[str, Any]) -> Run:
    content: bytes | Path | None = notebook
    if str(notebook) == STANDARD_STREAM:
        content = sys.stdin.buffer.read()
    elif notebook and not notebook.exists():
        hint = "For a notebook under the server's notebook root, use --server-path."
        raise click.UsageError(f"No such local notebook: {notebook}. {hint}")
    with usage_errors():
        try:
            return client.start(content, **_translated(options)).pb
        except KeyboardInterrupt:
            click.echo("interrupted before the server answered; the run may have started", err=True)
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
    # Here, absent differs from zero.
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
