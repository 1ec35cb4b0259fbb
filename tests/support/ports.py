"""A port for a program that must be told its port."""

import secrets
import socket
from pathlib import Path

HOST = "127.0.0.1"
# Ports below are of well-known services.
LOWEST = 10_000
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port(host: str = HOST) -> int:
    """Returns a port that nothing uses, below those that the system gives to outgoing connections.

    One of theirs could be given away before the program listens there, or while it is restarted.
    """
    end = int(EPHEMERAL.read_text().split()[0])
    # Not `random`, which processes that share the tests may seed alike.
    candidates = secrets.SystemRandom().sample(range(LOWEST, end), 100) if end - LOWEST > 100 else []
    for port in (*candidates, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError(f"No port of {host} is free.")
