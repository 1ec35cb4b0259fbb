"""The tokens file: who may call, and how much. It holds no token, only their SHA-256 sums.

One line for each token, `NAME SCOPE sha256:HEX`; empty lines and lines that begin with `#` are none. A
name may stand there twice, as it does while a token is rotated.
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

LEAST_CHARACTERS = 32
"""A shorter token is never accepted: 32 characters of hexadecimal digits are 128 bits."""

RECHECK_SECONDS = 1.0
"""How old the answer of `holds` may be."""

_LARGEST_FILE = 1024 * 1024
_PREFIX = "nbr_"
_RANDOM_BYTES = 32
_LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,64})\s+(?P<scope>run|read)\s+sha256:(?P<sum>[0-9a-fA-F]{64})")
_SUM_OF_NOTHING = hashlib.sha256(b"").digest()


class Scope(IntEnum):
    """What a token allows; each scope allows what a lower one does."""

    READ = 1
    RUN = 2


@dataclass(frozen=True)
class TokenEntry:
    """One token of the file.

    Attributes:
        name: Whose it is, for the log.
        scope: What it allows.
        digest: SHA-256 of the token.
    """

    name: str
    scope: Scope
    digest: bytes


class TokensFileError(ValueError):
    """The tokens file cannot be used; the message says which line of it, and why."""


class Tokens:
    """The tokens that are valid now: the file is looked at with every call.

    A file that cannot be used any more changes nothing: what was valid before stays so, and the log says why.

    Args:
        path: The tokens file.

    Raises:
        OSError: It cannot be read.
        TokensFileError: It cannot be used.
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
        """Return the entry of a token; None: it is none of the valid ones."""
        self._reload()
        digest = hashlib.sha256(token.encode()).digest()
        found = None
        for entry in self._entries:
            # All of them, so that the time tells nothing.
            if hmac.compare_digest(entry.digest, digest):
                found = entry
        if found is not None and len(token) < LEAST_CHARACTERS:
            _logger.error("token is too short to be accepted; make one with --new-token: %s", found.name)
            return None
        return found

    def holds(self, entry: TokenEntry) -> bool:
        """Tell whether an entry was in the file a second ago at the most."""
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
        _logger.info("tokens reloaded", extra={"tokens": self.names})

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:
            self._complaint = complaint
            _logger.error("tokens file not reloaded, the last good one holds: %s", complaint)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise TokensFileError(
                f"{path}: others can write to it, and so let themselves in; chmod go-w {path}"
            )
        content = file.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise TokensFileError(f"{path}: more than {_LARGEST_FILE} bytes")
    return content


def parse(content: bytes, name: str) -> tuple[TokenEntry, ...]:
    """Read a tokens file.

    Args:
        content: What is in it.
        name: What messages call it.

    Raises:
        TokensFileError: A line is wrong, or there is no token at all. No message repeats what a line holds.
    """
    entries: dict[bytes, TokenEntry] = {}
    for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            form = "NAME SCOPE sha256:HEX, with run or read as SCOPE; --new-token writes such a line"
            raise TokensFileError(f"{name}, line {number}: not of the form {form}")
        entry = TokenEntry(match["name"], Scope[match["scope"].upper()], bytes.fromhex(match["sum"]))
        if entry.digest == _SUM_OF_NOTHING:
            raise TokensFileError(f"{name}, line {number}: this is the sum of an empty token")
        if entry.digest in entries:
            raise TokensFileError(f"{name}, line {number}: the same token is in an earlier line")
        entries[entry.digest] = entry
    if not entries:
        raise TokensFileError(f"{name}: there is no token in it; --new-token NAME:SCOPE writes one")
    return tuple(entries.values())


def add_new(path: Path, name: str, scope: str) -> str:
    """Make a token of 256 random bits, add its line to a tokens file, and return it.

    Raises:
        OSError: The file cannot be written.
        TokensFileError: The name or the scope cannot be one, or the file cannot be used.
    """
    token = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    line = f"{name} {scope} sha256:{hashlib.sha256(token.encode()).hexdigest()}\n".encode()
    try:
        parse(line, "")
    except TokensFileError:
        message = f"{name}:{scope} is not NAME:SCOPE: letters, digits, . _ - and then run or read"
        raise TokensFileError(message) from None
    before = _read(path) if path.exists() else b""
    parse(before + b"\n" + line, str(path))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "ab") as file:
        file.write(b"\n" * (bool(before) and not before.endswith(b"\n")) + line)
    return token
