"""The public keys of an OpenID Connect issuer: found by discovery, and kept while it cannot be reached.

A daemon thread fetches them, one attempt at a time, so that an issuer that is slow or down delays neither the
event loop nor the end of the server.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, HTTPSHandler, OpenerDirector, Request, build_opener

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from notebook_runner_server.api.oidc_options import OidcOptions, is_safe_url

_logger = logging.getLogger(__name__)

FETCH_SECONDS = 5.0
"""Maximum time that the issuer may be silent during a request."""

BODY_SECONDS = 15.0
"""Maximum time for a response of the issuer, after its first byte."""

WAIT_SECONDS = 10.0
"""Maximum time that a call waits for keys."""

REFRESH_SECONDS = 300.0
"""Interval between fetches: a key that the issuer withdraws is refused after this time."""

RETRY_SECONDS = 5.0
"""Time between a failed fetch and the next one."""

UNKNOWN_KEY_SECONDS = 10.0
"""Minimum time between fetches because of unknown keys, which anyone can name in a token."""

MAX_DOCUMENT_BYTES = 512 * 1024
"""Maximum size of a response of the issuer."""

MAX_KEYS = 100
"""Maximum number of keys of the issuer."""

_RSA_BITS = range(2048, 8192 + 1)
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
# The algorithms that a key can have, all of them asymmetric, by the key's type and curve.
_ALGORITHMS = {
    ("RSA", None): _RSA,
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
# All others, those of private keys among them, are left out.
_PUBLIC_MEMBERS = ("kty", "n", "e", "crv", "x", "y")


class IssuerError(Exception):
    """The issuer's keys cannot be fetched; the message is a sentence."""


@dataclass(frozen=True)
class Key:
    """A public key of the issuer.

    Attributes:
        public_key: The key.
        algorithms: The algorithms that a signature with it may use.
    """

    public_key: Any
    algorithms: tuple[str, ...]


Keys = Mapping[str, Key]
"""Keys by their ids; a key without one has the empty id."""


class KeyCache:
    """The issuer's keys, fetched periodically, and when a token names an unknown one.

    Args:
        fetch: Fetches the keys; blocks, and raises IssuerError.
        max_age: Seconds that the last keys stay in use while they cannot be fetched.
    """

    def __init__(self, fetch: Callable[[], Keys], max_age: float) -> None:
        self._fetch = fetch
        self._max_age = max_age
        self._keys: Keys = {}
        self._fetched = float("-inf")
        self._asked_for_unknown = float("-inf")
        self._attempt: asyncio.Future[None] | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._problem = ""

    @property
    def problem(self) -> str:
        """Why the last fetch failed; empty: it did not."""
        return self._problem

    def open(self) -> None:
        """Start fetching keys, on the running event loop."""
        self._refreshing = asyncio.create_task(self._refresh())

    def close(self) -> None:
        """Stop fetching keys."""
        if self._refreshing is not None:
            self._refreshing.cancel()

    async def find(self, key_id: str) -> Key | None:
        """Return a key; None: the issuer has no such key.

        Args:
            key_id: The id of the key; empty: the issuer's only key.

        Raises:
            IssuerError: There are no keys that may still be used.
        """
        if not self._are_usable() and self._attempt is not None:
            await self._finished(self._attempt)
        if not self._are_usable():
            raise IssuerError(self._problem or "The issuer has not answered yet.")
        key = self._lookup(key_id)
        now = time.monotonic()
        if key is None and self._attempt is not None:
            await self._finished(self._attempt)
        elif key is None and now - self._asked_for_unknown >= UNKNOWN_KEY_SECONDS:
            self._asked_for_unknown = now
            await self._finished(self._start_attempt())
        return key or self._lookup(key_id)

    def has(self, key_id: str) -> bool:
        """Return whether the issuer's last keys include a key."""
        return self._lookup(key_id) is not None

    def _lookup(self, key_id: str) -> Key | None:
        if not key_id and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(key_id)

    def _are_usable(self) -> bool:
        return time.monotonic() - self._fetched <= self._max_age

    async def _refresh(self) -> None:
        while True:
            await self._start_attempt()
            pause = RETRY_SECONDS if self._problem else REFRESH_SECONDS
            await asyncio.sleep(min(pause, self._max_age / 2))

    @staticmethod
    async def _finished(attempt: asyncio.Future[None]) -> None:
        """Wait for an attempt, but not for long; it continues in any case."""
        await asyncio.wait([attempt], timeout=WAIT_SECONDS)

    def _start_attempt(self) -> asyncio.Future[None]:
        """Return the attempt in progress, or begin one."""
        if self._attempt is None:
            loop = asyncio.get_running_loop()
            self._attempt = loop.create_future()
            threading.Thread(target=self._attempt_fetch, args=[loop], name="oidc-keys", daemon=True).start()
        return self._attempt

    def _attempt_fetch(self, loop: asyncio.AbstractEventLoop) -> None:
        keys: Keys = {}
        problem = ""
        try:
            keys = self._fetch()
        except IssuerError as error:
            problem = str(error)
        except Exception:
            # Whatever a document of the issuer has triggered, the next attempt may succeed.
            _logger.exception("oidc_fetch_failed")
            problem = "The issuer's keys cannot be read. See the server's log."
        try:
            loop.call_soon_threadsafe(self._on_attempt, keys, problem)
        except RuntimeError:
            # The server has ended.
            return

    def _on_attempt(self, keys: Keys, problem: str) -> None:
        if problem and problem != self._problem:
            _logger.error("oidc_keys_not_fetched", extra={"why": problem})
        if not problem:
            self._fetched = time.monotonic()
            if keys.keys() != self._keys.keys() or self._problem:
                _logger.info("oidc_keys_fetched", extra={"key_ids": [one[:100] for one in keys]})
            self._keys = keys
        self._problem = problem
        attempt, self._attempt = self._attempt, None
        if attempt is not None and not attempt.done():
            attempt.set_result(None)


def fetch_keys(options: OidcOptions) -> Keys:
    """Fetch the keys of an issuer by discovery; blocks.

    Raises:
        IssuerError: The issuer cannot be reached, or its answers are invalid.
    """
    url = options.issuer.rstrip("/") + "/.well-known/openid-configuration"
    try:
        opener = _opener(options)
        headers = _headers(options)
    except (OSError, ValueError) as error:
        raise IssuerError(f"The keys of {options.issuer} cannot be fetched: {error}") from error
    document = _get(opener, url, headers)
    if document.get("issuer") != options.issuer:
        raise IssuerError(
            f"{url} describes the issuer {str(document.get('issuer'))[:200]!r}, not {options.issuer!r}."
        )
    keys_url = document.get("jwks_uri")
    if not isinstance(keys_url, str) or not is_safe_url(keys_url):
        raise IssuerError(f"{url} has no https:// URL as jwks_uri (got {str(keys_url)[:200]!r}).")
    keys = _parse_keys(_get(opener, keys_url, headers))
    if not keys:
        raise IssuerError(f"{keys_url} has no key for signatures of tokens.")
    return keys


def _opener(options: OidcOptions) -> OpenerDirector:
    context = ssl.create_default_context(cafile=None if options.ca is None else str(options.ca))
    return build_opener(HTTPSHandler(context=context), _RefuseRedirects())


class _RefuseRedirects(HTTPRedirectHandler):
    """Follows no redirects, which could lead anywhere, with the token of the operator."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _headers(options: OidcOptions) -> dict[str, str]:
    headers = {"Accept": "application/json", "User-Agent": "notebook-runner-server"}
    if options.token_file is not None:
        # Read each time, because tokens of pods are rotated.
        headers["Authorization"] = f"Bearer {options.token_file.read_text('ascii').strip()}"
    return headers


def _get(opener: OpenerDirector, url: str, headers: Mapping[str, str]) -> dict[str, Any]:
    try:
        with opener.open(Request(url, headers=dict(headers)), timeout=FETCH_SECONDS) as response:  # noqa: S310 - checked by is_safe_url
            content = _read(response, url)
        document = json.loads(content)
    except HTTPError as error:
        error.close()
        raise IssuerError(f"{url} answered with status {error.code}.") from error
    except URLError as error:
        raise IssuerError(f"{url} cannot be reached: {error.reason}.") from error
    except (OSError, http.client.HTTPException) as error:
        raise IssuerError(f"{url} cannot be reached: {error or type(error).__name__}.") from error
    except (ValueError, RecursionError) as error:
        raise IssuerError(f"{url} did not answer with JSON.") from error
    if not isinstance(document, dict):
        raise IssuerError(f"{url} did not answer with a JSON object.")
    return document


def _read(response: Any, url: str) -> bytes:
    content, end = b"", time.monotonic() + BODY_SECONDS
    while chunk := response.read1(64 * 1024):
        content += chunk
        if len(content) > MAX_DOCUMENT_BYTES:
            raise IssuerError(f"{url} answered with more than {MAX_DOCUMENT_BYTES} bytes.")
        if time.monotonic() > end:
            raise IssuerError(f"{url} took more than {BODY_SECONDS:g} s to answer.")
    return content


def _parse_keys(document: Mapping[str, Any]) -> Keys:
    """Return the usable keys of a JWKS; others are left out, as RFC 7517 demands."""
    listed = document.get("keys")
    found: dict[str, Key] = {}
    for one in listed[:MAX_KEYS] if isinstance(listed, list) else []:
        key = _parse_key(one) if isinstance(one, dict) else None
        if key is not None:
            found.setdefault(str(one.get("kid", "")), key)
    return found


def _parse_key(jwk: dict[str, Any]) -> Key | None:
    operations = jwk.get("key_ops", ["verify"])
    if jwk.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    kind, curve, algorithm = jwk.get("kty"), jwk.get("crv"), jwk.get("alg")
    if not isinstance(kind, str) or not isinstance(curve, str | None):
        return None
    algorithms = _ALGORITHMS.get((kind, curve), ())
    if algorithm is not None:
        algorithms = tuple(one for one in algorithms if one == algorithm)
    if not algorithms:
        return None
    members = {name: jwk[name] for name in _PUBLIC_MEMBERS if name in jwk}
    try:
        public_key = jwt.PyJWK(members, algorithm=algorithms[0]).key
    except (jwt.PyJWTError, ValueError, TypeError, ArithmeticError):
        return None
    if isinstance(public_key, RSAPublicKey) and public_key.key_size not in _RSA_BITS:
        return None
    return Key(public_key, algorithms)
