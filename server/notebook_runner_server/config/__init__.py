"""The configuration of the server: settings, their command-line options, and checks of their values."""

from notebook_runner_server.config.settings import ENVIRONMENT_PREFIX, Settings

__all__ = ["ENVIRONMENT_PREFIX", "Settings"]
