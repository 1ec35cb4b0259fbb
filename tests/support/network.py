"""A network that a test can cut: a namespace with an address of its own, and a wire to it."""

import os
import secrets
import shutil
import subprocess
from functools import cache
from typing import Self

# The hardware addresses of both ends, and one that is nobody's.
HERE, THERE, NOWHERE = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"


class Wire:
    """A namespace between `with` and its end, and the wire to it, on which a test lets all vanish.

    Nobody is told of it: no connection is refused or reset, no host is said to be out of reach.

    Attributes:
        here: The address of this side, which no other wire of the machine has.
        there: The address in the namespace, which no other wire has either.
        prefix: What a command begins with that is to run there.
    """

    def __init__(self) -> None:
        self._name = f"nbr-{secrets.token_hex(4)}"
        self.here = self.there = ""
        self.prefix = ("ip", "netns", "exec", self._name)

    def __enter__(self) -> Self:
        name = self._name
        try:
            _ip(f"netns add {name}")
            _ip(f"link add {name} address {HERE} type veth peer name eth0 address {THERE} netns {name}")
            for end in (f"link set {name}", f"-n {name} link set eth0", f"-n {name} link set lo"):
                _ip(f"{end} up")
            while not self._has_claimed():
                pass
            _ip(f"-n {name} address add {self.there} peer {self.here} dev eth0")
            self.mend()
        except BaseException:
            self._remove()
            raise
        return self

    def _has_claimed(self) -> bool:
        """Takes two addresses by chance, unless another wire of this machine has them."""
        network, number = secrets.randbelow(256), 2 * secrets.randbelow(127) + 1
        self.here, self.there = f"10.213.{network}.{number}", f"10.213.{network}.{number + 1}"
        _ip(f"address add {self.here} peer {self.there} dev {self._name} noprefixroute")
        # Two links may have the same address, but only one of them the route.
        route = _ip(f"route add {self.there} dev {self._name} src {self.here}", check=False)
        if b"File exists" in route.stderr:
            _ip(f"address flush dev {self._name}")
            return False
        route.check_returncode()
        return True

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _remove(self) -> None:
        # The other end goes with this one.
        for command in (f"link delete {self._name}", f"netns delete {self._name}"):
            _ip(command, check=False)

    def cut(self) -> None:
        """Lets all vanish that is sent from now on."""
        self._send(NOWHERE, NOWHERE)

    def mend(self) -> None:
        """Carries again what is sent."""
        self._send(HERE, THERE)

    def _send(self, here: str, there: str) -> None:
        # Told, and not asked for: an end that does not answer would be known to be gone.
        _ip(f"neighbour replace {self.there} lladdr {there} dev {self._name}")
        _ip(f"-n {self._name} neighbour replace {self.here} lladdr {here} dev eth0")


def _ip(command: str, *, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("ip") or "ip"
    return subprocess.run([program, *command.split()], check=check, timeout=20, capture_output=True)


@cache
def lacking() -> str:
    """Why there can be no such network here; empty: there can."""
    if os.geteuid() or shutil.which("ip") is None:
        return "network namespaces need root and iproute2"
    try:
        with Wire():
            return ""
    except subprocess.CalledProcessError as error:
        return f"no network namespaces on this machine: {error.stderr.decode().strip()}"
