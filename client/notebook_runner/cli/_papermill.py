"""Compatibility with papermill's command: its spelling of options, and what replaces missing ones."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import click

from ._parameters import ASSIGNMENTS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = ["INSTEAD", "PapermillCommand"]

# docs/how-to/from-papermill.md explains each.
INSTEAD = {
    "--autosave-cell-every": "omit it; outputs are saved as they arrive",
    "--cwd": "omit it; a notebook runs in a private folder, or with --server-path in its own folder",
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
    "--progress-bar": "omit it; terminals show one",
    "--report-mode": "use --html FILE --no-input",
    "--request-save-on-cell-execute": "omit it; outputs are saved as they arrive",
    "--start-timeout": "omit it; the operator sets it for all runs",
    "--stderr-file": "use `notebook-runner logs RUN 2> FILE`",
    "--stdout-file": "use `notebook-runner logs RUN --no-display > FILE`",
}


class PapermillCommand(click.Command):
    """A command that accepts papermill's spelling of options, and names what replaces missing ones."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.context_settings = {
            **self.context_settings,
            "token_normalize_func": lambda name: name.replace("_", "-"),
            "allow_extra_args": True,  # so that `parse_args` can explain them
        }

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            rest = super().parse_args(ctx, list(self._split_assignments(ctx, args)))
        except click.NoSuchOption as error:
            name = error.option_name.replace("_", "-")
            if name in INSTEAD:
                raise click.UsageError(f"{name} is an option of papermill: {INSTEAD[name]}.", ctx) from error
            raise
        if rest and not ctx.resilient_parsing:
            hint = " To write the result to a file, use --output FILE." if self.name == "run" else ""
            raise click.UsageError(f"Unexpected argument {rest[0]!r}.{hint}", ctx)
        return rest

    def _split_assignments(self, ctx: click.Context, args: list[str]) -> Iterator[str]:
        """Split NAME=VALUE after the options that take a name and a value, as papermill writes them."""
        values = {
            name: option
            for option in self.params
            if isinstance(option, click.Option) and not (option.is_flag or option.count)
            for name in option.opts
        }
        rest = iter(args)
        for arg in rest:
            before, name, attached = _option_in(arg, values)
            option = values.get(name)
            if option is None:
                yield arg
                if arg == "--":
                    break
            elif option.name not in ASSIGNMENTS:
                yield arg
                # Its value may look like an option.
                yield from itertools.islice(rest, option.nargs - (attached is not None))
            elif (text := next(rest, None) if attached is None else attached) is None:
                yield arg
            else:
                key, found, value = text.partition("=")
                given = value if found else next(rest, None)
                if not ctx.resilient_parsing and (given is None or not key):
                    lack = "value" if key else "name"
                    raise click.BadOptionUsage(name, f"{text!r} has no {lack}. Use NAME=VALUE.", ctx)
                yield from (*before, name, key, given or "")
        yield from rest


def _option_in(arg: str, values: Collection[str]) -> tuple[list[str], str, str | None]:
    """Return the flags before the option with a value in an argument, its name, and its attached value."""
    if arg.startswith("--"):
        name, found, attached = arg.partition("=")
        return [], name.replace("_", "-"), attached if found else None
    if arg.startswith("-"):
        for index, letter in enumerate(arg[1:], 1):
            if f"-{letter}" in values:
                before = [arg[:index]] if index > 1 else []
                return before, f"-{letter}", arg[index + 1 :] or None
    return [], "", None
