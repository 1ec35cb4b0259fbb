"""The version of the distribution: client, server and contract go together."""

__version__ = "0.1.0"
