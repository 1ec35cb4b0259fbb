"""Addresses that nobody means who names a notebook: this machine, its link, its cloud's secrets."""

from __future__ import annotations

import ipaddress

# A cloud tells a machine's own credentials under an address of its own; most are link-local, these are not.
_METADATA = frozenset(
    ipaddress.ip_address(one)
    for one in ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
)
_THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_blocked(address: str) -> bool:
    """Tell whether an IP address is loopback, link-local, unspecified, multicast or a cloud's metadata.

    Raises:
        ValueError: It is no IP address.
    """
    return any(_is_forbidden(one) for one in _meant(ipaddress.ip_address(address)))


def _is_forbidden(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return (
        address.is_loopback
        or address.is_link_local
        or address.is_unspecified
        or address.is_multicast
        or address in _METADATA
        or address in _THIS_NETWORK
    )


def _meant(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Return an address, and the IPv4 address that it carries."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    carried = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64 or int(address) >> 32 == 0:
        carried.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [address, *(one for one in carried if one is not None)]
