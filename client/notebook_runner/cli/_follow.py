"""Follows a run in a view until it ends or the user stops watching."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from notebook_runner._states import is_terminal
from notebook_runner.errors import Unavailable
from notebook_runner.v1.notebook_runner_pb2 import Run

from ._exit import ExitCode
from ._text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from notebook_runner.client import Client

    from ._group import Server
    from ._views import View

__all__ = ["follow"]

_KILL, _LEAVE, _CONTINUE = "k", "l", "c"


def follow(
    ctx: click.Context,
    client: Client,
    run_id: str,
    view: View,
    *,
    asks: bool,
    after_sequence: int = 0,
    **request: Any,
) -> Run:
    """Show a run until it ends, and return its latest state.

    Args:
        ctx: The command, which exits on Ctrl-C.
        client: The client.
        run_id: The run.
        view: The view.
        asks: Whether Ctrl-C on a terminal asks whether to kill the run.
        after_sequence: As for `Client.progress`.
        **request: As for `Client.progress`.
    """
    run = Run(run_id=run_id)
    while True:
        try:
            with view:
                for typed in client.progress(run_id, after_sequence=after_sequence, **request):
                    event = typed.pb
                    after_sequence = event.sequence
                    run = event.run_changed if event.HasField("run_changed") else run
                    view.event(event)
            break
        except KeyboardInterrupt:
            answer = _ask(run) if asks and _is_interactive() else _LEAVE
            if answer == _LEAVE:
                _leave(ctx, run)
            elif answer == _KILL:
                client.kill(run_id)
        except Unavailable:
            server: Server = ctx.obj
            click.echo(
                f"lost the server; run {one_line(run.run_id)} may still be running\n{server.hint(run)}",
                err=True,
            )
            raise
    if is_terminal(run.state):
        view.ended(run)
    return run


def _leave(ctx: click.Context, run: Run) -> None:
    server: Server = ctx.obj
    click.echo(f"\nrun {one_line(run.run_id)} continues\n{server.hint(run)}", err=True)
    ctx.exit(ExitCode.CTRL_C)


def _is_interactive() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _ask(run: Run) -> str:
    """Ask whether to kill, leave or continue; a second Ctrl-C leaves the run."""
    answer = _LEAVE
    try:
        with _keys(f"\nrun {one_line(run.run_id)}: [k]ill, [l]eave or [c]ontinue? ") as read:
            # A closed terminal returns nothing, forever.
            while typed := read().lower():
                if answers := [key for key in typed if key in (_KILL, _LEAVE, _CONTINUE)]:
                    answer = answers[0]
                    break
    except (KeyboardInterrupt, EOFError):
        return _LEAVE
    click.echo({_KILL: "kill", _LEAVE: "leave", _CONTINUE: "continue"}[answer], err=True)
    return answer


@contextlib.contextmanager
def _keys(question: str) -> Iterator[Callable[[], str]]:
    """Ask a question, and yield the function that reads the pressed keys."""
    if sys.platform == "win32":
        click.echo(question, err=True, nl=False)
        yield click.getchar
        return
    import termios  # noqa: PLC0415 - not on every platform
    import tty  # noqa: PLC0415 - not on every platform

    # click.getchar would discard keys that are pressed before it reads.
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor, termios.TCSANOW)
        click.echo(question, err=True, nl=False)
        yield lambda: os.read(descriptor, 32).decode(errors="replace")
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
