"""The tokens file: the SHA-256 hash of each valid token, with its name and scopes.

It has one line per token, `NAME SCOPE sha256:HEX`; several scopes are separated by commas; empty lines and
lines that begin with `#` are ignored. A name may occur twice, so that tokens can be rotated.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from notebook_runner_server.api.access_file import AccessFile, AccessFileError, read
from notebook_runner_server.audit import AccessChange
from notebook_runner_server.runs.caller import Caller, Scope, parse_scopes

_logger = logging.getLogger(__name__)

MIN_CHARACTERS = 32
"""Minimum length of a token: 32 hexadecimal digits are 128 bits."""

_PREFIX = "nbr_"
_RANDOM_BYTES = 32
_LINE = re.compile(
    r"(?P<name>[A-Za-z0-9._-]{1,64})\s+(?P<scopes>[a-z,-]+)\s+sha256:(?P<hash>[0-9a-fA-F]{64})"
)
_EMPTY_DIGEST = hashlib.sha256(b"").digest()
_SCOPES = ", ".join(Scope)


@dataclass(frozen=True)
class TokenEntry:
    """One token of the file.

    Attributes:
        caller: Who sends it.
        digest: The SHA-256 hash of the token.
    """

    caller: Caller
    digest: bytes


class Tokens:
    """The valid tokens. Reads the file again with each call.

    If the file becomes unreadable or invalid, the previous tokens stay valid, and the log says why.

    Args:
        path: The tokens file.
        on_change: Handles a change of the tokens.

    Raises:
        OSError: The file cannot be read.
        AccessFileError: The file is invalid.
    """

    def __init__(self, path: Path, on_change: Callable[[AccessChange], object] = lambda _: None) -> None:
        self._on_change = on_change
        self._file = AccessFile(
            path,
            parse,
            self._reloaded,
            lambda why: _logger.error("tokens_not_reloaded", extra={"why": why}),
        )

    def _reloaded(self, before: tuple[TokenEntry, ...], after: tuple[TokenEntry, ...]) -> None:
        _logger.info("tokens_reloaded", extra={"tokens": _names(after)})
        if (change := AccessChange.between(_by_name(before), _by_name(after))).is_any:
            self._on_change(change)

    @property
    def names(self) -> list[str]:
        """The names in the file, each once."""
        return _names(self._file.recent())

    def find(self, token: str) -> TokenEntry | None:
        """Return the entry of a token; None: it is not valid."""
        digest = hashlib.sha256(token.encode()).digest()
        found = None
        for entry in self._file.latest():
            # Compare with all entries, so that the duration reveals nothing.
            if hmac.compare_digest(entry.digest, digest):
                found = entry
        if found is not None and len(token) < MIN_CHARACTERS:
            about = {"token_name": found.caller.name, "minimum": MIN_CHARACTERS}
            _logger.error("token_too_short", extra=about)
            return None
        return found

    def holds(self, entry: TokenEntry) -> bool:
        """Return whether an entry was in the file within the last `access_file.RECHECK_SECONDS`."""
        return entry in self._file.recent()


def _by_name(entries: tuple[TokenEntry, ...]) -> dict[str, set[TokenEntry]]:
    found: dict[str, set[TokenEntry]] = {}
    for entry in entries:
        found.setdefault(entry.caller.name, set()).add(entry)
    return found


def _names(entries: tuple[TokenEntry, ...]) -> list[str]:
    return sorted({entry.caller.name for entry in entries})


def parse(content: bytes, name: str) -> tuple[TokenEntry, ...]:
    """Read a tokens file.

    Args:
        content: The content of the file.
        name: The file's name in messages.

    Raises:
        AccessFileError: A line is invalid, or the file has no token. Messages never quote a line.
    """
    entries: dict[bytes, TokenEntry] = {}
    for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            entry = _parse_line(text)
        except ValueError:
            form = f"NAME SCOPE sha256:HEX with a scope of {_SCOPES} (create one with --new-token)"
            raise AccessFileError(f"{name}, line {number}: must be {form}.") from None
        if entry.digest == _EMPTY_DIGEST:
            raise AccessFileError(f"{name}, line {number}: this is the hash of an empty token.")
        if entry.digest in entries:
            raise AccessFileError(f"{name}, line {number}: duplicates the token of an earlier line.")
        entries[entry.digest] = entry
    if not entries:
        raise AccessFileError(f"{name}: has no token. Add one with --new-token NAME:SCOPE.")
    return tuple(entries.values())


def _parse_line(line: str) -> TokenEntry:
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError("not of the form of a line")
    caller = Caller(match["name"], parse_scopes(match["scopes"]))
    return TokenEntry(caller, bytes.fromhex(match["hash"]))


def add_new(path: Path, name: str, scope: str) -> str:
    """Create a token of 256 random bits, add its line to a tokens file, and return it.

    Raises:
        OSError: The file cannot be written.
        AccessFileError: The name, the scope or the file is invalid.
    """
    token = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    line = f"{name} {scope} sha256:{hashlib.sha256(token.encode()).hexdigest()}\n".encode()
    try:
        parse(line, "")
    except AccessFileError:
        message = (
            f"--new-token must be NAME:SCOPE, with letters, digits, . _ - as NAME and SCOPE of {_SCOPES}"
        )
        raise AccessFileError(f"{message} (got {name}:{scope}).") from None
    before = read(path) if path.exists() else b""
    parse(before + b"\n" + line, str(path))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "ab") as file:
        file.write(b"\n" * (bool(before) and not before.endswith(b"\n")) + line)
    return token
