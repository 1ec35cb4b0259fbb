"""TLS from files, reloaded when they change."""

from __future__ import annotations

import logging
from collections.abc import Callable

import grpc

from notebook_runner_server.api import tls_files
from notebook_runner_server.api.tls_files import CertificatesError, TlsContents, TlsFiles
from notebook_runner_server.audit import AccessChange

_logger = logging.getLogger(__name__)


class WatchedTlsFiles:
    """The TLS files, always the newest valid ones.

    Compares contents and not times, because a mounted secret changes by a replaced link. If the files are
    invalid, for example half written, the last valid ones stay in use, and the log says why.

    Args:
        files: The files.

    Attributes:
        contents: The valid contents.

    Raises:
        OSError: A file cannot be read.
        CertificatesError: The files are invalid.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._seen = self.contents = tls_files.read_valid(files)
        self._complaint = ""

    def refresh(self) -> bool:
        """Read the files again, and return whether there are other valid ones now."""
        try:
            contents = tls_files.read(self._files)
            if contents == self._seen:
                return False
            self._seen = contents
            tls_files.check(contents, self._files)
        except (OSError, CertificatesError) as error:
            self._complain(str(error))
            return False
        self._complaint = ""
        if contents == self.contents:
            return False
        self.contents = contents
        _logger.info("certificates_reloaded")
        return True

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:
            self._complaint = complaint
            _logger.error("certificates_not_reloaded", extra={"why": complaint})


class Certificates:
    """The TLS credentials of the gRPC server.

    Args:
        files: The files.
        on_change: Handles a change of the files in use; called on threads of gRPC.

    Raises:
        OSError: A file cannot be read.
        CertificatesError: The files are invalid.
    """

    def __init__(self, files: TlsFiles, on_change: Callable[[AccessChange], object] = lambda _: None) -> None:
        self._files, self._on_change = WatchedTlsFiles(files), on_change
        if tls_files.is_world_readable(files.key):
            _logger.warning("private_key_world_readable", extra={"path": str(files.key)})
        # gRPC keeps no reference of its own to the credentials whose function it calls.
        self.credentials = grpc.dynamic_ssl_server_credentials(
            _configuration(self._files.contents),
            self._fetch,  # type: ignore[arg-type] # its stub lacks None, which means "unchanged"
            require_client_authentication=files.client_ca is not None,
        )

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the configuration for new connections; None: unchanged (called by gRPC on its threads)."""
        before = self._files.contents
        if not self._files.refresh():
            return None
        self._on_change(tls_files.compare(before, self._files.contents))
        return _configuration(self._files.contents)


def _configuration(contents: TlsContents) -> grpc.ServerCertificateConfiguration:
    pair = [(contents.key, contents.cert)]
    return grpc.ssl_server_certificate_configuration(pair, contents.client_ca)
