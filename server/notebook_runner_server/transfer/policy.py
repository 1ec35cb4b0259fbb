"""Parses URIs, and checks them against the operator's policy without resolving or opening anything.

The SSRF guard blocks loopback, link-local and cloud-metadata addresses unless `--uri-hosts` names them.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from notebook_runner_server.transfer.interface import RefusedError

MAX_URI = 8192
"""Maximum length of a URI; signed ones have some 2,000 characters."""

SCHEMES = {
    "https": ("aiohttp", "http"),
    "http": ("aiohttp", "http"),
    "s3": ("s3fs", "s3"),
    "gs": ("gcsfs", "gcs"),
    "abfs": ("adlfs", "azure"),
    "file": ("", ""),
}
"""The supported schemes, with the package that each needs and the extra that installs it."""

WEB = ("https", "http")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\\#]")
_WEB_TEXT = re.compile(r"[!-~]*")
_HOST = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


@dataclass(frozen=True, slots=True)
class ParsedUri:
    """The parts of a URI.

    Attributes:
        scheme: The scheme in lower case.
        host: The host in lower case without its port, the bucket or the container; empty for a file.
        path: The absolute path of a file, or the path of an object with its bucket; empty for http(s).
    """

    scheme: str
    host: str
    path: str


def parse(uri: str) -> ParsedUri:
    """Parse a URI.

    Raises:
        RefusedError: It is malformed or unsupported.
    """
    found = _SCHEME.match(uri)
    scheme = found[1].lower() if found else ""
    if found is None or scheme not in SCHEMES:
        known = ", ".join(f"{one}://" for one in SCHEMES)
        raise RefusedError(f"unknown scheme {scheme[:20]!r}; the URI must begin with one of: {known}")
    if len(uri) > MAX_URI:
        raise RefusedError(f"the URI has {len(uri)} characters; the maximum is {MAX_URI}")
    if _UNFIT.search(uri):
        raise RefusedError("the URI has a fragment, a backslash or a control character")
    rest = uri[found.end() :]
    authority = re.split(r"[/?]", rest, maxsplit=1)[0]
    if "@" in authority:
        raise RefusedError("the URI contains a user or a password; credentials are the server's own")
    if scheme in WEB:
        return ParsedUri(scheme, _host(authority, rest), "")
    if "?" in rest:
        raise RefusedError(f"a URI with the scheme {scheme} must not have a query")
    if scheme == "file":
        return ParsedUri(scheme, "", _file(authority, rest))
    return ParsedUri(scheme, authority, _object(authority, rest))


def _host(authority: str, rest: str) -> str:
    found = _HOST.fullmatch(authority)
    if found is None or not _WEB_TEXT.fullmatch(rest):
        raise RefusedError("the URI has no host, or characters that must be percent-encoded")
    host = found["host"].strip("[]").lower().rstrip(".")
    if _NUMBER.fullmatch(host.rpartition(".")[2]) or ":" in host:
        # Resolvers accept many forms of an address; only the usual one is allowed.
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise RefusedError("the host is a number, but not an IP address in its usual form") from None
    return host


def _object(bucket: str, rest: str) -> str:
    parts = rest.split("/")
    if not _BUCKET.fullmatch(bucket) or len(parts) == 1 or any(part in ("", ".", "..") for part in parts):
        raise RefusedError("the URI names no object in a bucket, or its path has an empty, '.' or '..' part")
    return rest


def _file(authority: str, rest: str) -> str:
    path = unquote(rest[len(authority) :], errors="surrogateescape")
    if authority not in ("", "localhost") or "\0" in path or ".." in path.split("/") or path.endswith("/"):
        raise RefusedError("the URI does not name a file by its absolute path, as in file:///a/b.ipynb")
    return path


@dataclass(frozen=True, slots=True)
class UriPolicy:
    """The URIs that the operator allows.

    Attributes:
        schemes: Allowed schemes; none: no URI is allowed.
        hosts: Allowed hosts, buckets and containers; none: any that the SSRF guard does not block.
        folders: Allowed folders of this machine for `file`.
        reserved: Where the server has files of its own, which no caller may read or write; None: nowhere.
    """

    schemes: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    folders: tuple[str, ...] = ()
    reserved: ParsedUri | None = None

    def check(self, uri: str) -> None:
        """Check a URI without resolving or opening anything.

        Raises:
            RefusedError: The URI is not allowed.
        """
        if not self.schemes:
            raise RefusedError("URIs are not enabled on this server (--uri-schemes)")
        parsed = parse(uri)
        if parsed.scheme not in self.schemes:
            raise RefusedError(f"enabled schemes are: {', '.join(sorted(self.schemes))} (--uri-schemes)")
        if self.reserved is not None and _is_below(parsed, self.reserved):
            raise RefusedError("the server keeps its own files there (--store-files-uri)")
        if parsed.scheme == "file":
            self._check_file(parsed.path)
        elif self.hosts:
            self._check_host(parsed)
        elif parsed.scheme in WEB and _is_inside(parsed.host):
            raise RefusedError(BLOCKED)

    def _check_file(self, path: str) -> None:
        if not any(Path(folder) in Path(path).parents for folder in self.folders):
            raise RefusedError("the file is outside the allowed folders (--uri-folders)")

    def _check_host(self, parsed: ParsedUri) -> None:
        hosts = {one.lower().strip("[]") for one in self.hosts} if parsed.scheme in WEB else self.hosts
        if parsed.host not in hosts:
            raise RefusedError(f"the host {parsed.host[:100]!r} is not in --uri-hosts")


def _is_below(parsed: ParsedUri, folder: ParsedUri) -> bool:
    return parsed.scheme == folder.scheme and Path(parsed.path).is_relative_to(folder.path)


BLOCKED = "the host has a loopback, link-local or cloud-metadata address (allow it with --uri-hosts)"


def _is_inside(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return is_blocked(host)
    except ValueError:
        # A name, whose addresses are checked when connecting.
        return False


def policy(schemes: Iterable[str], hosts: Iterable[str], folders: Iterable[str]) -> UriPolicy:
    """Return the policy for the settings.

    Raises:
        ValueError: A setting is invalid.
    """
    chosen = frozenset(schemes)
    for scheme in sorted(chosen):
        if scheme not in SCHEMES:
            raise ValueError(f"--uri-schemes: unknown scheme {scheme!r}. Available: {', '.join(SCHEMES)}.")
        _check_package(f"--uri-schemes {scheme}", scheme)
    absolute = tuple(os.path.abspath(folder) for folder in folders)
    if "file" in chosen and not absolute:
        raise ValueError("--uri-schemes file needs --uri-folders.")
    return UriPolicy(chosen, frozenset(hosts), absolute)


def archive_location(uri: str) -> ParsedUri:
    """Return the folder or prefix for the archives of runs.

    Raises:
        ValueError: The URI is none that can be used for that.
    """
    flag = "--store-files-uri"
    scheme = uri.partition("://")[0].lower()
    if scheme in WEB:
        raise ValueError(
            f"{flag} must be in an object store or a folder, not on the web (got a URI with {scheme}://)."
        )
    try:
        parsed = parse(f"{uri.rstrip('/')}/name")
    except RefusedError as error:
        example = "s3://BUCKET/PREFIX or file:///FOLDER"
        raise ValueError(f"{flag} must be a URI such as {example}: {error}.") from error
    _check_package(f"{flag} {uri}", scheme)
    return ParsedUri(parsed.scheme, parsed.host, parsed.path.removesuffix("/name"))


def _check_package(setting: str, scheme: str) -> None:
    package, extra = SCHEMES[scheme]
    if package and importlib.util.find_spec(package) is None:
        raise ValueError(f"{setting} needs the package {package}: pip install 'notebook-runner[{extra}]'.")


# Metadata services of clouds, which hand out credentials; most others have link-local addresses.
_METADATA = frozenset(
    ipaddress.ip_address(one)
    for one in ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
)
_THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")
# Their addresses end with an IPv4 address: those of NAT64 (RFC 6052), of a network's own NAT64 (RFC 8215),
# translated ones (RFC 2765), and compatible ones (RFC 4291).
_EMBEDDING = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "::ffff:0:0:0/96", "::/96")))


def is_blocked(address: str) -> bool:
    """Return whether the SSRF guard blocks an IP address.

    Raises:
        ValueError: It is not an IP address.
    """
    return any(_is_internal(one) for one in _with_embedded(ipaddress.ip_address(address)))


def _is_internal(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return (
        address.is_loopback
        or address.is_link_local
        or address.is_unspecified
        or address.is_multicast
        or address in _METADATA
        or address in _THIS_NETWORK
    )


def _with_embedded(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Return an address, and the IPv4 addresses embedded in it."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    carried = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if any(address in network for network in _EMBEDDING):
        carried.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [address, *(one for one in carried if one is not None)]
