"""Says why the server cannot listen on an address, and what to do about it."""

from __future__ import annotations

import errno
import socket

_ADVICE = {
    errno.EADDRINUSE: "another program uses this port. End it, or choose another port.",
    errno.EADDRNOTAVAIL: "this machine does not have this address. Choose one of its own, such as 127.0.0.1.",
    errno.EACCES: "no permission to use this port. Choose one from 1024 on.",
}

_UNKNOWN_HOST = "unknown host name. Choose an address of this machine, such as 127.0.0.1."


class ListenError(OSError):
    """The server cannot listen on an address.

    Args:
        flag: The setting with the address.
        address: The address, as HOST:PORT.
        error: What the system says.
    """

    def __init__(self, flag: str, address: str, error: OSError) -> None:
        # The numbers of name resolution are not those of errno.
        advice = _UNKNOWN_HOST if isinstance(error, socket.gaierror) else _ADVICE.get(error.errno or 0)
        super().__init__(f"{flag} {address}: {advice or f'{error.strerror or error}.'}")


def check(flag: str, address: str) -> None:
    """Try to bind an address, for a library that does not say why it cannot.

    Args:
        flag: The setting with the address.
        address: HOST:PORT; a name that has several addresses needs one that can be bound.

    Raises:
        ListenError: The address cannot be bound.
    """
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        failures = [failure for family, *_, bound in found if (failure := _failure(family, bound))]
    except OSError as error:
        raise ListenError(flag, address, error) from None
    if len(failures) == len(found):
        raise ListenError(flag, address, failures[0])


def _failure(family: int, address: tuple[object, ...]) -> OSError | None:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: connections of a server that has just ended do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            return error
    return None
