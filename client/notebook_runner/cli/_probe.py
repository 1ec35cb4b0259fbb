"""Probes the server's address below gRPC, which reports all of these problems as "unavailable"."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from notebook_runner._connection import Connection

__all__ = ["OTHER_PORT", "CheckResult", "probe"]

SECONDS = 3.0

# How HTTP/2 begins: the client's preface, and a frame of settings from each side.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_FRAME_HEADER_BYTES = 9
_SETTINGS = 4
# OpenSSL's numbers of what is wrong with a certificate.
_EXPIRED = 10
_WRONG_NAME = (62, 64)

OTHER_PORT = "another service uses this port; check --target"
"""What to do where something else than a server listens."""


@dataclass(frozen=True)
class CheckResult:
    """What one check has found.

    Attributes:
        check: What was looked at.
        ok: Whether it is well.
        text: What was found.
        advice: What to do about it; empty where nothing is to be done.
    """

    check: str
    ok: bool
    text: str
    advice: str = ""


def probe(connection: Connection) -> list[CheckResult]:
    """Look at what listens at the address and what it speaks. Only the last finding can be a bad one."""
    address = _address(connection.target)
    if address is None:  # a socket file, or what only gRPC can resolve
        return []
    where = connection.target
    try:
        socket.create_connection(address, SECONDS).close()
    except OSError as error:
        return [_unreachable(where, error)]
    found = [CheckResult("connection", ok=True, text=f"connected to {where}")]
    uses_tls = bool(connection.tls_ca or connection.tls_cert)
    return [*found, *(_tls(connection, address) if uses_tls else _plain(where, address))]


def _address(target: str) -> tuple[str, int] | None:
    plain = target.removeprefix("dns:").removeprefix("///")
    host, _, port = plain.rpartition(":")
    if not host or not port.isdecimal() or host.startswith(("unix", "/", "ipv4:", "ipv6:")):
        return None
    return host.strip("[]"), int(port)


def _unreachable(where: str, error: OSError) -> CheckResult:
    advice = "set --target HOST:PORT or NOTEBOOK_RUNNER_TARGET"
    if isinstance(error, ConnectionRefusedError):
        text = f"cannot reach {where}: connection refused"
        advice = f"start the server (notebook-runner-server --listen {where}), or {advice}"
    elif isinstance(error, socket.gaierror):
        text = f"cannot reach {where}: unknown host name"
    elif isinstance(error, TimeoutError):
        text, advice = f"cannot reach {where}: no answer", f"check for a firewall, or {advice}"
    else:
        text = f"cannot reach {where}: {error.strerror or error}"
    return _problem("connection", text, advice)


def _plain(where: str, address: tuple[str, int]) -> list[CheckResult]:
    if _is_http2(_said(address, _PREFACE)):
        return [CheckResult("TLS", ok=True, text="not used, and not required by the server")]
    if _speaks_tls(address):
        advice = "set the CA certificates to trust with --tls-ca FILE or NOTEBOOK_RUNNER_TLS_CA"
        return [_problem("TLS", "the server requires TLS, and this client does not use it", advice)]
    if _said(address, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/"):
        text = f"{where} is a web server (HTTP/1), not a notebook-runner server"
    else:
        text = f"{where} does not speak gRPC"
    return [_problem("protocol", text, OTHER_PORT)]


def _tls(connection: Connection, address: tuple[str, int]) -> list[CheckResult]:
    try:
        context = ssl.create_default_context(cafile=connection.tls_ca)
        if connection.tls_cert:
            context.load_cert_chain(connection.tls_cert, connection.tls_key)
    except (ssl.SSLError, OSError) as error:
        text = f"cannot load the certificates: {_reason(error)}"
        return [_problem("TLS", text, "check the files of --tls-ca, --tls-cert and --tls-key")]
    context.set_alpn_protocols(["h2"])
    try:
        answer = _said(address, _PREFACE, context)
    except ssl.SSLCertVerificationError as error:
        return [_untrusted(connection, error)]
    except (ssl.SSLError, OSError) as error:
        return [_broken(connection, address, error)]
    if not answer:  # how gRPC tells a client that it does not know it
        return [_unwanted(connection, "the server closed the connection")]
    if not _is_http2(answer):
        return [_problem("protocol", f"{connection.target} speaks TLS but not gRPC", OTHER_PORT)]
    return [CheckResult("TLS", ok=True, text="the server's certificate is trusted")]


def _untrusted(connection: Connection, error: ssl.SSLCertVerificationError) -> CheckResult:
    if error.verify_code == _EXPIRED:
        advice = "ask the operator to renew it"
    elif error.verify_code in _WRONG_NAME:
        advice = "set --target to a name that is in the certificate"
    else:
        trusted = connection.tls_ca or "--tls-ca"
        advice = f"{trusted} must contain the CA that signed it; ask the operator"
    text = f"the server's certificate is not trusted: {error.verify_message}"
    return _problem("TLS", text, advice)


def _broken(connection: Connection, address: tuple[str, int], error: OSError) -> CheckResult:
    if _is_http2(_said(address, _PREFACE)):
        text = "the server does not use TLS, and this client requires it"
        return _problem(
            "TLS", text, "omit --tls-ca and NOTEBOOK_RUNNER_TLS_CA, or ask the operator to enable TLS"
        )
    if "alert" in _reason(error) or isinstance(error, ConnectionResetError | ssl.SSLEOFError):
        return _unwanted(connection, f"the server closed the connection: {_reason(error)}")
    return _problem("TLS", f"TLS handshake failed: {_reason(error)}", OTHER_PORT)


def _unwanted(connection: Connection, text: str) -> CheckResult:
    if connection.tls_cert:
        return _problem(
            "TLS", text, "the server does not accept --tls-cert; ask the operator which CA must sign it"
        )
    return _problem(
        "TLS", text, "the server may require a client certificate; set --tls-cert FILE and --tls-key FILE"
    )


def _problem(check: str, text: str, advice: str) -> CheckResult:
    return CheckResult(check, ok=False, text=text, advice=advice)


def _said(address: tuple[str, int], text: bytes, context: ssl.SSLContext | None = None) -> bytes:
    """Give the first bytes that the other side answers; without TLS, nothing when it answers none."""
    try:
        with socket.create_connection(address, SECONDS) as plain:
            if context is None:
                return _exchanged(plain, text)
            with context.wrap_socket(plain, server_hostname=address[0]) as encrypted:
                return _exchanged(encrypted, text)
    except OSError:
        if context is not None:
            raise
        return b""


def _exchanged(connection: socket.socket, text: bytes) -> bytes:
    connection.sendall(text)
    answer = b""
    while len(answer) < _FRAME_HEADER_BYTES and (piece := connection.recv(_FRAME_HEADER_BYTES)):
        answer += piece
    return answer


def _is_http2(answer: bytes) -> bool:
    return len(answer) >= _FRAME_HEADER_BYTES and answer[3] == _SETTINGS


def _speaks_tls(address: tuple[str, int]) -> bool:
    # Nothing is sent over it, so that it does not matter whom it is with.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection(address, SECONDS) as plain, context.wrap_socket(plain):
            return True
    except OSError:
        return False


def _reason(error: OSError) -> str:
    reason = getattr(error, "reason", None) or error.strerror or str(error)
    return str(reason).replace("_", " ").lower()
