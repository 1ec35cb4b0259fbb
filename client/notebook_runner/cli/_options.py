"""Options of several commands, and completion of arguments with the server's help."""

from __future__ import annotations

import contextlib
import itertools
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from notebook_runner._printable import one_line
from notebook_runner._states import state_name
from notebook_runner.v1 import notebook_runner_pb2 as pb

from ._calls import CommandClient
from ._text import about

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "complete_format",
    "complete_kernel",
    "complete_label",
    "complete_notebook",
    "complete_run",
    "complete_state",
    "is_confirmed",
    "json_option",
    "quiet_option",
    "request_json",
    "run_argument",
    "wants_json",
    "yes_option",
]

_META = "notebook_runner.json"
# Completion must not wait for an unreachable server.
COMPLETION_TIMEOUT = 2.0
RUNS = 30

ItemT = TypeVar("ItemT")


def json_option(what: str) -> Callable[[Any], Any]:
    """Add the flag `--json` to a command, which applies to errors as well."""
    return click.option("--json", "as_json", is_flag=True, help=f"Print {what} as JSON, including errors.")


def request_json(ctx: click.Context, as_json: bool) -> None:
    """Keep whether `--json` was given."""
    ctx.meta[_META] = as_json


def wants_json(ctx: click.Context) -> bool:
    """Return whether `--json` was given."""
    return bool(ctx.meta.get(_META))


quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print only errors.")


yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")


def run_argument(command: Any) -> Any:
    """Add the optional argument RUN to a command."""
    return click.argument("named", default="", metavar="[RUN]", shell_complete=complete_run)(command)


def is_confirmed(ctx: click.Context, question: str, *, yes: bool) -> bool:
    """Ask for a confirmation on a terminal, and return the answer; elsewhere, and with `--yes`, return true.

    Args:
        ctx: The command.
        question: The question.
        yes: Whether `--yes` was given.
    """
    if yes or wants_json(ctx) or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    try:
        return click.confirm(one_line(question), err=True)
    except click.Abort:
        raise KeyboardInterrupt from None


def complete_state(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
    """Complete the state of a run."""
    names = [state_name(state).replace(" ", "-") for state in pb.RunState.values() if state]
    return [name for name in names if name.startswith(begun.lower())]


def complete_kernel(ctx: click.Context, _: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete a kernelspec of the server."""
    kernels = _asked(ctx, lambda client: list(client.info().kernels))
    return [
        CompletionItem(one.name, help=one_line(one.language))
        for one in kernels
        if _can_be_typed(one.name) and one.name.startswith(begun)
    ]


def complete_format(ctx: click.Context, _: click.Parameter, begun: str) -> list[str]:
    """Complete a format of the server."""
    return [
        name
        for name in _asked(ctx, lambda client: list(client.info().formats))
        if _can_be_typed(name) and name.startswith(begun)
    ]


def complete_run(ctx: click.Context, _: click.Parameter, begun: str) -> list[CompletionItem]:
    return [
        CompletionItem(run.run_id, help=one_line(f"{state_name(run.state)} {about(run)}"))
        for run in _newest_runs(ctx)
        if _can_be_typed(run.run_id) and run.run_id.startswith(begun)
    ]


def complete_label(ctx: click.Context, _: click.Parameter, begun: str) -> list[str]:
    """Complete a label of the newest runs, as NAME=VALUE."""
    labels = {f"{name}={value}" for run in _newest_runs(ctx) for name, value in run.labels.items()}
    return sorted(one for one in labels if _can_be_typed(one) and one.startswith(begun))


def complete_notebook(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete the path of a local notebook: notebooks, and folders on the way to them."""
    folder, _slash, name = begun.rpartition("/")
    above = Path(f"{folder}/" if folder or begun.startswith("/") else ".").expanduser()
    notebooks, folders = list[str](), list[str]()
    with contextlib.suppress(OSError):
        for entry in sorted(above.iterdir()):
            if not entry.name.startswith(name) or entry.name.startswith(".") > name.startswith("."):
                continue
            path = begun[: len(begun) - len(name)] + entry.name
            if entry.is_dir():
                folders.append(f"{path}/")
            elif entry.suffix == ".ipynb":
                notebooks.append(path)
    if not all(map(_can_be_typed, notebooks)):
        # The shell itself quotes names.
        return [CompletionItem(begun, type="file")]
    if not notebooks:
        # The shell itself completes folders, and lets them be continued.
        return [CompletionItem(begun, type="dir")]
    return [CompletionItem(path) for path in [*notebooks, *folders]]


def _newest_runs(ctx: click.Context) -> list[pb.Run]:
    return _asked(ctx, lambda client: list(itertools.islice(client.list_runs(page_size=RUNS), RUNS)))


def _can_be_typed(name: str) -> bool:
    # A shell inserts it into the command line.
    return re.fullmatch(r"[\w.+=/-]+", name) is not None


def _asked(ctx: click.Context, question: Callable[[CommandClient], list[ItemT]]) -> list[ItemT]:
    """Ask the server that the command line names; return nothing if that fails."""
    settings = {name: value for name, value in ctx.find_root().params.items() if value}
    # A shell would print a traceback into the command line that is being typed.
    with contextlib.suppress(Exception), CommandClient(**settings, timeout=COMPLETION_TIMEOUT) as client:
        return question(client)
    return []
