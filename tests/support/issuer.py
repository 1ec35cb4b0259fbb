"""A real OpenID Connect issuer on loopback, Authlib's: discovery, keys, device flow and refresh tokens."""

import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import uuid4

import flask
from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2.rfc6749 import ClientMixin, TokenMixin
from authlib.oauth2.rfc6749.grants import RefreshTokenGrant
from authlib.oauth2.rfc6750 import BearerTokenGenerator
from authlib.oauth2.rfc8628 import DeviceAuthorizationEndpoint, DeviceCodeGrant, DeviceCredentialDict
from authlib.oidc.core import OpenIDToken
from joserfc import jwt
from joserfc.jwk import ECKey, KeyParameters, KeySet, OKPKey, RSAKey
from typing_extensions import override
from werkzeug.serving import WSGIRequestHandler, make_server

AUDIENCE = "notebook-runner"
CLIENT_ID = "notebook-runner-cli"
# Far more than any test waits for.
SECONDS = 60.0

Key = RSAKey | ECKey | OKPKey


def new_key(kind: str = "RS256") -> Key:
    """A key of an issuer, with an id of its own."""
    about: KeyParameters = {"kid": uuid4().hex, "use": "sig", "alg": kind}
    if kind.startswith("ES"):
        return ECKey.generate_key({"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}[kind], about)
    if kind == "EdDSA":
        return OKPKey.generate_key("Ed25519", about)
    return RSAKey.generate_key(2048, about)


def signed(claims: Mapping[str, Any], key: Key, **header: Any) -> str:
    """A JWT with these claims, signed with a key."""
    about = {"alg": key.as_dict()["alg"], "kid": key.kid, "typ": "JWT", **header}
    present = {name: value for name, value in about.items() if value is not None}
    return jwt.encode(present, dict(claims), key, algorithms=[str(about["alg"])])


@dataclass
class _Client(ClientMixin):  # type: ignore[misc] # Authlib has no types
    """The command, which has no secret."""

    client_id: str = CLIENT_ID

    @override
    def get_client_id(self) -> str:
        return self.client_id

    @override
    def get_allowed_scope(self, scope: str) -> str:
        return scope

    @override
    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method == "none"

    @override
    def check_grant_type(self, grant_type: str) -> bool:
        return True


@dataclass
class _Token(TokenMixin):  # type: ignore[misc] # Authlib has no types
    """A refresh token."""

    user: "_User"
    scope: str

    @override
    def check_client(self, client: _Client) -> bool:
        return True

    @override
    def get_scope(self) -> str:
        return self.scope

    @override
    def is_expired(self) -> bool:
        return False

    @override
    def is_revoked(self) -> bool:
        return False


@dataclass(frozen=True)
class _User:
    """Who has logged in."""

    name: str

    def get_user_id(self) -> str:
        """The subject of its tokens (called by Authlib)."""
        return self.name


@dataclass
class _Requests:
    """What has been asked of the issuer."""

    paths: list[str] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)

    def count(self, path: str) -> int:
        """How often a path was asked for."""
        return self.paths.count(path)


class Issuer:
    """An issuer between `with` and its end; `stop` and `start` keep its port.

    Attributes:
        keys: Its keys; the first one signs.
        requests: What has been asked of it.
        approved: Who approves each user code; None: somebody denies it.
        is_open: Cleared: it answers nothing until it is set again.
        arrived: Released for each request that waits for that.
        bearer: The token that it demands for its keys; empty: none.
        interval: Seconds between two polls of a device.
        lifetime: Seconds until its tokens expire.
        rotates: Whether a refresh token is valid once.
        documents: What it answers in place of its own documents, by path.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.keys: list[Key] = [new_key()]
        self.requests = _Requests()
        self.approved: dict[str, str | None] = {}
        self.is_open = threading.Event()
        self.is_open.set()
        self.arrived = threading.Semaphore(0)
        self.bearer = ""
        self.interval = 1
        self.lifetime = 3600
        self.rotates = True
        self.documents: dict[str, Any] = {}
        self.refresh_tokens: dict[str, _Token] = {}
        self.devices: dict[str, DeviceCredentialDict] = {}
        self.slow_downs = 0
        self._tls = tls
        self._port = 0
        self._app = _app(self)
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.is_open.set()
        self.stop()

    @property
    def url(self) -> str:
        """The URL of the issuer, which is in its tokens."""
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Answers requests."""
        self._server = make_server(
            "127.0.0.1",
            self._port,
            self._app,
            threaded=True,
            request_handler=_Quiet,
            ssl_context=self._tls,
        )
        self._server.daemon_threads = True  # type: ignore[attr-defined] # it is socketserver's
        self._port = self._server.port
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Closes its port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(SECONDS)

    def rotate(self, kind: str = "RS256") -> None:
        """Replaces its key."""
        self.keys = [new_key(kind)]

    def claims(self, name: str = "ada", **changed: Any) -> dict[str, Any]:
        """The claims of a token that is valid for ten minutes; a claim that is None is left out."""
        now = int(time.time())
        found = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": name,
            "jti": uuid4().hex,
            "iat": now,
            "nbf": now,
            "exp": now + 600,
            **changed,
        }
        return {claim: value for claim, value in found.items() if value is not None}

    def token(self, name: str = "ada", **changed: Any) -> str:
        """A valid token, but for the claims that are changed."""
        return signed(self.claims(name, **changed), self.keys[0])

    def approve(self, user_code: str, name: str | None = "ada") -> None:
        """Somebody approves a login in a browser, or denies it."""
        self.approved[user_code] = name


class _Quiet(WSGIRequestHandler):
    """Writes no log."""

    @override
    def log(self, type: str, message: str, *args: Any) -> None:
        """Write nothing."""


def _app(issuer: Issuer) -> flask.Flask:
    app = flask.Flask("issuer")
    server = _authorization_server(issuer, app)

    @app.before_request
    def enter() -> Any:
        path = flask.request.path
        issuer.requests.paths.append(path)
        authorization = flask.request.headers.get("Authorization", "")
        issuer.requests.authorizations.append(authorization)
        if not issuer.is_open.is_set():
            issuer.arrived.release()
            issuer.is_open.wait(SECONDS)
        if path in issuer.documents:
            return issuer.documents[path]
        if issuer.bearer and authorization != f"Bearer {issuer.bearer}":
            return flask.Response(status=401)
        return None

    @app.get("/.well-known/openid-configuration")
    def discovery() -> dict[str, Any]:
        return {
            "issuer": issuer.url,
            "jwks_uri": issuer.url + "/keys",
            "token_endpoint": issuer.url + "/token",
            "device_authorization_endpoint": issuer.url + "/device",
        }

    @app.get("/keys")
    def keys() -> Any:
        return KeySet(list(issuer.keys)).as_dict(private=False)

    @app.post("/device")
    def device() -> Any:
        return server.create_endpoint_response("device_authorization")

    @app.post("/token")
    def token() -> Any:
        return server.create_token_response()

    return app


def _authorization_server(issuer: Issuer, app: flask.Flask) -> AuthorizationServer:
    def save(token: dict[str, Any], request: Any) -> None:
        if "refresh_token" in token:
            issuer.refresh_tokens[token["refresh_token"]] = _Token(request.user, token["scope"])

    server = AuthorizationServer(app, _Client, save)
    server.register_token_generator("default", _generator(issuer))
    server.register_endpoint(_device_endpoint(issuer))
    server.register_grant(_device_grant(issuer), [_id_tokens(issuer)])
    server.register_grant(_refresh_grant(issuer), [_id_tokens(issuer)])
    return server


def _generator(issuer: Issuer) -> Any:
    def access_token(user: _User, scope: str, **_: Any) -> str:
        return issuer.token(user.name, exp=int(time.time()) + issuer.lifetime, scope=scope)

    return BearerTokenGenerator(access_token, lambda **_: uuid4().hex, lambda *_: issuer.lifetime)


def _device_endpoint(issuer: Issuer) -> Any:
    class Endpoint(DeviceAuthorizationEndpoint):  # type: ignore[misc] # Authlib has no types
        """Where a device asks for codes."""

        @property
        def INTERVAL(self) -> int:  # noqa: N802 - Authlib's name
            return issuer.interval

        @override
        def get_verification_uri(self) -> str:
            return issuer.url + "/activate"

        @override
        def save_device_credential(self, client_id: str, scope: str, data: dict[str, Any]) -> None:
            issuer.devices[data["device_code"]] = DeviceCredentialDict(
                client_id=client_id, scope=scope, expires_at=time.time() + data["expires_in"], **data
            )

    return Endpoint


def _device_grant(issuer: Issuer) -> Any:
    class Grant(DeviceCodeGrant):  # type: ignore[misc] # Authlib has no types
        """Tokens for an approved device."""

        @override
        def query_device_credential(self, device_code: str) -> DeviceCredentialDict | None:
            return issuer.devices.get(device_code)

        @override
        def query_user_grant(self, user_code: str) -> tuple[_User, bool] | None:
            if user_code not in issuer.approved:
                return None
            name = issuer.approved[user_code]
            return _User(name or ""), name is not None

        @override
        def should_slow_down(self, credential: DeviceCredentialDict) -> bool:
            issuer.slow_downs -= 1
            return issuer.slow_downs >= 0

    return Grant


def _refresh_grant(issuer: Issuer) -> Any:
    class Grant(RefreshTokenGrant):  # type: ignore[misc] # Authlib has no types
        """New tokens for a refresh token."""

        TOKEN_ENDPOINT_AUTH_METHODS = ("none",)
        INCLUDE_NEW_REFRESH_TOKEN = True

        @override
        def authenticate_refresh_token(self, refresh_token: str) -> _Token | None:
            self.used = refresh_token
            return issuer.refresh_tokens.get(refresh_token)

        @override
        def authenticate_user(self, refresh_token: _Token) -> _User:
            return refresh_token.user

        @override
        def revoke_old_credential(self, refresh_token: _Token) -> None:
            if issuer.rotates:
                issuer.refresh_tokens.pop(self.used, None)

    return Grant


def _id_tokens(issuer: Issuer) -> Any:
    class IdTokens(OpenIDToken):  # type: ignore[misc] # Authlib has no types
        """An ID token beside the access token."""

        @override
        def encode_id_token(self, token: dict[str, Any], request: Any) -> str:
            expires = int(time.time()) + issuer.lifetime
            return issuer.token(request.user.name, aud=CLIENT_ID, exp=expires)

    return IdTokens()
