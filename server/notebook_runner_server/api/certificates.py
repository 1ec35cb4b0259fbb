"""TLS from files, reloaded when they change."""

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
    """The TLS files are invalid; the message names the file and the error."""


@dataclass(frozen=True)
class TlsFiles:
    """The paths of the TLS files, each in PEM.

    Attributes:
        cert: The server's certificate, followed by intermediate certificates.
        key: The certificate's private key, unencrypted.
        client_ca: CA certificates, one of which must have signed a caller's certificate; None: callers need
            no certificate.
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
    """The server's TLS credentials, always from the newest valid files.

    Compares contents and not times, because a mounted secret changes by a replaced link. If the files are
    invalid, for example half written, the last valid ones stay in use, and the log says why.

    Args:
        files: The files.

    Raises:
        OSError: A file cannot be read.
        CertificatesError: The files are invalid.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._seen = self._good = read_valid(files)
        self._complaint = ""
        if is_world_readable(files.key):
            _logger.warning("private_key_world_readable", extra={"path": str(files.key)})
        # gRPC keeps no reference of its own to the credentials whose function it calls.
        self.credentials = grpc.dynamic_ssl_server_credentials(
            _configuration(self._good),
            self._fetch,  # type: ignore[arg-type] # its stub lacks None, which means "unchanged"
            require_client_authentication=files.client_ca is not None,
        )

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the configuration for new connections; None: unchanged (called by gRPC on its threads)."""
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
        _logger.info("certificates_reloaded")
        return _configuration(contents)

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:
            self._complaint = complaint
            _logger.error("certificates_not_reloaded", extra={"why": complaint})


def is_world_readable(path: Path) -> bool:
    """Return whether every user of the machine can read a file."""
    return bool(path.stat().st_mode & stat.S_IROTH)


def read_valid(files: TlsFiles) -> _Contents:
    """Read the files and check that they can be used.

    Raises:
        OSError: A file cannot be read.
        CertificatesError: The files are invalid.
    """
    contents = _read(files)
    _check(contents, files)
    return contents


def _read(files: TlsFiles) -> _Contents:
    client_ca = None if files.client_ca is None else files.client_ca.read_bytes()
    return _Contents(files.cert.read_bytes(), files.key.read_bytes(), client_ca)


def _configuration(contents: _Contents) -> grpc.ServerCertificateConfiguration:
    pair = [(contents.key, contents.cert)]
    return grpc.ssl_server_certificate_configuration(pair, contents.client_ca)


def _check(contents: _Contents, files: TlsFiles) -> None:
    """Load the files with OpenSSL, which reports errors; gRPC would only close connections."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # From memory, because the files may have changed since they were read.
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
    raise CertificatesError("the private key is encrypted. Decrypt it.")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or str(error)).replace("_", " ").lower()
        return f"must contain a matching certificate and private key in PEM ({reason})."
    return str(error)


class _InMemory:
    """A file in memory, with a path for OpenSSL."""

    def __init__(self, content: bytes) -> None:
        self._file = os.fdopen(os.memfd_create("pem"), "wb")
        self._file.write(content)
        self._file.flush()
        self.path = f"/proc/self/fd/{self._file.fileno()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
