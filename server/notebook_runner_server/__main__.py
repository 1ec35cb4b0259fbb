"""The command `notebook-runner-server`.

Imports lazily: worker processes import this module again (multiprocessing's "spawn" does), and do not need
the server.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Read the settings from flags and environment, and serve."""
    import asyncio  # noqa: PLC0415 - see the module's docstring
    import os  # noqa: PLC0415 - see the module's docstring
    from typing import Any  # noqa: PLC0415 - see the module's docstring

    import click  # noqa: PLC0415 - see the module's docstring

    from notebook_runner._version import __version__  # noqa: PLC0415 - see the module's docstring
    from notebook_runner_server import app, checks, config, flags, new_token  # noqa: PLC0415 - as above
    from notebook_runner_server.runs.store import StateFolderInUseError  # noqa: PLC0415 - as above

    def run(**values: Any) -> None:
        """Execute Jupyter notebooks on demand over gRPC."""
        asked, only_check = values.pop(new_token.NAME), values.pop("check")
        try:
            if asked:
                new_token.write(values["tokens_file"], asked)
                return
            settings = config.Settings(**values, unchecked=True)
            checks.check(settings, os.environ)
            if only_check:
                click.echo("The configuration is valid.")
                return
            asyncio.run(app.serve(settings))
        except (ValueError, RuntimeError, OSError, StateFolderInUseError) as error:
            raise click.ClickException(str(error)) from error

    command = click.Command(
        "notebook-runner-server",
        callback=run,
        params=[*flags.options(), new_token.option(), flags.check()],
        help="Execute Jupyter notebooks on demand over gRPC.",
        context_settings={"auto_envvar_prefix": config.ENVIRONMENT_PREFIX, "max_content_width": 110},
    )
    command = click.version_option(__version__)(command)
    sys.exit(command())


if __name__ == "__main__":
    main()
