"""What is at the server's address, found out below gRPC, which tells all of this as "unavailable"."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from notebook_runner._connection import Connection

__all__ = ["CheckResult", "probe"]

SECONDS = 3.0

# How HTTP/2 begins: the client's preface, and a frame of settings from each side.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_FRAME_HEADER_BYTES = 9
_SETTINGS = 4
# OpenSSL's numbers of what is wrong with a certificate.
_EXPIRED = 10
_WRONG_NAME = (62, 64)

_OTHER_PORT = "the port is another one: check --target"


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
    found = [CheckResult("connection", ok=True, text=f"something listens at {where}")]
    uses_tls = bool(connection.tls_ca or connection.tls_cert)
    return [*found, *(_tls(connection, address) if uses_tls else _plain(where, address))]


def _address(target: str) -> tuple[str, int] | None:
    plain = target.removeprefix("dns:").removeprefix("///")
    host, _, port = plain.rpartition(":")
    if not host or not port.isdecimal() or host.startswith(("unix", "/", "ipv4:", "ipv6:")):
        return None
    return host.strip("[]"), int(port)


def _unreachable(where: str, error: OSError) -> CheckResult:
    advice = "give the server's address by --target HOST:PORT or NOTEBOOK_RUNNER_TARGET"
    if isinstance(error, ConnectionRefusedError):
        text = f"nothing listens at {where}"
        advice = f"start it there (notebook-runner-server --listen {where}), or {advice}"
    elif isinstance(error, socket.gaierror):
        text = f"{where}: the name is not known here"
    elif isinstance(error, TimeoutError):
        text, advice = f"{where} does not answer", f"ask whether a firewall is in the way, or {advice}"
    else:
        text = f"{where}: {error.strerror or error}"
    return _problem("connection", text, advice)


def _plain(where: str, address: tuple[str, int]) -> list[CheckResult]:
    if _is_http2(_said(address, _PREFACE)):
        return [CheckResult("TLS", ok=True, text="not used, and the server does not want it")]
    if _speaks_tls(address):
        advice = "say which certificates to trust: --tls-ca FILE or NOTEBOOK_RUNNER_TLS_CA"
        return [_problem("TLS", "the server wants TLS, and this client uses none", advice)]
    if _said(address, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/"):
        text = f"{where} is a web server (HTTP/1), not a notebook-runner"
    else:
        text = f"what listens at {where} does not speak gRPC"
    return [_problem("protocol", text, _OTHER_PORT)]


def _tls(connection: Connection, address: tuple[str, int]) -> list[CheckResult]:
    try:
        context = ssl.create_default_context(cafile=connection.tls_ca)
        if connection.tls_cert:
            context.load_cert_chain(connection.tls_cert, connection.tls_key)
    except (ssl.SSLError, OSError) as error:
        text = f"the certificates given here cannot be used: {_reason(error)}"
        return [_problem("TLS", text, "check the files of --tls-ca, --tls-cert and --tls-key")]
    context.set_alpn_protocols(["h2"])
    try:
        answer = _said(address, _PREFACE, context)
    except ssl.SSLCertVerificationError as error:
        return [_untrusted(connection, error)]
    except (ssl.SSLError, OSError) as error:
        return [_broken(connection, address, error)]
    if not answer:  # how gRPC tells a client that it does not know it
        return [_unwanted(connection, "the server ended the connection")]
    if not _is_http2(answer):
        return [_problem("protocol", f"{connection.target} speaks TLS but not gRPC", _OTHER_PORT)]
    return [CheckResult("TLS", ok=True, text="the server's certificate is trusted")]


def _untrusted(connection: Connection, error: ssl.SSLCertVerificationError) -> CheckResult:
    if error.verify_code == _EXPIRED:
        advice = "the operator has to renew it"
    elif error.verify_code in _WRONG_NAME:
        advice = "give --target with a name that is in the certificate"
    else:
        trusted = connection.tls_ca or "--tls-ca"
        advice = f"{trusted} has to hold the authority that signed it: ask the operator"
    text = f"the server's certificate is not trusted: {error.verify_message}"
    return _problem("TLS", text, advice)


def _broken(connection: Connection, address: tuple[str, int], error: OSError) -> CheckResult:
    if _is_http2(_said(address, _PREFACE)):
        text = "the server speaks without TLS, and this client wants it"
        return _problem(
            "TLS", text, "leave out --tls-ca and NOTEBOOK_RUNNER_TLS_CA, or have the operator turn TLS on"
        )
    if "alert" in _reason(error) or isinstance(error, ConnectionResetError | ssl.SSLEOFError):
        return _unwanted(connection, f"the server ended the connection: {_reason(error)}")
    return _problem("TLS", f"no TLS with this server: {_reason(error)}", _OTHER_PORT)


def _unwanted(connection: Connection, text: str) -> CheckResult:
    if connection.tls_cert:
        return _problem("TLS", text, "it does not accept --tls-cert: ask the operator who has to sign it")
    return _problem("TLS", text, "it may want a certificate of yours: --tls-cert FILE --tls-key FILE")


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
