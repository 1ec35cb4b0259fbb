"""The options that set when the server repeats a run."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from notebook_runner._retry_policy import Retry

from ._types import duration, retry_states

if TYPE_CHECKING:
    from notebook_runner.v1.notebook_runner_pb2 import Run

__all__ = ["RETRY_OPTIONS", "retry_of"]

RETRY_OPTIONS = [
    click.option(
        "--retries",
        type=click.IntRange(0, 100),
        metavar="N",
        help="Repeat the run at most N times if it crashes or is interrupted.",
    ),
    click.option(
        "--retry-on",
        type=retry_states,
        metavar="STATES",
        help="Repeat it only in these states: crashed,interrupted,timed-out. Default: crashed,interrupted.",
    ),
    click.option(
        "--retry-backoff",
        type=duration,
        metavar="TIME",
        help="Wait TIME before the first repetition, and twice as long before each next one. Default: 1s.",
    ),
    click.option(
        "--retry-max-backoff",
        type=duration,
        metavar="TIME",
        help="Wait at most TIME before a repetition. Default: 5m.",
    ),
]


def retry_of(options: dict[str, Any], before: Run | None) -> Retry | None:
    """Return the policy that the options set; None: the run is not repeated.

    Args:
        options: The options of a command.
        before: The run whose policy the options change; None: there is none.

    Raises:
        click.UsageError: An option needs `--retries`.
    """
    names = {
        "states": "retry_on",
        "backoff": "retry_backoff",
        "max_backoff": "retry_max_backoff",
    }
    given = {field: options[name] for field, name in names.items() if options[name] is not None}
    if options["retries"] is not None:
        given["max_retries"] = options["retries"]
    policy = Retry.of(before.retry) if before and before.HasField("retry") else Retry(0)
    policy = dataclasses.replace(policy, **given)
    if policy.max_retries:
        return policy
    if options["retries"] is None and given:
        name = next(name for name in names.values() if options[name] is not None)
        raise click.UsageError(f"--{name.replace('_', '-')} needs --retries N.")
    return None
