"""The command `notebook-runner-server`.

Imports lazily: worker processes import this module again (multiprocessing's "spawn" does), and do not need
the server. What takes long to import comes last, while the workers import what they need.
"""

from __future__ import annotations

import errno
import sys


def main() -> None:
    """Read the settings from flags and environment, and serve."""
    import asyncio  # noqa: PLC0415 - see the module's docstring
    import os  # noqa: PLC0415 - see the module's docstring
    from typing import Any  # noqa: PLC0415 - see the module's docstring

    import click  # noqa: PLC0415 - see the module's docstring

    from notebook_runner_server import logs  # noqa: PLC0415 - see the module's docstring
    from notebook_runner_server.config import ENVIRONMENT_PREFIX, Settings, checks, flags, resources  # noqa: PLC0415 - as above
    from notebook_runner_server.confinement import confine  # noqa: PLC0415 - as above
    from notebook_runner_server.runs.store import StateFolderInUseError  # noqa: PLC0415 - as above

    def serve(settings: Settings) -> None:
        if settings.sandbox_options.is_on:
            confine.set_dumpable(False)
        logs.configure(settings.log_format, settings.log_level)
        # They may have a password, and the workers inherit the environment.
        for name in ("STORE", "STORE_LISTEN"):
            os.environ.pop(f"{ENVIRONMENT_PREFIX}_{name}", None)
        # The workers inherit the limit of descriptors.
        connections = resources.connection_limit(settings.max_connections)
        backend = resources.create_backend(settings)
        from notebook_runner_server.execution import notebook  # noqa: PLC0415 - see the module's docstring

        notebook.warm_up()
        from notebook_runner_server import app  # noqa: PLC0415 - see the module's docstring

        asyncio.run(app.serve(settings, backend, connections))

    def run(**values: Any) -> None:
        """Execute Jupyter notebooks on demand over gRPC."""
        name_and_scope, only_check = values.pop(flags.NEW_TOKEN), values.pop(flags.CHECK)
        try:
            if name_and_scope:
                click.echo(_new_token(values["tokens_file"], name_and_scope))
                return
            settings = Settings(**values, unchecked=True)
            checks.check(settings, os.environ)
            if only_check:
                for warning in checks.warnings(settings):
                    click.echo(warning, err=True)
                click.echo("The configuration is valid.")
                return
            serve(settings)
        except StateFolderInUseError as error:
            message = f"--state-dir: {error}. Stop that server, or choose another folder."
            raise click.ClickException(message) from error
        except (ValueError, RuntimeError, OSError) as error:
            raise click.ClickException(_text(error)) from error

    command = flags.ServerCommand(
        "notebook-runner-server",
        callback=run,
        params=[*flags.options(), *flags.actions()],
        help="Execute Jupyter notebooks on demand over gRPC.\n\n"
        "TIME is a number of seconds, or has a unit: 500ms, 30s, 5m, 2h, 7d. SIZE is a number of bytes, "
        "or has a unit: 512Mi, 2Gi.",
        context_settings={
            "auto_envvar_prefix": ENVIRONMENT_PREFIX,
            "max_content_width": 110,
            "help_option_names": ["-h", "--help"],
        },
    )
    sys.exit(command())


def _new_token(tokens_file: str, name_and_scope: str) -> str:
    from pathlib import Path  # noqa: PLC0415 - see the module's docstring

    from notebook_runner_server.api import tokens  # noqa: PLC0415 - see the module's docstring

    if not tokens_file:
        raise ValueError("--new-token needs --tokens-file, the file to add the token's hash to.")
    name, colon, scope = name_and_scope.rpartition(":")
    if not colon:
        raise ValueError(f"--new-token must be NAME:SCOPE, such as ci:run (got {name_and_scope}).")
    return tokens.add_new(Path(tokens_file), name, scope)


def _text(error: Exception) -> str:
    """Return what an error says, without the number that Python puts before an OSError."""
    if isinstance(error, OSError) and error.filename:
        advice = " Free some space." if error.errno in {errno.ENOSPC, errno.EDQUOT} else ""
        return f"{error.filename}: {error.strerror}.{advice}"
    return str(error)


if __name__ == "__main__":
    main()
