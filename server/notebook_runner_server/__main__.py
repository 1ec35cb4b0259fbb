"""The command `notebook-runner-server`.

Kept light: a worker process imports this module again (multiprocessing's "spawn" does), and needs none of
the server.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Read the settings from flags and environment, and serve."""
    import asyncio  # noqa: PLC0415 - see the module's docstring
    from typing import Any  # noqa: PLC0415 - see the module's docstring

    import click  # noqa: PLC0415 - see the module's docstring

    from notebook_runner._version import __version__  # noqa: PLC0415 - see the module's docstring
    from notebook_runner_server import app, config, flags, new_token  # noqa: PLC0415 - see the module's docstring
    from notebook_runner_server.runs.store import StateFolderInUseError  # noqa: PLC0415 - as above

    def run(**values: Any) -> None:
        """Execute Jupyter notebooks on demand, over gRPC."""
        asked = values.pop(new_token.NAME)
        try:
            if asked:
                new_token.write(values["tokens_file"], asked)
                return
            asyncio.run(app.serve(config.Settings(**values)))
        except (ValueError, RuntimeError, OSError, StateFolderInUseError) as error:
            raise click.ClickException(str(error)) from error

    command = click.Command(
        "notebook-runner-server",
        callback=run,
        params=[*flags.options(), new_token.option()],
        help="Execute Jupyter notebooks on demand, over gRPC.",
        context_settings={"auto_envvar_prefix": config.ENVIRONMENT_PREFIX, "max_content_width": 110},
    )
    command = click.version_option(__version__)(command)
    sys.exit(command())


if __name__ == "__main__":
    main()
