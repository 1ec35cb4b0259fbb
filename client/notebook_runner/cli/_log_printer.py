"""Prints what a notebook printed and displayed, for `logs`."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from ._display import show_display
from ._terminal import write_printed
from ._text import as_plain, dump

if TYPE_CHECKING:
    from notebook_runner.v1 import notebook_runner_pb2 as pb

__all__ = ["LogPrinter"]


class LogPrinter:
    """Prints the outputs of cells as text.

    Args:
        as_json: Print each as a JSON object.
        displays: Whether to print results and displays, besides printed text.
    """

    def __init__(self, *, as_json: bool, displays: bool) -> None:
        self._as_json = as_json
        self._displays = displays
        self._is_mid_line = False
        self._lost_at = 0.0

    def event(self, event: pb.ProgressResponse) -> None:
        """Print the output of an event, if it has one."""
        output = event.cell_output
        if output.HasField("stream"):
            self._print(event, output.stream.name, output.stream.text)
        elif output.HasField("display") and self._displays:
            shown = show_display(output.display)
            result = as_plain(output.display).get("result")
            line = "" if self._as_json or not self._is_mid_line else "\n"
            self._print(event, output.display.output_type, f"{line}{shown.text}\n", result=result)

    def lost(self) -> None:
        """Print to standard error that the connection is lost."""
        self._lost_at = time.monotonic()
        click.echo("connection lost, reconnecting …", err=True)

    def back(self) -> None:
        """Print to standard error that the connection is back."""
        click.echo(f"connected again after {time.monotonic() - self._lost_at:.0f} s", err=True)

    def _print(self, event: pb.ProgressResponse, name: str, text: str, *, result: object = None) -> None:
        if self._as_json:
            piece = {
                "time": event.time.ToJsonString(),
                "cell_index": event.cell_output.cell_index,
                "name": name,
                "text": text,
            }
            click.echo(dump(piece if result is None else {**piece, "result": result}))
            return
        write_printed(sys.stderr if name == "stderr" else sys.stdout, text)
        if name != "stderr":
            self._is_mid_line = not text.endswith("\n")
