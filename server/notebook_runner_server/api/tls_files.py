"""The TLS files and their checks; without gRPC, which takes long to import: the settings refer to them."""

from __future__ import annotations

import os
import ssl
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from notebook_runner_server.audit import AccessChange


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
class TlsContents:
    """The contents of the TLS files."""

    cert: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None


def is_world_readable(path: Path) -> bool:
    """Return whether every user of the machine can read a file."""
    return bool(path.stat().st_mode & stat.S_IROTH)


def read_valid(files: TlsFiles) -> TlsContents:
    """Read the files and check that they can be used.

    Raises:
        OSError: A file cannot be read.
        CertificatesError: The files are invalid.
    """
    contents = read(files)
    check(contents, files)
    return contents


def read(files: TlsFiles) -> TlsContents:
    """Read the files.

    Raises:
        OSError: A file cannot be read.
    """
    client_ca = None if files.client_ca is None else files.client_ca.read_bytes()
    return TlsContents(files.cert.read_bytes(), files.key.read_bytes(), client_ca)


def check(contents: TlsContents, files: TlsFiles) -> None:
    """Load the files with OpenSSL, which reports errors; gRPC would only close connections.

    Raises:
        CertificatesError: The files are invalid.
    """
    server_context(contents, files)


def server_context(contents: TlsContents, files: TlsFiles) -> ssl.SSLContext:
    """Return the context of a server with these files.

    Args:
        contents: Their contents.
        files: Their names, for errors.

    Raises:
        CertificatesError: The files are invalid.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # From memory, because the files may have changed since they were read.
        with _InMemory(contents.cert) as cert, _InMemory(contents.key) as key:
            context.load_cert_chain(cert.path, key.path, password=_no_password)
    except (ssl.SSLError, CertificatesError) as error:
        raise CertificatesError(f"{files.cert} and {files.key}: {_reason(error)}") from None
    if contents.client_ca is None:
        return context
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(cadata=contents.client_ca.decode("ascii", "replace"))
    except ssl.SSLError as error:
        raise CertificatesError(f"{files.client_ca}: {_reason(error)}") from None
    return context


def compare(before: TlsContents, after: TlsContents) -> AccessChange:
    """Return which authorities of callers' certificates came and went, and the settings of changed files."""
    pairs = {
        "tls_cert": (before.cert, after.cert),
        "tls_key": (before.key, after.key),
        "tls_client_ca": (before.client_ca, after.client_ca),
    }
    authorities = AccessChange.between(_authorities(before.client_ca), _authorities(after.client_ca))
    changed = [name for name, (old, new) in pairs.items() if old != new]
    return AccessChange(authorities.added, authorities.removed, changed)


def _authorities(content: bytes | None) -> dict[str, set[str]]:
    """Return the names of the authorities in a file, with the serial numbers of their certificates."""
    found: dict[str, set[str]] = {}
    if content is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_verify_locations(cadata=content.decode("ascii", "replace"))
        # The types of the library's stubs are wider.
        authorities: list[dict[str, Any]] = [*context.get_ca_certs()]
        for one in authorities:
            name = ", ".join(f"{key}={value}" for parts in one["subject"] for key, value in parts)
            found.setdefault(name, set()).add(one["serialNumber"])
    return found


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
