"""The webhooks file: who gets to know of which starts and ends of runs. A TOML file."""

from __future__ import annotations

import base64
import binascii
import logging
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from notebook_runner_server.api.access_file import AccessFile, AccessFileError
from notebook_runner_server.runs.deliveries import DeliveryFilter
from notebook_runner_server.runs.model import RunState
from notebook_runner_server.transfer.interface import RefusedError
from notebook_runner_server.transfer.policy import WEB, UriPolicy, parse

MAX_RECEIVERS = 100
"""How many receivers there may be: each has a task and series of metrics."""

STARTED = RunState.STARTING
"""The state whose beginning is the start of a run: a worker has it."""

ENDED = frozenset(state for state in RunState if state.is_terminal)

_EVENTS: Mapping[str, frozenset[RunState]] = {
    "started": frozenset({STARTED}),
    "ended": ENDED,
    **{state.value: frozenset({state}) for state in RunState if state.is_terminal},
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_SECRET = re.compile(r"whsec_[A-Za-z0-9+/]+={0,2}")
_SECRET_BYTES = range(24, 65)
_KEYS = ("url", "secret", "events", "owner", "labels", "allow_internal")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Receiver:
    """A receiver of webhooks.

    Attributes:
        name: Its name.
        wanted: What it gets.
        uri: Where to; empty: the URI of each delivery's notification.
        secrets: The secrets that its webhooks are signed with; none: they are not signed.
        any_address: Whether it may have an address that the SSRF guard blocks.
    """

    name: str
    wanted: DeliveryFilter
    uri: str = field(default="", repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    any_address: bool = False

    @property
    def is_notified(self) -> bool:
        """Whether it gets the notifications for a host, each at a URI of its own."""
        return bool(self.wanted.host)


def receivers_file(path: Path) -> AccessFile[tuple[Receiver, ...]]:
    """Open the webhooks file, which is read again when it changes.

    Raises:
        OSError: The file cannot be read.
        AccessFileError: The file is invalid, or other users can read or change it.
    """
    return AccessFile(
        path,
        parse_receivers,
        lambda _, receivers: _logger.info("webhooks_reloaded", extra={"receivers": len(receivers)}),
        lambda why: _logger.error("webhooks_not_reloaded", extra={"why": why}),
        is_secret=True,
    )


def parse_receivers(content: bytes, name: str) -> tuple[Receiver, ...]:
    """Read a webhooks file.

    Args:
        content: The content of the file.
        name: The file's name in messages.

    Raises:
        AccessFileError: The file is invalid, or has no webhook.
    """
    try:
        found = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise AccessFileError(f"{name}: not valid TOML: {error}.") from None
    webhooks = found.pop("webhooks", {})
    if found or not isinstance(webhooks, dict):
        got = f" (got {next(iter(found))!r})" if found else ""
        raise AccessFileError(f"{name}: must have tables [webhooks.NAME] and nothing else{got}.")
    if not webhooks:
        raise AccessFileError(f"{name}: has no webhook. Add a table, such as [webhooks.billing].")
    if len(webhooks) > MAX_RECEIVERS:
        raise AccessFileError(f"{name}: must have at most {MAX_RECEIVERS} webhooks (got {len(webhooks)}).")
    receivers = []
    for key, table in webhooks.items():
        try:
            receivers.append(_receiver(key, table))
        except ValueError as error:
            raise AccessFileError(f"{name}, webhook {key[:100]!r}: {error}") from None
    return tuple(receivers)


def _receiver(name: str, table: Any) -> Receiver:
    if not _NAME.fullmatch(name):
        raise ValueError("a name must have 1 to 64 letters, digits, hyphens and underscores.")
    if not isinstance(table, dict):
        raise ValueError("must be a table with url and secret.")  # noqa: TRY004 - a mistake of the operator
    if unknown := next((key for key in table if key not in _KEYS), None):
        raise ValueError(f"unknown key {unknown!r}. Available: {', '.join(_KEYS)}.")
    any_address = _typed(table, "allow_internal", bool, default=False)
    owner = _typed(table, "owner", str, default="")
    labels = _typed(table, "labels", dict, default={})
    if not all(isinstance(value, str) for value in labels.values()):
        raise ValueError("labels must have texts as values.")
    wanted = DeliveryFilter(_states(table), owner, labels)
    uri = _uri(_typed(table, "url", str), any_address=any_address)
    return Receiver(name, wanted, uri, _secrets(table), any_address)


def _typed(table: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    value = table.get(key, default)
    if value is None:
        raise ValueError(f"{key} is missing.")
    if not isinstance(value, kind):
        names = {str: "a text", bool: "true or false", dict: "a table", list: "a list"}
        raise ValueError(f"{key} must be {names[kind]}.")  # noqa: TRY004 - a mistake of the operator
    return value


def _states(table: Mapping[str, Any]) -> frozenset[RunState]:
    events = _typed(table, "events", list, default=["ended"])
    for event in events:
        if not isinstance(event, str) or event not in _EVENTS:
            raise ValueError(f"events: unknown event {str(event)[:100]!r}. Available: {', '.join(_EVENTS)}.")
    if not events:
        raise ValueError(f"events must not be empty. Available: {', '.join(_EVENTS)}.")
    return frozenset().union(*(_EVENTS[event] for event in events))


def _uri(url: str, *, any_address: bool) -> str:
    try:
        parsed = parse(url)
        hosts = frozenset({parsed.host}) if any_address else frozenset[str]()
        UriPolicy(frozenset(WEB), hosts).check(url)
    except RefusedError as error:
        # The texts about addresses name the setting of URIs.
        why = str(error).replace("--uri-hosts", "allow_internal = true").replace("--uri-schemes", "https")
        raise ValueError(f"url: {why}.") from None
    return url


def _secrets(table: Mapping[str, Any]) -> tuple[str, ...]:
    given = table.get("secret")
    secrets = given if isinstance(given, list) else [given]
    for secret in secrets:
        if not isinstance(secret, str) or not _is_secret(secret):
            form = f"whsec_ and {_SECRET_BYTES.start} to {_SECRET_BYTES.stop - 1} random bytes in base64"
            raise ValueError(
                f"secret must be {form}, or a list of such. Create one with: "
                "python -c \"import base64, os; print('whsec_' + base64.b64encode(os.urandom(32)).decode())\""
            )
    if not secrets:
        raise ValueError("secret must not be an empty list.")
    return tuple(secrets)


def _is_secret(text: str) -> bool:
    if not _SECRET.fullmatch(text):
        return False
    try:
        return len(base64.b64decode(text.removeprefix("whsec_"), validate=True)) in _SECRET_BYTES
    except binascii.Error:
        return False
