"""The commands that start runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from notebook_runner.errors import NotebookRunnerError

from ._exit import HELP, ExitCode, code_of_error, code_of_run
from ._follow import follow
from ._group import Server, describe_error, usage_errors
from ._text import to_json
from ._types import duration, pair, papermill_value, size
from ._views import make_view

if TYPE_CHECKING:
    from collections.abc import Callable

    from notebook_runner._requests import StartOptions
    from notebook_runner.client import Client
    from notebook_runner.v1.notebook_runner_pb2 import Run

__all__ = ["run", "start"]

_OUTPUT_FILE = click.Path(dir_okay=False, path_type=Path)

_START_OPTIONS = [
    click.argument("notebook", required=False, type=click.Path(path_type=Path)),
    click.option("--server-path", metavar="PATH", help="Run this one, under the server's notebook root."),
    click.option(
        "-p",
        "--parameters",
        nargs=2,
        multiple=True,
        metavar="NAME VALUE",
        help="A parameter; the value is taken as True, False, None, int or float where it is one.",
    ),
    click.option(
        "-r",
        "--parameters-raw",
        nargs=2,
        multiple=True,
        metavar="NAME VALUE",
        help="A parameter whose value is a string.",
    ),
    click.option("-k", "--kernel", metavar="NAME", help="The kernelspec, instead of the notebook's own."),
    click.option(
        "--run-timeout", type=duration, metavar="TIME", help="How long the run may take: 90, 90s, 5m, 2h."
    ),
    click.option("--cell-timeout", type=duration, metavar="TIME", help="How long one cell may take."),
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


@click.command()
@_start_options
@click.option("--json", "as_json", is_flag=True, help="Print the run as JSON instead of its id.")
@click.pass_obj
def start(server: Server, /, notebook: Path | None, as_json: bool, **options: Any) -> None:
    """Start NOTEBOOK and print the run's id.

    The run goes on; `notebook-runner progress` follows it. Without NOTEBOOK and --server-path
    the server runs its default notebook.
    """
    with server.connect() as client:
        admitted = _admit(client, notebook, options)
    click.echo(to_json(admitted) if as_json else admitted.run_id)


@click.command(epilog=HELP)
@_start_options
@click.option("-o", "--output", type=_OUTPUT_FILE, help="Write the executed notebook, however it ended.")
@click.option("--html", type=_OUTPUT_FILE, help="Write it as HTML, however it ended.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per event.")
@click.pass_context
def run(
    ctx: click.Context,
    /,
    notebook: Path | None,
    output: Path | None,
    html: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Run NOTEBOOK and show what happens until it has ended.

    Without NOTEBOOK and --server-path the server runs its default notebook. Ctrl-C leaves the run
    running and says how to get back to it.
    """
    server: Server = ctx.obj
    with server.connect() as client:
        admitted = _admit(client, notebook, options)
        ended = follow(ctx, client, admitted.run_id, make_view(as_json=as_json))
        saved = _save(client, ended, {"notebook": output, "html": html})
    ctx.exit(code_of_run(ended) or saved)


def _admit(client: Client, notebook: Path | None, options: dict[str, Any]) -> Run:
    with usage_errors():
        try:
            return client.start(notebook, **_translated(options))
        except KeyboardInterrupt:
            click.echo("interrupted before the server answered; it may have started the run", err=True)
            raise


def _translated(options: dict[str, Any]) -> StartOptions:
    raw, typed = options["parameters_raw"], options["parameters"]
    result: StartOptions = {
        "parameters": {**{name: papermill_value(text) for name, text in typed}, **dict(raw)},
        "environment": dict(options["env"]),
        "labels": dict(options["label"]),
        "memory_limit": options["memory_limit"] or 0,
        "cell_output_limit": options["cell_output_limit"] or 0,
        "run_output_limit": options["run_output_limit"] or 0,
        "process_limit": options["process_limit"] or 0,
        "kernel_name": options["kernel"] or "",
        "allow_errors": options["allow_errors"],
    }
    # An absent one and a zero are two things here.
    for name in ("server_path", "run_timeout", "cell_timeout", "output_timeout", "retention", "request_id"):
        if options[name] is not None:
            result[name] = options[name]
    return result


def _save(client: Client, ended: Run, files: dict[str, Path | None]) -> ExitCode:
    code = ExitCode.SUCCEEDED
    for name, file in files.items():
        if file is None:
            continue
        try:
            client.save_output(file, ended.run_id, format=name)
        except NotebookRunnerError as error:
            # The other file, and the exit code that tells how the run ended, matter more.
            click.echo(f"error: {file} was not written: {describe_error(error)}", err=True)
            code = code_of_error(error)
        else:
            click.echo(f"wrote {file}", err=True)
    return code
