"""The policy for listening on addresses that other machines can reach."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from notebook_runner_server.config import Settings


def faults(settings: Settings) -> Iterator[str]:
    """Yield an error for incomplete TLS settings, and for a reachable address that is not secured."""
    if bool(settings.tls_cert) != bool(settings.tls_key):
        missing_flag = "--tls-key" if settings.tls_cert else "--tls-cert"
        yield f"--tls-cert and --tls-key must be set together ({missing_flag} is missing)."
    if settings.tls_client_ca and not settings.tls_cert:
        yield "--tls-client-ca needs --tls-cert and --tls-key."
    try:
        host, _ = address("--listen", settings.listen)
    except ValueError as error:
        yield str(error)
        return
    missing = []
    if not settings.tls_cert:
        missing.append("TLS (--tls-cert and --tls-key)")
    if not (settings.tokens_file or settings.tls_client_ca):
        missing.append("authentication (--tokens-file or --tls-client-ca)")
    if missing and not settings.insecure and not is_loopback(host):
        yield (
            f"--listen {settings.listen}: anyone who can reach this address could run code. "
            f"Add {' and '.join(missing)}, listen on 127.0.0.1, or allow it with --insecure."
        )


def address(flag: str, value: str) -> tuple[str, int]:
    """Return the host and the port of an address.

    Raises:
        ValueError: The value is not HOST:PORT; the message names the flag.
    """
    host, _, port = value.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:  # noqa: PLR2004 - the largest port
        raise ValueError(f"{flag} must be HOST:PORT (got {value!r}).")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
