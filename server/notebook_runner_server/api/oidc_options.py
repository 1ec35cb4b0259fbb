"""OpenID Connect without cryptography: the operator's options, and the file that gives scopes to callers."""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from notebook_runner_server.api.access_file import AccessFile, AccessFileError
from notebook_runner_server.audit import AccessChange
from notebook_runner_server.runs.caller import Scope, parse_scopes

_logger = logging.getLogger(__name__)

_LINE = re.compile(
    r"(?:(?P<kind>name|group)\s+(?P<scopes>[a-z,-]+)\s+(?P<value>\S.*)|anyone\s+(?P<all>[a-z,-]+))"
)
_SCOPES = ", ".join(Scope)
_DOTS_OF_JWT = 2

MAX_NAME_CHARACTERS = 256
"""Maximum length of a caller's name."""


class RefusedTokenError(Exception):
    """A token is not valid. The message is a sentence without any part of the token."""


@dataclass(frozen=True)
class OidcOptions:
    """The issuer whose JWTs the server accepts.

    Attributes:
        issuer: The URL of the issuer, exactly as in its tokens.
        audience: The audience that a token must have.
        name_claim: The claim with the caller's name.
        groups_claim: The claim with the caller's groups.
        scopes_file: The file that gives scopes to names and groups.
        ca: The file of CA certificates for the issuer; None: the system's.
        token_file: The file with the token to fetch the issuer's keys with; None: without one.
        key_max_age: Seconds that the last keys stay in use while the issuer cannot be reached.
    """

    issuer: str
    audience: str
    name_claim: str
    groups_claim: str
    scopes_file: Path
    ca: Path | None = None
    token_file: Path | None = None
    key_max_age: float = 86400.0


@dataclass(frozen=True)
class ScopeRules:
    """Which scopes names and groups have.

    Attributes:
        names: The scopes of each name.
        groups: The scopes of the members of each group.
        anyone: The scopes of every caller with a valid token.
    """

    names: Mapping[str, frozenset[Scope]]
    groups: Mapping[str, frozenset[Scope]]
    anyone: frozenset[Scope]

    @property
    def by_rule(self) -> dict[str, frozenset[Scope]]:
        """The scopes of each rule, such as `name ada`, `group data-team` or `anyone`."""
        return {
            **{f"name {name}": scopes for name, scopes in self.names.items()},
            **{f"group {name}": scopes for name, scopes in self.groups.items()},
            **({"anyone": self.anyone} if self.anyone else {}),
        }

    def scopes(self, name: str, groups: Iterable[str]) -> frozenset[Scope]:
        """Return the scopes of a caller: those of its name, of all its groups, and of anyone."""
        none: frozenset[Scope] = frozenset()
        return self.anyone.union(self.names.get(name, none), *(self.groups.get(one, none) for one in groups))


def scopes_file(
    path: Path, on_change: Callable[[AccessChange], object] = lambda _: None
) -> AccessFile[ScopeRules]:
    """Open the scopes file, which is read again when it changes.

    Args:
        path: The file.
        on_change: Handles a change of the rules, which it names as their lines begin: `group data-team`.

    Raises:
        OSError: The file cannot be read.
        AccessFileError: The file is invalid.
    """

    def reloaded(before: ScopeRules, after: ScopeRules) -> None:
        about = {"names": len(after.names), "groups": len(after.groups)}
        _logger.info("oidc_scopes_reloaded", extra=about)
        if (change := AccessChange.between(before.by_rule, after.by_rule)).is_any:
            on_change(change)

    return AccessFile(
        path,
        parse_rules,
        reloaded,
        lambda why: _logger.error("oidc_scopes_not_reloaded", extra={"why": why}),
    )


def parse_rules(content: bytes, name: str) -> ScopeRules:
    """Read a scopes file.

    It has one line per rule: `name SCOPE NAME`, `group SCOPE GROUP` or `anyone SCOPE`; several scopes are
    separated by commas; a name or a group may have blanks; empty lines and lines that begin with `#` are
    ignored.

    Args:
        content: The content of the file.
        name: The file's name in messages.

    Raises:
        AccessFileError: A line is invalid, or the file has no rule.
    """
    found: dict[str, dict[str, frozenset[Scope]]] = {"name": {}, "group": {}, "anyone": {}}
    for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            kind, value, scopes = _parse_rule(text)
        except ValueError:
            form = f"name SCOPE NAME, group SCOPE GROUP or anyone SCOPE, with a scope of {_SCOPES}"
            raise AccessFileError(f"{name}, line {number}: must be {form}.") from None
        if value in found[kind]:
            raise AccessFileError(f"{name}, line {number}: duplicates the rule of an earlier line.")
        found[kind][value] = scopes
    if not any(found.values()):
        raise AccessFileError(f"{name}: has no rule. Add one, such as: group run data-team")
    return ScopeRules(found["name"], found["group"], found["anyone"].get("", frozenset()))


def _parse_rule(line: str) -> tuple[str, str, frozenset[Scope]]:
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError("not of the form of a line")
    if match["all"]:
        return "anyone", "", parse_scopes(match["all"])
    return match["kind"], match["value"], parse_scopes(match["scopes"])


def is_jwt(token: str) -> bool:
    """Return whether a token has the form of a signed JWT."""
    return token.count(".") == _DOTS_OF_JWT


def is_safe_url(url: str) -> bool:
    """Return whether nobody on the way to a URL can change the response: https, or this machine."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if it is not a number
    except ValueError:
        return False
    if not parts.hostname or parts.username is not None or not url.isprintable() or " " in url:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname))


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
