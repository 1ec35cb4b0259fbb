"""Digests of requests, to find out whether a request id comes again with the same payload.

A digest is `2:KEY:HEX`: its format, the name of its key, and the digest. It does not cover what a request
leaves out, so the same request has the same digest in every version, however many fields later ones add.
Earlier versions had other formats, which are computed again for comparison.

A request may contain secrets that can be guessed. So the digest, which the history stores with the run, is
keyed: it is useless without the key, which is in a file of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import itertools
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from notebook_runner_server.runs.folder import private, sync_folder
from notebook_runner_server.runs.model import StartSpec

_FORMAT = "2"
_KEY_CHARACTERS = 16
_ID = "request_id"
_URIS = ("notebook_uri", "output_uri")
_TIMES = ("run_timeout", "cell_timeout", "output_timeout")
_SINCE_FORMAT_2 = ("name", "files", "priority", "retry", "notify_uri")
"""Fields of a request that came with or after format 2, so that earlier formats do not have them."""


def compute_digest(spec: StartSpec, key: bytes) -> str:
    """Return the digest of a request's payload: everything but the request id."""
    payload = _payload(spec)
    defaults = {one.name: _default(one) for one in fields(spec)}
    limits = {name: value for name, value in payload.pop("limits").items() if value}
    given = {name: value for name, value in payload.items() if value != defaults[name]}
    text = _encoded({**given, **({"limits": limits} if limits else {})})
    return f"{_FORMAT}:{_name(key)}:{hmac.digest(key, text, 'sha256').hex()}"


def is_same(known: str, spec: StartSpec, key: bytes) -> bool:
    """Return whether a stored digest, of any format, is that of a request.

    A digest whose key is lost cannot be compared, so the request id decides. Digests of earlier formats do
    not name their key; after the loss of that key, the same request counts as a different one.
    """
    version, _, rest = known.partition(":")
    if not rest:
        return any(hmac.compare_digest(known, one) for one in _earlier(spec, key))
    name, _, _ = rest.partition(":")
    if version != _FORMAT or name != _name(key):
        return True
    return hmac.compare_digest(known, compute_digest(spec, key))


def _name(key: bytes) -> str:
    """Return a name for a key that does not reveal it."""
    return hashlib.sha256(key).hexdigest()[:_KEY_CHARACTERS]


def _payload(spec: StartSpec) -> dict[str, Any]:
    payload = {one.name: getattr(spec, one.name) for one in fields(spec) if one.name != _ID}
    payload["limits"] = asdict(spec.limits)
    if payload.pop("parameters_are_ordered"):
        payload["parameters"] = json.dumps(dict(spec.parameters))
    if spec.files:
        payload["files"] = {file.path: hashlib.sha256(file.content).hexdigest() for file in spec.files}
    if spec.retry is not None:
        payload["retry"] = {**asdict(spec.retry), "states": [state.value for state in spec.retry.states]}
    if spec.content is not None:
        payload["content"] = hashlib.sha256(spec.content).hexdigest()
    return payload


def _default(field: Any) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _encoded(payload: dict[str, Any]) -> bytes:
    return json.dumps(payload, sort_keys=True).encode()


def _earlier(spec: StartSpec, key: bytes) -> Iterator[str]:
    """Yield the digests of earlier formats for a request, the latest first: 64 hexadecimal digits."""
    payload = _payload(spec)
    if any(payload.pop(name) for name in _SINCE_FORMAT_2):
        return
    # Keyed, over all fields of that time.
    yield hmac.digest(key, _encoded(payload), "sha256").hex()
    # Without a key; URIs only if they were set.
    payload = {name: value for name, value in payload.items() if name not in _URIS or value}
    yield hashlib.sha256(_encoded(payload)).hexdigest()
    # With three (before that, two) limits among the other fields, and None for those that were not set,
    # which today's requests do not distinguish from zero.
    limits = payload.pop("limits")
    for names in (_TIMES, _TIMES[:2]):
        if any(value for name, value in limits.items() if name not in names):
            continue
        choices = [(limits[name],) if limits[name] else (None, 0.0) for name in names]
        for values in itertools.product(*choices):
            text = _encoded({**payload, **dict(zip(names, values, strict=True))})
            yield hashlib.sha256(text).hexdigest()


KEY_FILE = "request-key"
KEY_BYTES = 32


def is_key_damaged(folder: Path) -> bool:
    """Return whether the key has the wrong length: a truncated key can be guessed."""
    path = folder / KEY_FILE
    return path.is_file() and path.stat().st_size != KEY_BYTES


def request_key(folder: Path) -> bytes:
    """Return the key of a state folder, and create it if necessary; blocks.

    Raises:
        OSError: It cannot be read or written.
    """
    path = folder / KEY_FILE
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    key = secrets.token_bytes(KEY_BYTES)
    draft = folder / f"{KEY_FILE}.new"
    with open(draft, "wb", opener=private) as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(folder)
    return key
