"""Accepts JWTs of an OpenID Connect issuer as credentials."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jwt

from notebook_runner_server.api.oidc_keys import IssuerError, Key, KeyCache, fetch_keys
from notebook_runner_server.api.oidc_options import (
    MAX_NAME_CHARACTERS,
    OidcOptions,
    RefusedTokenError,
    scopes_file,
)
from notebook_runner_server.audit import AccessChange
from notebook_runner_server.errors import NotReadyError
from notebook_runner_server.runs.caller import Caller

LEEWAY_SECONDS = 30.0
"""Maximum difference between the clocks of issuer and server."""

_REQUIRED = ["aud", "exp", "iss"]
# What PyJWT and json raise for tokens that strangers have made, beyond PyJWT's own errors.
_MALFORMED = (jwt.PyJWTError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True)
class VerifiedJwt:
    """A JWT that was valid when its call began.

    Attributes:
        caller: Who sent it.
        key_id: The id of the key that it is signed with.
        expires: When it expires, in seconds since the epoch.
    """

    caller: Caller
    key_id: str
    expires: float


class JwtVerifier:
    """Verifies JWTs of one issuer.

    Args:
        options: The issuer, and what its tokens must have.
        on_scopes_change: Handles a change of the scopes file.

    Raises:
        OSError: The scopes file cannot be read.
        AccessFileError: The scopes file is invalid.
    """

    def __init__(self, options: OidcOptions, on_scopes_change: Callable[[AccessChange], object]) -> None:
        self._options = options
        self._rules = scopes_file(options.scopes_file, on_scopes_change)
        self._keys = KeyCache(partial(fetch_keys, options), options.key_max_age)

    def open(self) -> None:
        """Start fetching the issuer's keys, on the running event loop."""
        self._keys.open()

    def close(self) -> None:
        """Stop fetching keys."""
        self._keys.close()

    async def verify(self, token: str) -> VerifiedJwt:
        """Return a valid token's content.

        Raises:
            RefusedTokenError: The token is not valid.
            NotReadyError: There are no keys to verify it with.
        """
        key_id = self._key_id(token)
        try:
            key = await self._keys.find(key_id)
        except IssuerError as error:
            message = f"The server cannot verify tokens of {self._options.issuer}. {error} Try again later."
            raise NotReadyError(message) from error
        if key is None:
            raise RefusedTokenError("Invalid token: the issuer has no key with the key id in its header.")
        claims = self._claims(token, key)
        name, groups = self._name(claims), self._groups(claims)
        scopes = self._rules.latest().scopes(name, groups)
        return VerifiedJwt(Caller(name, scopes, frozenset(groups)), key_id, claims["exp"])

    def holds(self, verified: VerifiedJwt) -> bool:
        """Return whether a token has not expired, its key is not withdrawn, and its caller has its scopes."""
        scopes = self._rules.recent().scopes(verified.caller.name, verified.caller.groups)
        return (
            time.time() <= verified.expires + LEEWAY_SECONDS
            and self._keys.has(verified.key_id)
            and scopes >= verified.caller.scopes
        )

    def _key_id(self, token: str) -> str:
        """Return the key id of a token that claims to be of the issuer, so that others ask for no keys."""
        try:
            parts = jwt.decode_complete(token, options={"verify_signature": False})
        except _MALFORMED:
            raise RefusedTokenError("Invalid token: it is not a signed JWT.") from None
        header, claims = parts["header"], parts["payload"]
        if claims.get("iss") != self._options.issuer:
            raise RefusedTokenError(f"Invalid token: its issuer (iss) is not {self._options.issuer}.")
        if "crit" in header:
            raise RefusedTokenError("Invalid token: its header has extensions (crit) that are not supported.")
        key_id = header.get("kid", "")
        return key_id if isinstance(key_id, str) else ""

    def _claims(self, token: str, key: Key) -> dict[str, Any]:
        options = self._options
        try:
            claims = jwt.decode(
                token,
                key.public_key,
                algorithms=list(key.algorithms),
                audience=options.audience,
                issuer=options.issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": _REQUIRED},
            )
            return {**claims, "exp": float(claims["exp"])}
        except jwt.ExpiredSignatureError:
            raise RefusedTokenError("Invalid token: it has expired.") from None
        except (jwt.ImmatureSignatureError, jwt.InvalidIssuedAtError):
            raise RefusedTokenError("Invalid token: it is not valid yet (nbf or iat).") from None
        except jwt.InvalidAudienceError:
            raise RefusedTokenError(f"Invalid token: its audience (aud) is not {options.audience}.") from None
        except jwt.MissingRequiredClaimError as error:
            raise RefusedTokenError(f"Invalid token: it has no claim {error.claim!r}.") from None
        except jwt.InvalidAlgorithmError:
            raise RefusedTokenError("Invalid token: its algorithm is not that of the issuer's key.") from None
        except jwt.InvalidSignatureError:
            raise RefusedTokenError("Invalid token: its signature is wrong.") from None
        except _MALFORMED:
            raise RefusedTokenError("Invalid token: its claims are malformed.") from None

    def _name(self, claims: Mapping[str, Any]) -> str:
        claim = self._options.name_claim
        name = claims.get(claim)
        if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= MAX_NAME_CHARACTERS:
            raise RefusedTokenError(
                f"Invalid token: the claim {claim!r} must be a name of 1 to {MAX_NAME_CHARACTERS} printable "
                "characters."
            )
        # Whoever can write any address into an account would otherwise take another's name.
        if claim == "email" and claims.get("email_verified", True) is not True:
            raise RefusedTokenError("Invalid token: the address in the claim 'email' is not verified.")
        return name

    def _groups(self, claims: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the groups: a list, or names separated by blanks, as in the claim `scope`."""
        groups = claims.get(self._options.groups_claim)
        if isinstance(groups, str):
            return tuple(groups.split())
        return tuple(one for one in groups if isinstance(one, str)) if isinstance(groups, list) else ()
