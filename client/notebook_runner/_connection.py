"""The connection to a server: target, credentials and channel settings."""

from __future__ import annotations

import json
import os
import ssl
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import grpc
import grpc.aio

from ._retry import ATTEMPTS, BACKOFF_FACTOR, FIRST_BACKOFF, LONGEST_BACKOFF
from ._version import __version__
from .v1 import notebook_runner_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DEFAULT_TARGET", "DEFAULT_TIMEOUT", "KILL_TIMEOUT", "Connection", "check_target"]

DEFAULT_TARGET = "127.0.0.1:50051"
# The deadlines of single calls, in seconds.
DEFAULT_TIMEOUT = 30.0
# Kill returns when every process is gone, and a fork bomb takes time to end.
KILL_TIMEOUT = 60.0
MAX_RECEIVE_BYTES = 16 * 1024 * 1024
# A Start with its notebook can only be sent again if it fits in here.
RETRY_BUFFER_BYTES = 64 * 1024 * 1024
# The server permits a ping every 10 s.
KEEPALIVE_INTERVAL_MS = 30_000
KEEPALIVE_TIMEOUT_MS = 10_000
# gRPC's defaults, 2 min and 30 s, are too long for a stream that waits for a restarted server.
MAX_CONNECT_BACKOFF_MS = 2_000
MIN_DNS_INTERVAL_MS = 2_000

_SERVICE = pb.DESCRIPTOR.services_by_name["NotebookRunner"].full_name
# Safe because Start always has a request_id, and repeating the others changes nothing. Progress is missing,
# because it resumes after the last event that was received (`_retry`).
_SERVICE_CONFIG: dict[str, object] = {
    "methodConfig": [
        {
            "name": [
                {"service": _SERVICE, "method": name}
                for name in ("Start", "Output", "Kill", "List", "Get", "Delete", "Info")
            ],
            "retryPolicy": {
                "maxAttempts": ATTEMPTS,
                "initialBackoff": f"{FIRST_BACKOFF}s",
                "maxBackoff": f"{LONGEST_BACKOFF}s",
                "backoffMultiplier": BACKOFF_FACTOR,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
# A connection to each address instead of one to the first that answers: the next call goes to another server
# immediately when one of them ends.
_SPREAD_SERVICE_CONFIG = {**_SERVICE_CONFIG, "loadBalancingConfig": [{"round_robin": {}}]}

_OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.primary_user_agent", f"notebook-runner-python/{__version__}"),
    ("grpc.per_rpc_retry_buffer_size", RETRY_BUFFER_BYTES),
    ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_INTERVAL_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    # A cell may have no output for hours, so pings must continue without data.
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", MAX_CONNECT_BACKOFF_MS),
    ("grpc.dns_min_time_between_resolutions_ms", MIN_DNS_INTERVAL_MS),
]


@dataclass(frozen=True)
class Connection:
    """The target and the credentials. `resolve` reads missing ones from the environment."""

    target: str
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    login_file: Path | None = None

    @classmethod
    def resolve(
        cls,
        target: str | None = None,
        *,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        tls_ca: str | os.PathLike[str] | None = None,
        tls_cert: str | os.PathLike[str] | None = None,
        tls_key: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> Connection:
        """Resolve each setting from its argument, else from its NOTEBOOK_RUNNER_ variable, else its default.

        Raises:
            ValueError: The target is a URL, both a token and a token file are given, or a certificate without
                its key.
        """
        target = target or environ.get("NOTEBOOK_RUNNER_TARGET") or DEFAULT_TARGET
        check_target(target)
        if token is not None and token_file is not None:
            raise ValueError("Set token or token_file, not both.")
        if token is None:
            token_file = token_file or environ.get("NOTEBOOK_RUNNER_TOKEN_FILE")
        tls_cert = tls_cert or environ.get("NOTEBOOK_RUNNER_TLS_CERT")
        tls_key = tls_key or environ.get("NOTEBOOK_RUNNER_TLS_KEY")
        if bool(tls_cert) != bool(tls_key):
            missing = "tls_key" if tls_cert else "tls_cert"
            raise ValueError(f"tls_cert and tls_key must be set together ({missing} is missing).")
        target = target or environ.get("NOTEBOOK_RUNNER_TARGET") or DEFAULT_TARGET
        login_file = login_path(target, environ)
        has_login = token is None and not token_file and login_file.is_file()
        return cls(
            target=target,
            token=token,
            token_file=_path(token_file),
            login_file=login_file if has_login else None,
            tls_ca=_path(tls_ca or environ.get("NOTEBOOK_RUNNER_TLS_CA")),
            tls_cert=_path(tls_cert),
            tls_key=_path(tls_key),
        )

    @property
    def has_several_addresses(self) -> bool:
        """Whether the target may be several servers: a name in the DNS, or a list of addresses."""
        return _has_several_addresses(self.target)

    def channel(self, *, retries: bool = True, spreads: bool = True) -> grpc.Channel:
        """Create a channel; it connects with the first call.

        Args:
            retries: Whether gRPC repeats calls that end with UNAVAILABLE.
            spreads: Whether calls take turns over the servers of the target, if it has several addresses;
                otherwise, they go to one of them as long as that answers.

        Raises:
            OSError: A certificate or key file cannot be read.
            ValueError: A certificate or key file is invalid, or they do not match.
        """
        options = [*self._options(spreads=spreads), ("grpc.enable_retries", int(retries))]
        credentials = self._credentials()
        if credentials is None:
            return grpc.insecure_channel(self.target, options=options)
        return grpc.secure_channel(self.target, credentials, options=options)

    def aio_channel(self, *, spreads: bool = True) -> grpc.aio.Channel:
        """Create a channel of the running event loop, as `channel` does."""
        options, credentials = self._options(spreads=spreads), self._credentials()
        if credentials is None:
            return grpc.aio.insecure_channel(self.target, options=options)
        return grpc.aio.secure_channel(self.target, credentials, options=options)

    def _options(self, *, spreads: bool) -> list[tuple[str, str | int]]:
        config = _SPREAD_SERVICE_CONFIG if spreads and self.has_several_addresses else _SERVICE_CONFIG
        return [("grpc.service_config", json.dumps(config)), *_OPTIONS]

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata of a call. Reads the token file each time, because tokens are rotated.

        Blocks while it refreshes the token of a login.

        Raises:
            OSError: The token file cannot be read.
            ValueError: The token is empty, or has characters that a header cannot contain.
            LoginFailed: The login has expired.
        """
        if self.login_file is not None:
            from ._login import current_token  # noqa: PLC0415 - brings urllib, and most clients have no login

            token: str | None = current_token(self.login_file)
        elif self.token_file is not None:
            token = self.token_file.read_text(encoding="utf-8").strip()
        else:
            token = self.token
        if token is None:
            return ()
        if not token or not token.isascii() or not token.isprintable():
            raise ValueError("The token must not be empty, and must contain only printable ASCII characters.")
        return (("authorization", f"Bearer {token}"),)

    def _credentials(self) -> grpc.ChannelCredentials | None:
        if not (self.tls_ca or self.tls_cert):
            return None
        self._check_certificates()
        return grpc.ssl_channel_credentials(
            root_certificates=_read(self.tls_ca),
            private_key=_read(self.tls_key),
            certificate_chain=_read(self.tls_cert),
        )

    def _check_certificates(self) -> None:
        """Refuse invalid files, for which gRPC would only report that it cannot connect."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            if self.tls_ca:
                context.load_verify_locations(self.tls_ca)
        except ssl.SSLError as error:
            raise ValueError(f"tls_ca ({self.tls_ca}) contains no PEM certificates: {error}") from error
        try:
            if self.tls_cert:
                # Without the empty password OpenSSL would ask for that of an encrypted key on the terminal.
                context.load_cert_chain(self.tls_cert, self.tls_key, password="")
        except ssl.SSLError as error:
            files = f"tls_cert ({self.tls_cert}) and tls_key ({self.tls_key})"
            raise ValueError(f"{files} do not contain a matching PEM certificate and key: {error}") from error


def check_target(target: str) -> None:
    """Refuse a URL, which gRPC would take for the name of a host.

    Raises:
        ValueError: The target is a URL.
    """
    scheme, separator, _ = target.partition("://")
    if separator and scheme.lower() in {"http", "https"}:
        hint = " For TLS, set tls_ca (--tls-ca)." if scheme.lower() == "https" else ""
        raise ValueError(f"{target!r} is a URL. Use HOST:PORT.{hint}")


def login_path(target: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the file of the login for a server; it exists only after a login."""
    state = Path(
        environ.get("XDG_STATE_HOME") or Path(environ.get("HOME") or "~", ".local/state").expanduser()
    )
    return state / "notebook-runner-client" / f"{quote(target, safe='')}.json"


def _has_several_addresses(target: str) -> bool:
    scheme, separator, rest = target.partition(":")
    if separator and scheme in {"ipv4", "ipv6"}:
        return "," in rest
    if separator and scheme.startswith("unix"):
        return False
    # dns:///NAME:PORT, dns://SERVER/NAME:PORT, dns:NAME:PORT, or NAME:PORT.
    host = rest.rpartition("/")[2] if scheme == "dns" else target
    host = host if host.startswith("[") or host.count(":") > 1 else host.partition(":")[0]
    if host == "localhost":
        # Its two addresses are one machine's, where other programs may use the same port of the other one.
        return False
    try:
        ip_address(host.strip("[").partition("]")[0])
    except ValueError:
        return True
    return False


def _path(value: str | os.PathLike[str] | None) -> Path | None:
    return Path(value) if value else None


def _read(path: Path | None) -> bytes | None:
    return path.read_bytes() if path else None
