"""Options of several commands, and completion of arguments with the server's help."""

from __future__ import annotations

import contextlib
import itertools
import re
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from notebook_runner._states import state_name
from notebook_runner.client import Client
from notebook_runner.v1 import notebook_runner_pb2 as pb

from ._text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "complete_format",
    "complete_kernel",
    "complete_state",
    "json_option",
    "quiet_option",
    "run_argument",
    "wants_json",
]

_META = "notebook_runner.json"
# Completion must not wait for an unreachable server.
COMPLETION_TIMEOUT = 2.0
RUNS = 30

ItemT = TypeVar("ItemT")


def json_option(what: str) -> Callable[[Any], Any]:
    """Add the flag `--json` to a command, which applies to errors as well."""

    def keep(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
        ctx.meta[_META] = value
        return value

    return click.option(
        "--json", "as_json", is_flag=True, callback=keep, help=f"Print {what} as JSON, including errors."
    )


def wants_json(ctx: click.Context) -> bool:
    """Return whether `--json` was given."""
    return bool(ctx.meta.get(_META))


quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print only errors.")


def run_argument(command: Any) -> Any:
    """Add the optional argument RUN_ID to a command."""
    return click.argument("run_id", default="", metavar="[RUN_ID]", shell_complete=_complete_run)(command)


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


def _complete_run(ctx: click.Context, _: click.Parameter, begun: str) -> list[CompletionItem]:
    runs = _asked(ctx, lambda client: [run.pb for run in itertools.islice(client.list(page_size=RUNS), RUNS)])
    return [
        CompletionItem(run.run_id, help=_about(run))
        for run in runs
        if _can_be_typed(run.run_id) and run.run_id.startswith(begun)
    ]


def _about(run: pb.Run) -> str:
    return one_line(f"{state_name(run.state)} {run.notebook_path or run.notebook_uri}")


def _can_be_typed(name: str) -> bool:
    # A shell inserts it into the command line.
    return re.fullmatch(r"[\w.+-]+", name) is not None


def _asked(ctx: click.Context, question: Callable[[Client], list[ItemT]]) -> list[ItemT]:
    """Ask the server that the command line names; return nothing if that fails."""
    settings = {name: value for name, value in ctx.find_root().params.items() if value}
    # A shell would print a traceback into the command line that is being typed.
    with contextlib.suppress(Exception), Client(**settings, timeout=COMPLETION_TIMEOUT) as client:
        return question(client)
    return []
