"""The options of papermill's command that this one does not have, and what to do instead."""

from __future__ import annotations

from typing import Any

import click

__all__ = ["INSTEAD", "PapermillCommand"]

# papermill's page in docs/how-to/ says more about each.
INSTEAD = {
    "--autosave-cell-every": "leave it out: outputs are durable as they arrive",
    "--cwd": "a notebook runs in a folder of its own, and one given by --server-path in the one it is in",
    "--engine": "leave it out: the server executes with nbclient",
    "--inject-input-path": "give it as a parameter: -r PAPERMILL_INPUT_PATH=…",
    "--inject-output-path": "give it as a parameter: -r PAPERMILL_OUTPUT_PATH=…",
    "--inject-paths": "give them as parameters: -r PAPERMILL_INPUT_PATH=… -r PAPERMILL_OUTPUT_PATH=…",
    "--language": "leave it out: it is the one of the notebook or of its kernelspec",
    "--log-level": "use --quiet",
    "--log-output": "leave it out: what the notebook prints is shown",
    "--no-log-output": "use --quiet",
    "--no-progress-bar": "leave it out where the output is no terminal, or use --quiet",
    "--no-report-mode": "leave it out",
    "--no-request-save-on-cell-execute": "leave it out: outputs are durable as they arrive",
    "--prepare-execute": "leave it out",
    "--prepare-only": "there is nothing like it",
    "--progress-bar": "leave it out: a terminal gets one",
    "--report-mode": "use --html FILE --no-input",
    "--request-save-on-cell-execute": "leave it out: outputs are durable as they arrive",
    "--start-timeout": "leave it out: the operator sets it for all runs",
    "--stderr-file": "use `notebook-runner logs RUN_ID 2> FILE`",
    "--stdout-file": "use `notebook-runner logs RUN_ID > FILE`",
}


class PapermillCommand(click.Command):
    """A command that knows how papermill's is used.

    Long options may be written with `_`, and what papermill has and this command has not is answered with
    what to do instead.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.context_settings = {
            **self.context_settings,
            "token_normalize_func": lambda name: name.replace("_", "-"),
            "allow_extra_args": True,  # so that `parse_args` can say more about them
        }

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            rest = super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            name = error.option_name.replace("_", "-")
            if name in INSTEAD:
                raise click.UsageError(f"{name} is papermill's. Here: {INSTEAD[name]}", ctx) from error
            raise
        if rest and not ctx.resilient_parsing:
            hint = "; the result goes to --output FILE" if self.name == "run" else ""
            raise click.UsageError(f"unexpected argument {rest[0]!r}{hint}", ctx)
        return rest
