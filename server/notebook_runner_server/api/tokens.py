"""The tokens file: the SHA-256 hash of each valid token, with its name and scope.

It has one line per token, `NAME SCOPE sha256:HEX`; empty lines and lines that begin with `#` are ignored. A
name may occur twice, so that tokens can be rotated.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

_logger = logging.getLogger(__name__)

MIN_CHARACTERS = 32
"""Minimum length of a token: 32 hexadecimal digits are 128 bits."""

RECHECK_SECONDS = 1.0
"""Maximum age of what `holds` returns."""

_MAX_FILE_BYTES = 1024 * 1024
_PREFIX = "nbr_"
_RANDOM_BYTES = 32
_LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,64})\s+(?P<scope>run|read)\s+sha256:(?P<sum>[0-9a-fA-F]{64})")
_EMPTY_DIGEST = hashlib.sha256(b"").digest()


class Scope(IntEnum):
    """What a token allows; each scope allows what a lower one does."""

    READ = 1
    RUN = 2


@dataclass(frozen=True)
class TokenEntry:
    """One token of the file.

    Attributes:
        name: The name of its owner, for the log.
        scope: What it allows.
        digest: The SHA-256 hash of the token.
    """

    name: str
    scope: Scope
    digest: bytes


class TokensFileError(ValueError):
    """The tokens file is invalid; the message names the line and the error."""


class Tokens:
    """The valid tokens. Reads the file again with each call.

    If the file becomes unreadable or invalid, the previous tokens stay valid, and the log says why.

    Args:
        path: The tokens file.

    Raises:
        OSError: The file cannot be read.
        TokensFileError: The file is invalid.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = _read(path)
        self._entries = parse(self._seen, str(path))
        self._checked = time.monotonic()
        self._complaint = ""

    @property
    def names(self) -> list[str]:
        """The names in the file, each once."""
        return sorted({entry.name for entry in self._entries})

    def find(self, token: str) -> TokenEntry | None:
        """Return the entry of a token; None: it is not valid."""
        self._reload()
        digest = hashlib.sha256(token.encode()).digest()
        found = None
        for entry in self._entries:
            # Compare with all entries, so that the duration reveals nothing.
            if hmac.compare_digest(entry.digest, digest):
                found = entry
        if found is not None and len(token) < MIN_CHARACTERS:
            _logger.error("token_too_short", extra={"token_name": found.name, "minimum": MIN_CHARACTERS})
            return None
        return found

    def holds(self, entry: TokenEntry) -> bool:
        """Return whether an entry was in the file within the last `RECHECK_SECONDS`."""
        if time.monotonic() - self._checked > RECHECK_SECONDS:
            self._reload()
        return entry in self._entries

    def _reload(self) -> None:
        self._checked = time.monotonic()
        try:
            content = _read(self._path)
            if content == self._seen:
                return
            self._entries = parse(content, str(self._path))
        except (OSError, TokensFileError) as error:
            self._complain(str(error))
            return
        self._seen, self._complaint = content, ""
        _logger.info("tokens_reloaded", extra={"tokens": self.names})

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:
            self._complaint = complaint
            _logger.error("tokens_not_reloaded", extra={"why": complaint})


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise TokensFileError(
                f"{path}: other users can write to it and add tokens. Run: chmod go-w {path}"
            )
        content = file.read(_MAX_FILE_BYTES + 1)
    if len(content) > _MAX_FILE_BYTES:
        raise TokensFileError(f"{path}: larger than {_MAX_FILE_BYTES} bytes.")
    return content


def parse(content: bytes, name: str) -> tuple[TokenEntry, ...]:
    """Read a tokens file.

    Args:
        content: The content of the file.
        name: The file's name in messages.

    Raises:
        TokensFileError: A line is invalid, or the file has no token. Messages never quote a line.
    """
    entries: dict[bytes, TokenEntry] = {}
    for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            form = "NAME SCOPE sha256:HEX with scope run or read (create one with --new-token)"
            raise TokensFileError(f"{name}, line {number}: must be {form}.")
        entry = TokenEntry(match["name"], Scope[match["scope"].upper()], bytes.fromhex(match["sum"]))
        if entry.digest == _EMPTY_DIGEST:
            raise TokensFileError(f"{name}, line {number}: this is the hash of an empty token.")
        if entry.digest in entries:
            raise TokensFileError(f"{name}, line {number}: duplicates the token of an earlier line.")
        entries[entry.digest] = entry
    if not entries:
        raise TokensFileError(f"{name}: has no token. Add one with --new-token NAME:SCOPE.")
    return tuple(entries.values())


def add_new(path: Path, name: str, scope: str) -> str:
    """Create a token of 256 random bits, add its line to a tokens file, and return it.

    Raises:
        OSError: The file cannot be written.
        TokensFileError: The name, the scope or the file is invalid.
    """
    token = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    line = f"{name} {scope} sha256:{hashlib.sha256(token.encode()).hexdigest()}\n".encode()
    try:
        parse(line, "")
    except TokensFileError:
        message = (
            "--new-token must be NAME:SCOPE, with letters, digits, . _ - as NAME and run or read as SCOPE"
        )
        raise TokensFileError(f"{message} (got {name}:{scope}).") from None
    before = _read(path) if path.exists() else b""
    parse(before + b"\n" + line, str(path))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "ab") as file:
        file.write(b"\n" * (bool(before) and not before.endswith(b"\n")) + line)
    return token
