"""The commands for existing runs."""

from __future__ import annotations

import itertools
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from notebook_runner._states import ACTIVE, is_terminal, state_name, to_kill

from ._exit import HELP, ExitCode, code_of_run
from ._follow import follow
from ._options import complete_format, complete_state, json_option, quiet_option, run_argument
from ._results import STANDARD_STREAM
from ._terminal import bytes_to, write_printed
from ._text import age, dump, elapsed, one_line, to_json
from ._types import duration, pair, rows_of, state
from ._views import make_view

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from notebook_runner.client import Client
    from notebook_runner.v1.notebook_runner_pb2 import KillResponse, Run, RunState

    from ._group import Server

__all__ = ["kill", "list_runs", "logs", "output", "watch"]

# The server's maximum page size.
MAX_PAGE = 1000


@click.command(epilog=HELP)
@run_argument
@click.option(
    "--after-sequence",
    type=click.IntRange(min=0),
    default=0,
    help="Show only events after this sequence number.",
)
@click.option("--no-output", is_flag=True, help="Omit what cells print and display.")
@click.option("--snapshot", is_flag=True, help="Print the current state and exit.")
@quiet_option
@json_option("each event")
@click.pass_context
def watch(
    ctx: click.Context,
    /,
    *,
    run_id: str,
    after_sequence: int,
    no_output: bool,
    snapshot: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Follow a run until it ends.

    Shows past events first. Without RUN_ID, follows the newest run. Ctrl-C asks whether to kill the
    run or leave it running.
    """
    server: Server = ctx.obj
    with server.connect() as client:
        run = follow(
            ctx,
            client,
            run_id or _newest(client),
            make_view(as_json=as_json, quiet=quiet),
            asks=not as_json,
            after_sequence=after_sequence,
            omit_cell_output=no_output,
            snapshot_only=snapshot,
        )
    ctx.exit(code_of_run(run))


@click.command()
@run_argument
@click.option("-f", "--follow", is_flag=True, help="Keep printing until the run ends.")
@json_option("each piece of text with its cell and time")
@click.pass_context
def logs(ctx: click.Context, /, *, run_id: str, follow: bool, as_json: bool) -> None:
    """Print what a notebook printed.

    What the notebook printed to standard error goes to standard error, all other text to standard output.
    Without RUN_ID, uses the newest run. Ctrl-C leaves the run running. The exit code does not depend on how
    the run ended.
    """
    server: Server = ctx.obj
    with server.connect() as client:
        try:
            for event in client.progress(run_id, snapshot_only=not follow):
                if event.pb.cell_output.HasField("stream"):
                    _print_text(event.pb, as_json=as_json)
        except KeyboardInterrupt:
            ctx.exit(ExitCode.CTRL_C)


@click.command()
@run_argument
@click.option(
    "-f",
    "--format",
    "artefact",
    default="notebook",
    show_default=True,
    metavar="FORMAT",
    shell_complete=complete_format,
    help="Format of the result; see below.",
)
@click.option(
    "-o",
    "--output",
    "file",
    type=click.Path(dir_okay=False, path_type=Path, allow_dash=True),
    metavar="FILE",
    help="Write to FILE (- for standard output).",
)
@click.option("--no-input", is_flag=True, help="Omit the code, in formats that nbconvert creates.")
@quiet_option
@json_option("what was written")
@click.pass_obj
def output(
    server: Server,
    /,
    run_id: str,
    artefact: str,
    file: Path | None,
    no_input: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Get the result of a run.

    While the run is active, gets the result so far. Without RUN_ID, uses the newest run. Without
    --output, writes to standard output.

    \b
    Formats:
      notebook            the executed notebook
      html, markdown, …   converted by nbconvert, if the operator allows the format
      error               how the run ended, with the traceback
      files               a zip archive of the run's folder
    """  # noqa: D301 - the control character tells click to keep the lines
    if str(file) == STANDARD_STREAM:
        file = None
    if file is None and as_json:
        raise click.UsageError("--json needs --output FILE, because the result goes to standard output.")
    if file is None and artefact == "files" and sys.stdout.isatty():
        raise click.UsageError("Cannot write a zip archive to a terminal. Use --output FILE.")
    with server.connect() as client:
        run_id = run_id or _newest(client)
        client.save_output(file or bytes_to(sys.stdout), run_id, format=artefact, omit_input=no_input)
    if file and as_json:
        written = {"run_id": run_id, "format": artefact, "file": str(file), "bytes": file.stat().st_size}
        click.echo(dump(written))
    elif file and not quiet:
        click.echo(f"wrote {file}", err=True)


@click.command()
@run_argument
@click.option(
    "--grace-period",
    type=duration,
    metavar="TIME",
    default="0",
    help="Interrupt, then wait TIME before killing.",
)
@quiet_option
@json_option("the response")
@click.pass_obj
def kill(server: Server, /, run_id: str, grace_period: float, quiet: bool, as_json: bool) -> None:
    """Kill a run, and return when all its processes are gone.

    Without RUN_ID, kills the newest run that is executing, else the newest that is queued, else the newest;
    the command prints which one before it kills it. A run that has already ended stays as it is: the command
    says so, and the exit code is 0.
    """
    with server.connect() as client:
        if not run_id:
            run = _run_to_kill(client)
            run_id = run.run_id if run else ""
            if run and not (quiet or as_json or is_terminal(run.state)):
                click.echo(
                    f"killing run {one_line(run_id)}: {_notebook(run)}, {state_name(run.state)}", err=True
                )
        killed = client.kill(run_id, grace_period=grace_period).pb
    if as_json:
        click.echo(to_json(killed))
    elif not quiet:
        click.echo(_how_killed(killed))


@click.command("list")
@click.option(
    "-s",
    "--state",
    "states",
    multiple=True,
    type=state,
    metavar="STATE",
    shell_complete=complete_state,
    help="List only runs in this state.",
)
@click.option(
    "-l",
    "--label",
    "labels",
    multiple=True,
    type=pair,
    metavar="NAME=VALUE",
    help="List only runs with this label.",
)
@click.option(
    "-n", "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Maximum number of runs."
)
@json_option("each run")
@click.pass_obj
def list_runs(
    server: Server,
    /,
    states: tuple[RunState.ValueType, ...],
    labels: tuple[tuple[str, str], ...],
    limit: int,
    as_json: bool,
) -> None:
    """List runs, newest first."""
    damaged: list[str] = []
    with server.connect() as client:
        found = client.list(
            states=states,
            labels=dict(labels),
            page_size=min(limit, MAX_PAGE),
            on_damaged=damaged.append,
        )
        runs = [run.pb for run in itertools.islice(found, limit)]
    for line in map(to_json, runs) if as_json else _table(runs):
        click.echo(line)
    if damaged:
        count = "1 run is" if len(damaged) == 1 else f"{len(damaged)} runs are"
        names = ", ".join(map(one_line, damaged))
        click.echo(f"{count} damaged: {names}. See docs/how-to/damaged.md", err=True)


def _run_to_kill(client: Client) -> Run | None:
    active = to_kill(run.pb for run in client.list(states=ACTIVE))
    return active or next((run.pb for run in client.list(page_size=1)), None)


def _how_killed(killed: KillResponse) -> str:
    run, state = f"run {one_line(killed.run.run_id)}", state_name(killed.run.state)
    if killed.already_ended:
        return f"{run} had already ended: {state}"
    count = killed.processes_ended
    return f"{run} {state}, {count} process{'es' * (count != 1)} killed by force"


def _newest(client: Client) -> str:
    damaged: list[str] = []
    run = next(client.list(page_size=1, on_damaged=damaged.append), None)
    # A damaged run is newer than the first valid one; the server then reports the damage.
    return next(iter(damaged), run.id if run else "")


def _table(runs: Iterable[Run]) -> Iterator[str]:
    rows = [("RUN", "STATE", "CELLS", "AGE", "TOOK", "NOTEBOOK"), *map(_row, runs)]
    # Scripts get whole lines.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    return rows_of(rows, width)


def _row(run: Run) -> tuple[str, str, str, str, str, str]:
    took = elapsed(run)
    return (
        one_line(run.run_id),
        state_name(run.state),
        f"{run.cells_completed}/{run.cells_total}",
        age(time.time() - run.create_time.ToNanoseconds() / 1e9),
        "" if took is None else f"{took:.1f} s",
        _notebook(run),
    )


def _notebook(run: Run) -> str:
    return one_line(run.notebook_path or run.notebook_uri) or "(inline)"


def _print_text(event: Any, *, as_json: bool) -> None:
    stream = event.cell_output.stream
    if as_json:
        piece = {
            "time": event.time.ToJsonString(),
            "cell_index": event.cell_output.cell_index,
            "name": stream.name,
            "text": stream.text,
        }
        click.echo(dump(piece))
        return
    target = sys.stderr if stream.name == "stderr" else sys.stdout
    write_printed(target, stream.text)
