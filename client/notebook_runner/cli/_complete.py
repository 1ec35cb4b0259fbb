"""The command that prints shell completion scripts."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["completion"]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, /, shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    bash, in ~/.bashrc:  eval "$(notebook-runner completion bash)"
    zsh, in ~/.zshrc:    eval "$(notebook-runner completion zsh)"
    fish:                notebook-runner completion fish > \\
                           ~/.config/fish/completions/notebook-runner.fish

    Run ids, formats and kernels are fetched from the server.
    """  # noqa: D301 - the control character tells click to keep the lines
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"The installed version of click does not support {shell}.")
    # click listens to this variable.
    script = kind(ctx.find_root().command, {}, "notebook-runner", "_NOTEBOOK_RUNNER_COMPLETE").source()
    click.echo(script)
