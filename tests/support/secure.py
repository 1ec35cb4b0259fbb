"""Certificates, tokens and channels for servers that ask who calls."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import trustme
from typing_extensions import override

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc
from notebook_runner_server.api.tokens import add_new
from tests.support.frames import Raw
from tests.support.server import Server

ADDRESS = "127.0.0.1"
# A refused handshake shows within milliseconds; the channel tries again until the deadline.
REFUSED_SECONDS = 1.5

Metadata = tuple[tuple[str, str | bytes], ...]

MISSING = (grpc.StatusCode.UNAUTHENTICATED, "MISSING_TOKEN")
BAD = (grpc.StatusCode.UNAUTHENTICATED, "BAD_TOKEN")
TOO_LITTLE = (grpc.StatusCode.PERMISSION_DENIED, "BAD_TOKEN")


@dataclass(frozen=True)
class Pair:
    """A certificate with its chain, and its key; both PEM."""

    cert: bytes
    key: bytes


def issue(ca: trustme.CA, name: str = ADDRESS, **options: Any) -> Pair:
    """A certificate of an authority for a name."""
    leaf = ca.issue_cert(name, **options)
    return Pair(b"".join(blob.bytes() for blob in leaf.cert_chain_pems), leaf.private_key_pem.bytes())


def roots(*authorities: trustme.CA) -> bytes:
    """The certificates of authorities as one file."""
    return b"".join(ca.cert_pem.bytes() for ca in authorities)


class TlsFolder:
    """The server's files of TLS, changed as Kubernetes changes a mounted secret: one link is replaced."""

    def __init__(self, folder: Path, pair: Pair, client_ca: bytes | None = None) -> None:
        self._folder = folder
        self._number = 0
        self._client_ca = client_ca is not None
        self.put(pair, client_ca)

    def put(self, pair: Pair, client_ca: bytes | None = None) -> None:
        """Replaces all files at once."""
        self._number += 1
        content = self._folder / f"content-{self._number}"
        content.mkdir()
        (content / "tls.crt").write_bytes(pair.cert)
        (content / "tls.key").touch(0o600)
        (content / "tls.key").write_bytes(pair.key)
        if client_ca is not None:
            (content / "ca.crt").write_bytes(client_ca)
        link = self._folder / "next"
        link.symlink_to(content)
        link.rename(self._folder / "now")

    def __truediv__(self, name: str) -> Path:
        return self._folder / "now" / name

    @property
    def options(self) -> list[str]:
        """The server's options that name these files."""
        found = ["--tls-cert", str(self / "tls.crt"), "--tls-key", str(self / "tls.key")]
        return found + (["--tls-client-ca", str(self / "ca.crt")] if self._client_ca else [])


def new_token(file: Path, name: str = "tester", scope: str = "run") -> str:
    """Makes a token as the server's command does, which takes half a second longer."""
    return add_new(file, name, scope)


def plain() -> dict[str, str]:
    """The environment without any setting."""
    return {name: value for name, value in os.environ.items() if not name.startswith("NOTEBOOK_RUNNER_")}


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata that carries a token."""
    return (("authorization", f"Bearer {token}"),)


class _Bearer(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Adds a token to each call of a channel."""

    def __init__(self, token: str) -> None:
        self._metadata = bearer(token)

    @override
    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Passes the call on with the token."""
        return continuation(client_call_details._replace(metadata=self._metadata), request)

    @override
    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Passes the call on with the token."""
        return continuation(client_call_details._replace(metadata=self._metadata), request)


def authorized(channel: grpc.Channel, token: str) -> rpc.NotebookRunnerStub:
    """A stub whose calls carry a token."""
    return rpc.NotebookRunnerStub(grpc.intercept_channel(channel, _Bearer(token)))


def secure_channel(target: str, ca: bytes | None, pair: Pair | None = None) -> grpc.Channel:
    """A connection of its own with TLS, perhaps with a certificate of the caller's."""
    key, cert = (pair.key, pair.cert) if pair else (None, None)
    credentials = grpc.ssl_channel_credentials(ca, key, cert)
    return grpc.secure_channel(target, credentials, [("grpc.use_local_subchannel_pool", 1)])


def own_channel(target: str, ca: bytes = b"") -> grpc.Channel:
    """A connection of its own, without TLS where there is no authority."""
    if ca:
        return secure_channel(target, ca)
    return grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)])


def listed(channel: grpc.Channel, token: str = "", timeout: float = 60.0) -> list[pb.Run]:
    """An ordinary call that only looks."""
    metadata = bearer(token) if token else None
    stub = rpc.NotebookRunnerStub(channel)
    return list(stub.List(pb.ListRequest(page_size=1), timeout=timeout, metadata=metadata).runs)


def is_refused(channel: grpc.Channel) -> bool:
    """Whether a connection is not made."""
    with channel:
        try:
            listed(channel, timeout=REFUSED_SECONDS)
        except grpc.RpcError as error:
            return error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    return False


def is_accepted(channel: grpc.Channel) -> bool:
    """Whether an ordinary call is answered, by a server that has run nothing."""
    with channel:
        return listed(channel) == []


@dataclass(frozen=True)
class Guarded:
    """A server that wants tokens, one of each scope, and the authority of its certificate if it has one."""

    server: Server
    file: Path
    run: str
    read: str
    ca: bytes = b""

    def raw(self, receive_bytes: int = 0) -> Raw:
        """A connection on which anything can be sent, within TLS where there is TLS."""
        return Raw(self.server.target, receive_bytes, tls=bool(self.ca))
