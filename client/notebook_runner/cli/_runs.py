"""The commands for existing runs."""

from __future__ import annotations

import itertools
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from notebook_runner._attempts import repeated
from notebook_runner._printable import clean, one_line
from notebook_runner._states import is_terminal, state_name

from ._calls import MAX_PAGE
from ._details import details, table
from ._exit import HELP, ExitCode, code_of_run
from ._follow import follow
from ._list_watch import watch_runs
from ._log_printer import LogPrinter
from ._options import (
    complete_format,
    complete_label,
    complete_run,
    complete_state,
    is_confirmed,
    json_option,
    quiet_option,
    run_argument,
    yes_option,
)
from ._results import STANDARD_STREAM, check_folder
from ._terminal import bytes_to
from ._text import about, as_plain, dump, to_json
from ._types import duration, moment, pair, state
from ._views import make_view

if TYPE_CHECKING:
    from notebook_runner.v1.notebook_runner_pb2 import KillResponse, Run, RunState

    from ._group import Server

__all__ = ["delete", "kill", "list_runs", "logs", "output", "show", "watch"]

# Formats that only programs read.
NOT_FOR_PEOPLE = frozenset({"notebook", "html", "slides", "pdf", "webpdf"})


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
    named: str,
    after_sequence: int,
    no_output: bool,
    snapshot: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Follow a run until it ends.

    Shows past events first. If the server repeats the run, continues with the next attempt. Without RUN,
    follows the newest run. Ctrl-C asks whether to kill the run or leave it running.
    """
    server: Server = ctx.obj
    with server.connect() as client:
        run = follow(
            ctx,
            client,
            client.find_id(named),
            make_view(as_json=as_json, quiet=quiet),
            asks=not as_json,
            after_sequence=after_sequence,
            omit_cell_output=no_output,
            snapshot_only=snapshot,
            retries=not snapshot,
        )
    ctx.exit(code_of_run(run))


@click.command()
@run_argument
@click.option("-f", "--follow", is_flag=True, help="Keep printing until the run ends.")
@click.option("--no-display", is_flag=True, help="Print only printed text, without results and displays.")
@json_option("each piece of text with its cell and time")
@click.pass_context
def logs(ctx: click.Context, /, *, named: str, follow: bool, no_display: bool, as_json: bool) -> None:
    """Print what a notebook printed and displayed.

    What the notebook printed to standard error goes to standard error, all other text to standard output.
    Results and displays are printed as text if they are small, otherwise by type and size. Without RUN, uses
    the newest run. Ctrl-C leaves the run running. The exit code does not depend on how the run ended.
    """
    server: Server = ctx.obj
    printer = LogPrinter(as_json=as_json, displays=not no_display)
    with server.connect() as client:
        try:
            events = client.events(
                client.find_id(named),
                snapshot_only=not follow,
                on_lost=printer.lost,
                on_back=printer.back,
            )
            for event in events:
                printer.event(event)
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
    help="Write to FILE (- for standard output, even if it is a terminal).",
)
@click.option("--no-input", is_flag=True, help="Omit the code, in formats that nbconvert creates.")
@quiet_option
@json_option("what was written")
@click.pass_obj
def output(
    server: Server,
    /,
    named: str,
    artefact: str,
    file: Path | None,
    no_input: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Get the result of a run.

    While the run is active, gets the result so far. Without RUN, uses the newest run. Without --output,
    writes to standard output. On a terminal, long texts are shown page by page, and formats for programs
    need --output.

    \b
    Formats:
      notebook            the executed notebook
      html, markdown, …   converted by nbconvert, if the operator allows the format
      error               how the run ended, with the traceback
      files               a zip archive of the run's folder
    """  # noqa: D301 - the control character tells click to keep the lines
    is_explicit = str(file) == STANDARD_STREAM
    if is_explicit:
        file = None
    if file is None and as_json:
        raise click.UsageError("--json needs --output FILE, because the result goes to standard output.")
    check_folder(file)
    is_on_terminal = file is None and sys.stdout.isatty()
    if is_on_terminal and artefact == "files":
        raise click.UsageError("Cannot write a zip archive to a terminal. Use --output FILE.")
    if is_on_terminal and artefact in NOT_FOR_PEOPLE and not is_explicit:
        suffix = "ipynb" if artefact == "notebook" else artefact
        raise click.UsageError(
            f"The format {artefact!r} is not for reading on a terminal. Use --output done.{suffix}, "
            "pipe it to a program, or write it here with --output -. `logs` prints the output as text."
        )
    with server.connect() as client:
        run_id = client.find_id(named)
        if is_on_terminal and not is_explicit:
            _page(client.output(run_id, format=artefact, omit_input=no_input))
            return
        client.save_output(file or bytes_to(sys.stdout), run_id, format=artefact, omit_input=no_input)
    if file and as_json:
        written = {"run_id": run_id, "format": artefact, "file": str(file), "bytes": file.stat().st_size}
        click.echo(dump(written))
    elif file and not quiet:
        click.echo(f"wrote {file}", err=True)


@click.command()
@run_argument
@click.option("--values", is_flag=True, help="Print only the result values, as a JSON object.")
@json_option("the run")
@click.pass_obj
def show(server: Server, /, named: str, values: bool, as_json: bool) -> None:
    """Show everything about a run.

    Its state, notebook, times, parameters, labels and result values, and why it failed. Without RUN, shows
    the newest run.
    """
    with server.connect() as client:
        found = client.find_run(named)
    if values:
        click.echo(dump(as_plain(found).get("results", {})))
    elif as_json:
        click.echo(to_json(found))
    else:
        click.echo(details(found))


@click.command()
@click.argument("named", nargs=-1, required=True, metavar="RUN...", shell_complete=complete_run)
@yes_option
@quiet_option
@json_option("each deleted run")
@click.pass_context
def delete(ctx: click.Context, /, *, named: tuple[str, ...], yes: bool, quiet: bool, as_json: bool) -> None:
    """Delete ended runs with their history, results and files.

    Asks first on a terminal. What the server wrote to an --output-uri stays.
    """
    if not all(named):
        # An empty id is the newest run elsewhere, but here it comes from a variable that is not set.
        raise click.UsageError("RUN must not be empty: name the run to delete.")
    server: Server = ctx.obj
    with server.connect() as client:
        found = [client.find_run(one) for one in named]
        for run in {run.run_id: run for run in found}.values():
            what = f"run {run.run_id}: {about(run)}, {state_name(run.state)}"
            if not is_confirmed(ctx, f"Delete {what}?", yes=yes):
                ctx.exit(ExitCode.FAILED)
            deleted = client.delete_run(run.run_id)
            if as_json:
                click.echo(to_json(deleted))
            elif not quiet:
                click.echo(one_line(f"deleted {what}"))


@click.command()
@run_argument
@click.option(
    "--grace-period",
    type=duration,
    metavar="TIME",
    default="0",
    help="Interrupt, then wait TIME before killing.",
)
@click.option("--no-wait", is_flag=True, help="Return as soon as the kill is certain to be completed.")
@yes_option
@quiet_option
@json_option("the response")
@click.pass_context
def kill(
    ctx: click.Context,
    /,
    *,
    named: str,
    grace_period: float,
    no_wait: bool,
    yes: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Kill a run, and return when all its processes are gone.

    Without RUN, kills the newest run that is executing, else the newest that is queued, else the newest;
    on a terminal the command asks first, elsewhere it prints which one before it kills it. A run that has
    already ended stays as it is: the command says so, and the exit code is 0.
    """
    server: Server = ctx.obj
    with server.connect() as client:
        run_id = client.find_id(named) if named else ""
        if not named and (run := client.run_to_kill()):
            run_id = run.run_id
            if not is_terminal(run.state):
                what = one_line(f"run {run_id}: {about(run)}, {state_name(run.state)}")
                if not is_confirmed(ctx, f"Kill {what}?", yes=yes):
                    ctx.exit(ExitCode.FAILED)
                if not (quiet or as_json):
                    click.echo(f"killing {what}", err=True)
        killed = client.kill_run(run_id, grace_period, wait=not no_wait)
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
    shell_complete=complete_label,
    help="List only runs with this label.",
)
@click.option("--owner", metavar="NAME", default="", help="List only runs of this owner.")
@click.option(
    "--since",
    type=moment,
    metavar="TIME",
    help="List only runs started since TIME: 2h or 7d (ago), 2026-11-29, 2026-11-29T08:30.",
)
@click.option(
    "-n", "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Maximum number of runs."
)
@click.option("--watch", is_flag=True, help="Keep the list up to date until Ctrl-C.")
@json_option("each run, or with --watch each change")
@click.pass_context
def list_runs(
    ctx: click.Context,
    /,
    *,
    states: tuple[RunState.ValueType, ...],
    labels: tuple[tuple[str, str], ...],
    owner: str,
    since: float | None,
    limit: int,
    watch: bool,
    as_json: bool,
) -> None:
    """List runs, newest first.

    Shows their names and labels, why they failed, and whose they are if you see the runs of several owners.
    With --watch, a terminal shows a table that follows the changes of the runs; elsewhere, each run and then
    each change is a line.
    """
    server: Server = ctx.obj
    if watch:

        def is_wanted(run: Run) -> bool:
            return run.state in (states or (run.state,)) and (since is None or _created(run) >= since)

        try:
            with server.connect() as client:
                watch_runs(client, dict(labels), is_wanted, limit, as_json=as_json)
        except KeyboardInterrupt:
            ctx.exit(ExitCode.CTRL_C)
        return
    damaged: list[str] = []
    with server.connect() as client:
        found = client.list_runs(
            states=states,
            labels=dict(labels),
            owner=owner,
            page_size=min(limit, MAX_PAGE),
            on_damaged=damaged.append,
        )
        if since is not None:
            oldest = since
            found = itertools.takewhile(lambda run: _created(run) >= oldest, found)
        runs = list(itertools.islice(found, limit))
    for line in map(to_json, runs) if as_json else table(runs):
        click.echo(line)
    if damaged:
        count = "1 run is" if len(damaged) == 1 else f"{len(damaged)} runs are"
        names = ", ".join(map(one_line, damaged))
        click.echo(f"{count} damaged: {names}. See docs/how-to/damaged.md", err=True)


def _created(run: Run) -> float:
    return run.create_time.ToNanoseconds() / 1e9


def _how_killed(killed: KillResponse) -> str:
    run, state = f"run {one_line(killed.run.run_id)}", state_name(killed.run.state)
    if killed.already_ended:
        again = f"; it is {one_line(repeated(killed.run))}" if killed.run.retried_by else ""
        return f"{run} had already ended: {state}{again}"
    if not is_terminal(killed.run.state):
        return f"{run} is being killed"
    count = killed.processes_ended
    return f"{run} {state}, {count} process{'es' * (count != 1)} killed by force"


def _page(content: bytes) -> None:
    """Show a text on a terminal, page by page if it has more lines."""
    text = clean(content.decode(errors="replace"))
    if text.count("\n") < shutil.get_terminal_size().lines:
        click.echo(text, nl=not text.endswith("\n"))
    else:
        click.echo_via_pager(text)
