"""Notifications: the webhooks that a run itself asks for (`StartRequest.notify_uri`)."""

from __future__ import annotations

from collections.abc import Iterable

from notebook_runner_server.runs.deliveries import NOTIFY, DeliveryFilter
from notebook_runner_server.runs.model import Notify
from notebook_runner_server.transfer.interface import RefusedError
from notebook_runner_server.transfer.policy import WEB, parse
from notebook_runner_server.webhooks.receivers_file import ENDED, Receiver


def check(hosts: Iterable[str], uri: str) -> Notify:
    """Return who a URI notifies.

    Args:
        hosts: The hosts that the operator allows, in lower case.
        uri: The URI.

    Raises:
        RefusedError: It is malformed, or names another host or scheme.
    """
    parsed = parse(uri)
    if parsed.scheme not in WEB:
        raise RefusedError(f"the scheme must be https or http (got {parsed.scheme})")
    if parsed.host not in hosts:
        raise RefusedError(f"the host {parsed.host[:100]!r} is not in --notify-hosts")
    return Notify(parsed.host, uri)


def receiver(host: str) -> Receiver:
    """Return the receiver of the notifications for a host; it gets those of an owner in their order."""
    # Not signed: a run has no secret in common with it. The operator named the host, whatever its address.
    return Receiver(f"{NOTIFY}{host}", DeliveryFilter(ENDED, host=host), any_address=True)
