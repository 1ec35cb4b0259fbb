"""The settings as the server's command makes them, and as it refuses them."""

import functools
import os
import subprocess
from typing import Any

import click
import pytest
from click.testing import CliRunner

from notebook_runner_server.config import ENVIRONMENT_PREFIX, Settings
from notebook_runner_server.config.flags import options
from tests.support.server import PROGRAM


def flag(name: str) -> str:
    """The flag of a setting."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """The variable of a setting."""
    return f"{ENVIRONMENT_PREFIX}_{name.upper()}"


def clean(**variables: str) -> dict[str, str]:
    """An environment in which only these settings are variables."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(ENVIRONMENT_PREFIX)}
    return {**inherited, **variables}


@functools.cache
def _options() -> list[click.Parameter]:
    """The options of the server's command; to make them takes as long as to parse a command line."""
    return list(options())


def parsed(*arguments: str, **variables: str) -> Settings:
    """The settings that a command line and an environment make, as the server's command parses them."""
    made: list[Settings] = []

    def keep(**values: Any) -> None:
        made.append(Settings(**values))

    context = {"auto_envvar_prefix": ENVIRONMENT_PREFIX}
    command = click.Command("server", callback=keep, params=_options(), context_settings=context)
    for name in os.environ:
        if name.startswith(ENVIRONMENT_PREFIX):
            variables.setdefault(name, "")
    result = CliRunner().invoke(command, list(arguments), env=variables, catch_exceptions=False)
    if result.exit_code:
        raise click.ClickException(result.output)
    return made[0]


def served(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What the real command does with arguments that it must refuse, or that only print."""
    return subprocess.run(
        [str(PROGRAM), *arguments],
        env=clean(**variables),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def refusal(*arguments: str, **variables: str) -> str:
    """Why settings are refused."""
    with pytest.raises((click.ClickException, ValueError)) as caught:
        parsed(*arguments, **variables)
    return str(caught.value)
