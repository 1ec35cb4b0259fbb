"""Digests of requests: whether a request id comes again with the same payload.

A digest is `2:KEY:HEX`: the form, which key was used, and the digest. What a request leaves out is not in it,
so the same request has the same digest in every version, however many fields later ones add. Earlier versions
had other forms, which are made again for comparison.
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

_FORM = "2"
_KEY_CHARACTERS = 16
_ID = "request_id"
_URIS = ("notebook_uri", "output_uri")
_TIMES = ("run_timeout", "cell_timeout", "output_timeout")


def fingerprint(spec: StartSpec, key: bytes) -> str:
    """Return the digest of a request's payload, which is all of it but the request id.

    Without the key nobody can try whether a guess has the same.
    """
    payload = _payload(spec)
    defaults = {one.name: _default(one) for one in fields(spec)}
    limits = {name: value for name, value in payload.pop("limits").items() if value}
    given = {name: value for name, value in payload.items() if value != defaults[name]}
    text = _encoded({**given, **({"limits": limits} if limits else {})})
    return f"{_FORM}:{_name(key)}:{hmac.digest(key, text, 'sha256').hex()}"


def is_same(known: str, spec: StartSpec, key: bytes) -> bool:
    """Tell whether a digest of the history, of whatever form, is that of a request.

    A digest that was made with a key that is lost cannot be compared: the request id decides. Digests of
    earlier forms do not name their key, so with another one such a request is taken for a different one.
    """
    form, _, rest = known.partition(":")
    if not rest:
        return any(hmac.compare_digest(known, one) for one in _earlier(spec, key))
    name, _, _ = rest.partition(":")
    if form != _FORM or name != _name(key):
        return True
    return hmac.compare_digest(known, fingerprint(spec, key))


def _name(key: bytes) -> str:
    """Return a name for a key, from which nobody can tell the key."""
    return hashlib.sha256(key).hexdigest()[:_KEY_CHARACTERS]


def _payload(spec: StartSpec) -> dict[str, Any]:
    payload = {one.name: getattr(spec, one.name) for one in fields(spec) if one.name != _ID}
    payload["limits"] = asdict(spec.limits)
    if payload.pop("parameters_are_ordered"):
        payload["parameters"] = json.dumps(dict(spec.parameters))
    if spec.content is not None:
        payload["content"] = hashlib.sha256(spec.content).hexdigest()
    return payload


def _default(field: Any) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _encoded(payload: dict[str, Any]) -> bytes:
    return json.dumps(payload, sort_keys=True).encode()


def _earlier(spec: StartSpec, key: bytes) -> Iterator[str]:
    """Yield what earlier versions made of the same request, the latest first: 64 hexadecimal digits."""
    payload = _payload(spec)
    # With a key, and all fields that there were.
    yield hmac.digest(key, _encoded(payload), "sha256").hex()
    # Without a key; URIs only where they were given.
    payload = {name: value for name, value in payload.items() if name not in _URIS or value}
    yield hashlib.sha256(_encoded(payload)).hexdigest()
    # With three, and before that two, limits among the other fields, and None where they were not given,
    # which is not told from zero any more.
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
    """Tell whether a key has not the length that it was made with: one that is cut short can be guessed."""
    path = folder / KEY_FILE
    return path.is_file() and path.stat().st_size != KEY_BYTES


def request_key(folder: Path) -> bytes:
    """Return the key of a state folder, made where it has none; blocks.

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
