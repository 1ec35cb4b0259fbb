"""The shares file: how much of the server owners may use, by name and by group."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from notebook_runner_server.api.access_file import AccessFile, AccessFileError
from notebook_runner_server.runs.shares import UNLIMITED, ShareRule, ShareRules

_logger = logging.getLogger(__name__)

_LINE = re.compile(r"(?:(?P<kind>name|group)\s+(?P<limits>\S+)\s+(?P<value>\S.*)|anyone\s+(?P<all>\S+))")
_LIMITS = {"active": "max_active", "queued": "max_queued", "history": "max_history_bytes"}
_SMALLEST = {"active": 1, "queued": 0, "history": 1}
_COUNT = re.compile(r"[0-9]{1,10}")
_FORM = (
    "must be name LIMITS NAME, group LIMITS GROUP or anyone LIMITS, with limits such as "
    "active=4,queued=100,history=20Gi"
)

MAX_COUNT = 2**31 - 1
"""The largest limit of a number of runs."""

MAX_BYTES = 2**63 - 1
"""The largest limit of a history."""


def shares_file(path: Path, default: ShareRule) -> AccessFile[ShareRules]:
    """Open the shares file, which is read again when it changes.

    Args:
        path: The file.
        default: The limits that no line sets.

    Raises:
        OSError: The file cannot be read.
        AccessFileError: The file is invalid.
    """
    return AccessFile(
        path,
        lambda content, name: parse_shares(content, name, default),
        lambda _, rules: _logger.info(
            "shares_reloaded", extra={"names": len(rules.names), "groups": len(rules.groups)}
        ),
        lambda why: _logger.error("shares_not_reloaded", extra={"why": why}),
    )


def parse_shares(content: bytes, name: str, default: ShareRule) -> ShareRules:
    """Read a shares file.

    It has one line per rule: `name LIMITS NAME`, `group LIMITS GROUP` or `anyone LIMITS`. Limits are
    `active=`, `queued=` and `history=` with a number, or `unlimited`; several are separated by commas, and
    those of a history may have a unit. A name or a group may have blanks; empty lines and lines that begin
    with `#` are ignored.

    Args:
        content: The content of the file.
        name: The file's name in messages.
        default: The limits that no line sets.

    Raises:
        AccessFileError: A line is invalid, or the file has no rule.
    """
    found: dict[str, dict[str, ShareRule]] = {"name": {}, "group": {}, "anyone": {}}
    for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            kind, value, rule = _parse_rule(text)
        except ValueError as error:
            raise AccessFileError(f"{name}, line {number}: {error}") from None
        if value in found[kind]:
            raise AccessFileError(f"{name}, line {number}: duplicates the rule of an earlier line.")
        found[kind][value] = rule
    if not any(found.values()):
        raise AccessFileError(f"{name}: has no rule. Add one, such as: group active=4 data-team")
    return ShareRules(default, found["name"], found["group"], found["anyone"].get("", ShareRule()))


def _parse_rule(line: str) -> tuple[str, str, ShareRule]:
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(f"{_FORM}.")
    if match["all"]:
        return "anyone", "", _parse_limits(match["all"])
    return match["kind"], match["value"], _parse_limits(match["limits"])


def _parse_limits(text: str) -> ShareRule:
    limits: dict[str, float] = {}
    for one in text.split(","):
        key, equals, value = one.partition("=")
        if not equals or key not in _LIMITS:
            raise ValueError(f"{_FORM} (got {text!r}).")
        if _LIMITS[key] in limits:
            raise ValueError(f"sets {key} twice.")
        limits[_LIMITS[key]] = UNLIMITED if value == "unlimited" else _parse_limit(key, value)
    return ShareRule(**limits)


def _parse_limit(key: str, value: str) -> int:
    largest = MAX_BYTES if key == "history" else MAX_COUNT
    number = _parse_bytes(value) if key == "history" else _parse_count(value)
    if number is None or not _SMALLEST[key] <= number <= largest:
        kind = "a size such as 20Gi" if key == "history" else f"a number from {_SMALLEST[key]} to {largest}"
        raise ValueError(f"{key} must be {kind}, or unlimited (got {value!r}).")
    return number


def _parse_count(value: str) -> int | None:
    return int(value) if _COUNT.fullmatch(value) else None


def _parse_bytes(value: str) -> int | None:
    # It brings the client, and so gRPC, which takes long to import.
    from notebook_runner import _quantities  # noqa: PLC0415 - see the comment

    try:
        return _quantities.parse_size(value)
    except (ValueError, OverflowError):
        return None
