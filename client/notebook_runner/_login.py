"""Logs in with the device flow of OAuth 2.0 (RFC 8628), keeps the tokens in a file, and refreshes them."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import http.client
import ipaddress
import json
import os
import ssl
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from ._version import __version__
from .errors import LoginFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

__all__ = ["DEFAULT_SCOPE", "Login", "current_token", "log_in", "log_out", "save"]

DEFAULT_SCOPE = "openid offline_access"

REQUEST_SECONDS = 10.0
"""Maximum time that the issuer may be silent during a request."""

REFRESH_MARGIN_SECONDS = 30.0
"""How long before its expiry a token is refreshed."""

DEFAULT_LIFETIME_SECONDS = 300.0
"""Lifetime of a token that does not say when it expires."""

DEFAULT_INTERVAL_SECONDS = 5.0
"""Time between two polls, unless the issuer sets another; RFC 8628 defines it."""

SLOW_DOWN_SECONDS = 5.0
"""By how much `slow_down` of the issuer increases it; RFC 8628 defines it."""

MAX_RESPONSE_BYTES = 1024 * 1024

_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_OK = 200


@dataclass(frozen=True)
class Login:
    """A login at an issuer.

    Attributes:
        issuer: The URL of the issuer.
        client_id: The id with which the command is registered there.
        token_endpoint: The URL to refresh tokens at.
        kind: Which token to send: `access_token` or `id_token`.
        token: The token to send.
        refresh_token: The token to refresh it with; empty: it cannot be refreshed.
        expires: When it expires, in seconds since the epoch.
        issuer_ca: The file of CA certificates to trust for the issuer; empty: those of the system.
    """

    issuer: str
    client_id: str
    token_endpoint: str
    kind: str
    token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires: float
    issuer_ca: str = ""


class _UnreachableIssuer(LoginFailed):
    """The issuer cannot be reached, so that a later attempt may succeed."""


def log_in(
    issuer: str,
    client_id: str,
    show: Callable[[str, str], None],
    *,
    scope: str = DEFAULT_SCOPE,
    audience: str = "",
    kind: str = "access_token",
    issuer_ca: str = "",
    wait: Callable[[float], None] = time.sleep,
) -> Login:
    """Log in with the device flow; returns when somebody has approved the login in a browser.

    Args:
        issuer: The URL of the issuer.
        client_id: The id with which the command is registered there.
        show: Shows the URL to open, and the code to enter there.
        scope: The scopes to request, separated by blanks.
        audience: The audience to request, for issuers that have such a parameter; empty: none.
        kind: Which token to send to the server: `access_token` or `id_token`.
        issuer_ca: A file of CA certificates to trust for the issuer; empty: those of the system.
        wait: Waits for a number of seconds.

    Raises:
        LoginFailed: The issuer refused the login, cannot be reached, or has no device flow.
    """
    configuration = _request(issuer.rstrip("/") + "/.well-known/openid-configuration", issuer_ca)
    if configuration.get("issuer") != issuer:
        raise LoginFailed(
            f"{issuer} calls itself {configuration.get('issuer')!r}. Use that URL as the issuer."
        )
    endpoint = configuration.get("device_authorization_endpoint")
    token_endpoint = configuration.get("token_endpoint")
    if not isinstance(endpoint, str) or not isinstance(token_endpoint, str):
        raise LoginFailed(f"{issuer} does not offer the device flow.")
    asked = {"client_id": client_id, "scope": scope, **({"audience": audience} if audience else {})}
    device = _request(endpoint, issuer_ca, asked)
    if error := _error(device):
        raise LoginFailed(f"{issuer} refused to begin a login: {error}.")
    uri, user_code, device_code = (
        device.get(name) for name in ("verification_uri", "user_code", "device_code")
    )
    if not (isinstance(uri, str) and isinstance(user_code, str) and isinstance(device_code, str)):
        raise LoginFailed(f"{issuer} answered without a code for this device.")
    complete = device.get("verification_uri_complete")
    show(complete if isinstance(complete, str) else uri, user_code)
    login = Login(issuer, client_id, token_endpoint, kind, "", "", 0.0, issuer_ca)
    return _with_tokens(login, _poll(login, device_code, device, wait))


def current_token(path: Path) -> str:
    """Return the token of a login, and refresh it first if it expires soon.

    Args:
        path: The file of the login.

    Raises:
        LoginFailed: The login has expired and cannot be refreshed, or its file is invalid.
        OSError: The file cannot be read or written.
    """
    login = _load(path)
    if _lasts(login):
        return login.token
    with _locked(path):
        # Another process may have refreshed it, and a refresh token may be valid only once.
        login = _load(path)
        if _lasts(login):
            return login.token
        try:
            login = _refreshed(login)
        except _UnreachableIssuer:
            if login.expires > time.time():
                return login.token
            raise
        save(path, login)
    return login.token


def save(path: Path, login: Login) -> None:
    """Write the file of a login, which only its owner can read.

    Raises:
        OSError: The file cannot be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(login), file)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def log_out(path: Path) -> bool:
    """Remove the file of a login, and return whether there was one.

    Raises:
        OSError: The file cannot be removed.
    """
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _lasts(login: Login) -> bool:
    return login.expires - time.time() > REFRESH_MARGIN_SECONDS


def _load(path: Path) -> Login:
    try:
        return Login(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise LoginFailed("You have logged out. Log in again: notebook-runner login") from error
    except (ValueError, TypeError) as error:
        raise LoginFailed(f"The login in {path} is invalid. Log in again: notebook-runner login") from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _poll(
    login: Login, device_code: str, device: Mapping[str, Any], wait: Callable[[float], None]
) -> dict[str, Any]:
    """Ask for tokens until somebody has approved or denied the login."""
    interval = _seconds(device.get("interval"), DEFAULT_INTERVAL_SECONDS)
    end = time.monotonic() + _seconds(device.get("expires_in"), DEFAULT_LIFETIME_SECONDS)
    asked = {"grant_type": _DEVICE_GRANT, "device_code": device_code, "client_id": login.client_id}
    while time.monotonic() < end:
        wait(interval)
        try:
            tokens = _request(login.token_endpoint, login.issuer_ca, asked)
        except _UnreachableIssuer:
            # RFC 8628 demands fewer polls of an issuer that does not answer.
            interval *= 2
            continue
        match tokens.get("error"):
            case None:
                return tokens
            case "authorization_pending":
                pass
            case "slow_down":
                interval += SLOW_DOWN_SECONDS
            case "access_denied":
                raise LoginFailed("The login was denied.")
            case "expired_token":
                break
            case _:
                raise LoginFailed(f"{login.issuer} refused the login: {_error(tokens)}.")
    raise LoginFailed("Nobody approved the login in time. Log in again: notebook-runner login")


def _refreshed(login: Login) -> Login:
    if not login.refresh_token:
        raise LoginFailed("The login has expired. Log in again: notebook-runner login")
    asked = {
        "grant_type": "refresh_token",
        "refresh_token": login.refresh_token,
        "client_id": login.client_id,
    }
    tokens = _request(login.token_endpoint, login.issuer_ca, asked)
    if error := _error(tokens):
        raise LoginFailed(
            f"The login has expired ({login.issuer} answered: {error}). Log in again: notebook-runner login"
        )
    return _with_tokens(login, tokens)


def _with_tokens(login: Login, tokens: Mapping[str, Any]) -> Login:
    token = tokens.get(login.kind)
    if not isinstance(token, str) or not token:
        raise LoginFailed(f"{login.issuer} answered without {login.kind}.")
    claims = _claims(token)
    if claims is None:
        raise LoginFailed(
            f"The {login.kind} of {login.issuer} is not a JWT, which the server needs. "
            "Log in with --id-token."
        )
    lifetime = _seconds(tokens.get("expires_in"), DEFAULT_LIFETIME_SECONDS)
    expires = _seconds(claims.get("exp"), time.time() + lifetime)
    refresh_token = tokens.get("refresh_token", login.refresh_token)
    return replace(login, token=token, refresh_token=str(refresh_token), expires=expires)


def _claims(token: str) -> dict[str, Any] | None:
    """Return the claims of a JWT without verifying it; only the server has to."""
    try:
        _, payload, _ = token.split(".")
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, RecursionError):
        return None
    return claims if isinstance(claims, dict) else None


def _seconds(value: Any, default: float) -> float:
    """Return a positive number that the issuer sent, or the default."""
    return float(value) if isinstance(value, int | float) and value > 0 else default


def _error(document: Mapping[str, Any]) -> str:
    """Return the error in a response of the issuer; empty: there is none."""
    code, description = document.get("error"), document.get("error_description")
    if not code:
        return ""
    return f"{code}, {description}".rstrip(".") if isinstance(description, str) and description else str(code)


class _RefuseRedirects(HTTPRedirectHandler):
    """Follows no redirects, which would take tokens elsewhere."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _request(url: str, issuer_ca: str, form: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Send a request to the issuer, and return the JSON object that it answers; that of an error, too."""
    _check_url(url)
    headers = {"Accept": "application/json", "User-Agent": f"notebook-runner-python/{__version__}"}
    request = Request(url, urlencode(form).encode() if form else None, headers)  # noqa: S310 - checked by _check_url
    try:
        context = ssl.create_default_context(cafile=issuer_ca or None)
        opener = build_opener(HTTPSHandler(context=context), _RefuseRedirects())
        try:
            response = opener.open(request, timeout=REQUEST_SECONDS)
        except HTTPError as error:
            response = error
        with response:
            status, content = response.status, response.read(MAX_RESPONSE_BYTES)
    except URLError as error:
        raise _UnreachableIssuer(f"Cannot reach {url}: {error.reason}.") from error
    except (OSError, http.client.HTTPException) as error:
        raise _UnreachableIssuer(f"Cannot reach {url}: {error or type(error).__name__}.") from error
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or (status != _OK and "error" not in document):
        problem = f"status {status}" if status != _OK else "something other than a JSON object"
        raise _UnreachableIssuer(f"{url} answered with {problem}.")
    return document


def _check_url(url: str) -> None:
    """Refuse URLs over which others could read tokens."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        is_local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = False
    if not host or parts.scheme not in {"https", "http"} or (parts.scheme == "http" and not is_local):
        raise LoginFailed(f"The issuer's URLs must be https:// (got {url!r}).")
