"""The commands that start runs."""

from __future__ import annotations

import functools
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from notebook_runner._printable import one_line
from notebook_runner._requests import name_of
from notebook_runner._waiting import is_temporary
from notebook_runner.errors import RpcFailed

from ._again import notebook_again, parameters_again
from ._exit import HELP, code_of_run
from ._follow import follow
from ._group import Server, usage_errors
from ._help_notebook import show_parameters
from ._options import (
    complete_kernel,
    complete_label,
    complete_notebook,
    json_option,
    quiet_option,
    run_argument,
)
from ._papermill import PapermillCommand
from ._parameters import parameter_options, parameters_of
from ._results import STANDARD_STREAM, OutputOptions, result_options
from ._retries import RETRY_OPTIONS, retry_of
from ._text import to_json
from ._types import duration, pair, size
from ._views import make_view
from ._waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from notebook_runner._requests import StartOptions
    from notebook_runner.v1.notebook_runner_pb2 import Run

    from ._calls import CommandClient

__all__ = ["rerun", "run", "start"]


_START_OPTIONS: list[Callable[..., Any]] = [
    click.argument(
        "notebook",
        required=False,
        type=click.Path(path_type=Path, allow_dash=True),
        shell_complete=complete_notebook,
    ),
    click.option(
        "--server-path", metavar="PATH", help="Run the notebook at PATH under the server's notebook root."
    ),
    click.option("--notebook-uri", metavar="URI", help="Run the notebook at URI, which the server reads."),
    click.option(
        "--help-notebook",
        is_flag=True,
        help="Show NOTEBOOK's parameters with types, defaults and comments, and exit.",
    ),
]
_RUN_OPTIONS: list[Callable[..., Any]] = [
    parameter_options,
    click.option("--name", metavar="TEXT", help="Name for lists. Default: the notebook's file name."),
    click.option(
        "--files",
        multiple=True,
        type=click.Path(exists=True, path_type=Path),
        metavar="PATH",
        help="Send a file or folder to the run's working folder, such as data that the notebook reads.",
    ),
    click.option(
        "-k",
        "--kernel",
        metavar="NAME",
        shell_complete=complete_kernel,
        help="Kernelspec to use instead of the notebook's own.",
    ),
    click.option("--output-uri", metavar="URI", help="Have the server write the executed notebook to URI."),
    click.option("--notify-uri", metavar="URI", help="Have the server send a POST to URI when the run ends."),
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
        metavar="SIZE",
        help="Maximum memory of all processes: 512Mi, 2Gi.",
    ),
    click.option(
        "--cell-output-limit",
        type=size,
        metavar="SIZE",
        help="Maximum output of a cell. Further output is cut.",
    ),
    click.option(
        "--run-output-limit",
        type=size,
        metavar="SIZE",
        help="Maximum output of all cells. Further output is cut.",
    ),
    click.option("--process-limit", type=int, metavar="N", help="Maximum number of concurrent processes."),
    click.option(
        "-l",
        "--label",
        multiple=True,
        type=pair,
        metavar="NAME=VALUE",
        shell_complete=complete_label,
        help="Set a label to find the run by.",
    ),
    click.option(
        "--retention", type=duration, metavar="TIME", help="How long to keep the run after it ends: 12h, 7d."
    ),
    click.option(
        "--request-id", metavar="ID", help="Make the command safe to repeat: one ID starts one run."
    ),
    click.option(
        "--wait",
        is_flag=True,
        help="If the server is busy, or your share of its queue is full, wait until it accepts the run.",
    ),
    click.option(
        "--priority",
        type=click.IntRange(-100, 100),
        metavar="N",
        help="Order among your queued runs, from -100 to 100: higher numbers start first.",
    ),
    *RETRY_OPTIONS,
]


def _options(options: list[Callable[..., Any]]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@click.command(cls=PapermillCommand)
@_options(_START_OPTIONS + _RUN_OPTIONS)
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
        admitted = _admit(client, _read(notebook), _translated(options, notebook), wait=options["wait"])
    click.echo(to_json(admitted) if as_json else one_line(admitted.run_id))


@click.command(cls=PapermillCommand, epilog=HELP)
@_options(_START_OPTIONS + _RUN_OPTIONS)
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
    If NOTEBOOK is -, it is read from standard input. With --retries, follows the run into its next
    attempts; the exit code and the results are those of the last one. Ctrl-C asks whether to kill the run
    or leave it running.
    """
    if help_notebook:
        show_parameters(notebook, as_json=as_json)
        return
    results = OutputOptions.of(options, as_json=as_json)
    content, translated = _read(notebook), _translated(options, notebook)
    server: Server = ctx.obj
    with server.connect() as client:
        wait = options["wait"]
        _run(ctx, client, content, translated, results, wait=wait, as_json=as_json, quiet=quiet)


@click.command(cls=PapermillCommand, epilog=HELP)
@run_argument
@_options(_RUN_OPTIONS)
@result_options
@quiet_option
@json_option("each event")
@click.pass_context
def rerun(ctx: click.Context, /, named: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Run the notebook of a run again.

    Without RUN, repeats the newest run. Takes the notebook as the run had it, or for a run by path or URI
    the notebook that is there now. Name, kernel, labels, parameters, priority and retries are those of the
    run; options add to them or replace them. Limits, environment and files are not taken: give them again.
    """
    results = OutputOptions.of(options, as_json=as_json)
    server: Server = ctx.obj
    with server.connect() as client:
        before = client.find_run(named)
        wait, translated = options["wait"], _translated(options, None, before)
        content = _again(client, before, translated)
        _run(ctx, client, content, translated, results, wait=wait, as_json=as_json, quiet=quiet)


def _run(
    ctx: click.Context,
    client: CommandClient,
    notebook: bytes | None,
    options: StartOptions,
    results: OutputOptions,
    *,
    wait: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Start a run, follow it, save its results, and exit with its code."""
    server: Server = ctx.obj
    view = make_view(as_json=as_json, quiet=quiet, on_stderr=results.uses_stdout)
    admitted = _admit(client, notebook, options, wait=wait, quiet=quiet)
    later = functools.partial(results.later, server)
    ended = follow(ctx, client, admitted.run_id, view, asks=not as_json, later=later)
    saved = results.save(server, client, ended, quiet=quiet)
    ctx.exit(code_of_run(ended) or saved)


def _read(notebook: Path | None) -> bytes | None:
    """Read the local notebook.

    Raises:
        click.UsageError: It does not exist.
        OSError: It cannot be read.
    """
    if notebook is None:
        return None
    if str(notebook) == STANDARD_STREAM:
        return sys.stdin.buffer.read()
    if not notebook.exists():
        hint = "For a notebook under the server's notebook root, use --server-path."
        raise click.UsageError(f"No such local notebook: {notebook}. {hint}")
    if notebook.is_dir():
        raise click.UsageError(f"{notebook} is a folder. Name a notebook in it.")
    return notebook.read_bytes()


def _again(client: CommandClient, before: Run, options: StartOptions) -> bytes | None:
    """Fill the options of a run from an earlier run, and return its notebook, unless the options name it."""
    given = options.get("parameters", {})
    options["parameters"] = {**parameters_again(before.parameters_json), **given}
    options["labels"] = {**before.labels, **options.get("labels", {})}
    options["kernel_name"] = options.get("kernel_name") or before.kernel_name
    options["name"] = options.get("name") or before.name
    options.setdefault("priority", before.priority)
    if before.notebook_path:
        options["server_path"] = before.notebook_path
    elif before.notebook_uri:
        options["notebook_uri"] = before.notebook_uri
    else:
        executed = client.output(before.run_id)
        return notebook_again(executed, was_injected=bool(before.parameters_json))
    return None


def _admit(
    client: CommandClient, notebook: bytes | None, options: StartOptions, *, wait: bool, quiet: bool = False
) -> Run:
    """Start a run; if the server is busy and `wait` is set, as soon as the server accepts it."""
    # The same for each attempt, so that they cannot start more than one run.
    options.setdefault("request_id", str(uuid.uuid4()))
    with usage_errors(), Waiting(client, quiet=quiet) as waiting:
        while True:
            try:
                return client.start_run(notebook, **options)
            except RpcFailed as error:
                if not (wait and is_temporary(error)):
                    raise
                waiting.pause(error)
            except KeyboardInterrupt:
                click.echo("interrupted before the server answered; the run may have started", err=True)
                raise


def _translated(options: dict[str, Any], notebook: Path | None, before: Run | None = None) -> StartOptions:
    named = [notebook, options.get("server_path"), options.get("notebook_uri")]
    if sum(one is not None for one in named) > 1:
        raise click.UsageError("Set only one of NOTEBOOK, --server-path and --notebook-uri.")
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
        "notify_uri": options["notify_uri"] or "",
        "allow_errors": options["allow_errors"],
        "name": options["name"] or ("" if str(notebook) == STANDARD_STREAM else name_of(notebook)),
    }
    if options["files"]:
        result["files"] = list(options["files"])
    # Here, absent differs from zero.
    for name in (
        "server_path",
        "notebook_uri",
        "run_timeout",
        "cell_timeout",
        "output_timeout",
        "retention",
        "request_id",
        "priority",
    ):
        if options.get(name) is not None:
            result[name] = options[name]
    if policy := retry_of(options, before):
        result["retry"] = policy
    return result
