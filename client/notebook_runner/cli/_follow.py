"""Follows a run in a view until it ends or the user stops watching."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

import click

from notebook_runner._printable import one_line
from notebook_runner._states import is_terminal
from notebook_runner.errors import NotebookRunnerError, Unavailable
from notebook_runner.v1.notebook_runner_pb2 import RUN_STATE_QUEUED, Run

from ._exit import ExitCode
from ._text import place_in_queue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from ._calls import CommandClient
    from ._group import Server
    from ._views import View

__all__ = ["follow"]

# Seconds between two checks of the place of a queued run.
QUEUE_SECONDS = 2.0

_KILL, _LEAVE, _CONTINUE = "k", "l", "c"


def follow(
    ctx: click.Context,
    client: CommandClient,
    run_id: str,
    view: View,
    *,
    asks: bool,
    later: Callable[[str], str] = lambda _: "",
    retries: bool = True,
    after_sequence: int = 0,
    **request: Any,
) -> Run:
    """Show a run until it ends, and return its latest state; of a run that is repeated, the last attempt's.

    Args:
        ctx: The command, which exits on Ctrl-C.
        client: The client.
        run_id: The run.
        view: The view.
        asks: Whether Ctrl-C on a terminal asks whether to kill the run.
        later: Returns the commands that get the requested results of a run later; empty: none are requested.
        retries: Whether to continue with the run that repeats this one.
        after_sequence: As for `Client.progress`.
        **request: As for `Client.progress`.
    """
    run = Run(run_id=run_id)
    server: Server = ctx.obj
    while True:
        try:
            with view, _QueueWatch(client, view) as queue:
                events = client.events(
                    run_id, on_lost=view.lost, on_back=view.back, after_sequence=after_sequence, **request
                )
                for event in events:
                    after_sequence = event.sequence
                    run = event.run_changed if event.HasField("run_changed") else run
                    view.event(event)
                    queue.accept(run)
            if not (retries and run.retried_by):
                break
            ended, run_id, after_sequence = run, run.retried_by, 0
            run = Run(run_id=run_id)
            view.repeated(ended)
        except KeyboardInterrupt:
            answer = _ask(run) if asks and _is_interactive() else _LEAVE
            if answer == _LEAVE:
                click.echo(
                    f"\nrun {one_line(run.run_id)} continues\n{server.hint(run)}{later(run_id)}", err=True
                )
                ctx.exit(ExitCode.CTRL_C)
            elif answer == _KILL:
                _kill(client, run_id)
        except Unavailable:
            lost = f"lost the server; run {one_line(run.run_id)} may still be running"
            click.echo(f"{lost}\n{server.hint(run)}{later(run_id)}", err=True)
            raise
    if is_terminal(run.state):
        view.ended(run)
    return run


def _kill(client: CommandClient, run_id: str) -> None:
    """Kill a run, or the run that repeats it, if it has ended meanwhile."""
    killed = client.kill_run(run_id)
    while killed.already_ended and killed.run.retried_by:
        killed = client.kill_run(killed.run.retried_by)


class _QueueWatch:
    """Shows the place of a queued run while it changes, for which there are no events.

    Args:
        client: The client.
        view: The view.
    """

    def __init__(self, client: CommandClient, view: View) -> None:
        self._client, self._view = client, view
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def accept(self, run: Run) -> None:
        """Accept the newest state of the run."""
        if run.state != RUN_STATE_QUEUED:
            self._over.set()
        elif self._thread is None and (run.queue_position or run.HasField("not_before")):
            self._thread = threading.Thread(target=self._watch, args=[run], name="queue", daemon=True)
            self._thread.start()

    def _watch(self, run: Run) -> None:
        shown = place_in_queue(run)
        while not self._over.wait(QUEUE_SECONDS):
            # The stream reports what is wrong.
            with contextlib.suppress(NotebookRunnerError, OSError, ValueError):
                now = self._client.find_run(run.run_id)
                place = place_in_queue(now)
                if now.state == RUN_STATE_QUEUED and place != shown and not self._over.is_set():
                    shown = place
                    self._view.waiting(now)


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
