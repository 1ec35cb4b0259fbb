"""Options of papermill's command that this one does not have, and what to use instead."""

from __future__ import annotations

from typing import Any

import click

__all__ = ["INSTEAD", "PapermillCommand"]

# papermill's page in docs/how-to/ says more about each.
INSTEAD = {
    "--autosave-cell-every": "omit it; outputs are saved as they arrive",
    "--cwd": "omit it; a notebook runs in its own folder, or with --server-path in the one that contains it",
    "--engine": "omit it; the server executes with nbclient",
    "--inject-input-path": "pass it as a parameter: -r PAPERMILL_INPUT_PATH=…",
    "--inject-output-path": "pass it as a parameter: -r PAPERMILL_OUTPUT_PATH=…",
    "--inject-paths": "pass them as parameters: -r PAPERMILL_INPUT_PATH=… -r PAPERMILL_OUTPUT_PATH=…",
    "--language": "omit it; the notebook or its kernelspec sets the language",
    "--log-level": "use --quiet",
    "--log-output": "omit it; what the notebook prints is shown",
    "--no-log-output": "use --quiet",
    "--no-progress-bar": "omit it if the output is not a terminal, or use --quiet",
    "--no-report-mode": "omit it",
    "--no-request-save-on-cell-execute": "omit it; outputs are saved as they arrive",
    "--prepare-execute": "omit it",
    "--prepare-only": "there is no equivalent",
    "--progress-bar": "omit it; terminals get one",
    "--report-mode": "use --html FILE --no-input",
    "--request-save-on-cell-execute": "omit it; outputs are saved as they arrive",
    "--start-timeout": "omit it; the operator sets it for all runs",
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
                raise click.UsageError(f"{name} is an option of papermill: {INSTEAD[name]}.", ctx) from error
            raise
        if rest and not ctx.resilient_parsing:
            hint = " To write the result to a file, use --output FILE." if self.name == "run" else ""
            raise click.UsageError(f"Unexpected argument {rest[0]!r}.{hint}", ctx)
        return rest
