"""TLS from files, which are looked at with every new connection."""

from __future__ import annotations

import logging
import os
import ssl
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import grpc

_logger = logging.getLogger(__name__)


class CertificatesError(ValueError):
    """The files of TLS cannot be used; the message says which, and why."""


@dataclass(frozen=True)
class TlsFiles:
    """Where the files of TLS are, each in PEM.

    Attributes:
        cert: The server's certificate, and after it the intermediate ones.
        key: Its private key, not encrypted.
        client_ca: The authorities of which a caller must have a certificate; None: it needs none.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True)
class _Contents:
    cert: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None


class Certificates:
    """The server's side of TLS, always with the newest files that fit together.

    Their content is compared, not their times: a mounted secret changes by a link that is replaced. Files
    that cannot be used, because they are half written for example, change nothing: the last good ones stay,
    and the log says why.

    Args:
        files: Where they are.

    Raises:
        OSError: A file cannot be read.
        CertificatesError: They cannot be used.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._seen = self._good = _read(files)
        self._complaint = ""
        _check(self._seen, files)
        if files.key.stat().st_mode & stat.S_IROTH:
            _logger.warning("everybody on this machine can read the private key: %s", files.key)
        # gRPC keeps no reference of its own to the credentials whose function it calls.
        self.credentials = grpc.dynamic_ssl_server_credentials(
            _configuration(self._good),
            self._fetch,  # type: ignore[arg-type] # its stub knows nothing of None, which says "unchanged"
            require_client_authentication=files.client_ca is not None,
        )

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what new connections get; None: what the last got (gRPC calls this, on its threads)."""
        try:
            contents = _read(self._files)
            if contents == self._seen:
                return None
            self._seen = contents
            _check(contents, self._files)
        except (OSError, CertificatesError) as error:
            self._complain(str(error))
            return None
        self._complaint = ""
        if contents == self._good:
            return None
        self._good = contents
        _logger.info("certificates reloaded")
        return _configuration(contents)

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:
            self._complaint = complaint
            _logger.error("certificates not reloaded, the last good ones hold: %s", complaint)


def _read(files: TlsFiles) -> _Contents:
    client_ca = None if files.client_ca is None else files.client_ca.read_bytes()
    return _Contents(files.cert.read_bytes(), files.key.read_bytes(), client_ca)


def _configuration(contents: _Contents) -> grpc.ServerCertificateConfiguration:
    pair = [(contents.key, contents.cert)]
    return grpc.ssl_server_certificate_configuration(pair, contents.client_ca)


def _check(contents: _Contents, files: TlsFiles) -> None:
    """Load them as OpenSSL does, which tells what is wrong; gRPC would only end connections."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Of what was read: the files may be others by now.
        with _InMemory(contents.cert) as cert, _InMemory(contents.key) as key:
            context.load_cert_chain(cert.path, key.path, password=_no_password)
    except (ssl.SSLError, CertificatesError) as error:
        raise CertificatesError(f"{files.cert} and {files.key}: {_reason(error)}") from None
    if contents.client_ca is None:
        return
    try:
        context.load_verify_locations(cadata=contents.client_ca.decode("ascii", "replace"))
    except ssl.SSLError as error:
        raise CertificatesError(f"{files.client_ca}: {_reason(error)}") from None


def _no_password() -> str:
    raise CertificatesError("the key is encrypted, and there is nobody to ask for its password")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or str(error)).replace("_", " ").lower()
        return f"no pair of certificate and key, or no PEM ({reason})"
    return str(error)


class _InMemory:
    """A file with this content that is in no folder."""

    def __init__(self, content: bytes) -> None:
        self._file = os.fdopen(os.memfd_create("pem"), "wb")
        self._file.write(content)
        self._file.flush()
        self.path = f"/proc/self/fd/{self._file.fileno()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
