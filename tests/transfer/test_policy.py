"""The operator's policy, as far as it needs no service."""

import importlib.util
import ipaddress

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from notebook_runner_server.transfer.interface import RefusedError, shown
from notebook_runner_server.transfer.policy import SCHEMES, UriPolicy, is_blocked, parse, policy

# Of networks that no notebook is meant to come from.
INSIDE = [
    "127.0.0.0/8",
    "169.254.0.0/16",
    "0.0.0.0/8",
    "224.0.0.0/4",
    "fe80::/10",
    "::1/128",
    "::/128",
    "ff00::/8",
]
OUTSIDE = [
    "93.184.216.34",
    "10.0.0.1",
    "192.168.1.1",
    "172.16.0.1",
    "2606:2800:220:1::1",
    "fd12::1",
    "64:ff9b::808:808",
]


@given(st.sampled_from(INSIDE), st.integers(0, 2**128 - 1))
def test_every_address_of_a_forbidden_network_is_forbidden(network: str, number: int) -> None:
    """Also as IPv6 carries an IPv4 address."""
    found = ipaddress.ip_network(network)
    address = found[number % found.num_addresses]
    assert is_blocked(str(address))
    if address.version == 4:
        assert is_blocked(f"::ffff:{address}")
        for prefix in ("64:ff9b::", "64:ff9b:1::", "::ffff:0:0:0", "::"):
            assert is_blocked(str(ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) + int(address))))


@pytest.mark.parametrize("address", OUTSIDE)
def test_other_addresses_are_not(address: str) -> None:
    """Private networks are where a company's notebooks are."""
    assert not is_blocked(address)


@given(st.text(max_size=60) | st.from_regex(r"[a-z0-9]{1,5}://[-\w@:/?#\[\].%]{0,40}", fullmatch=True))
def test_any_text_is_a_uri_that_is_known_or_is_refused(text: str) -> None:
    """No text brings the parser down, and none that is taken has a user in it."""
    try:
        place = parse(text)
    except RefusedError:
        return
    assert place.scheme in SCHEMES
    assert "@" not in place.host
    assert place.host or place.scheme == "file"


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("abfs", "adlfs")])
def test_each_object_store_has_its_file_system(scheme: str, package: str) -> None:
    """The extra brings what fsspec needs for it; Google's and Azure's services cannot be run here."""
    assert fsspec.get_filesystem_class(scheme).__module__.startswith(f"{package}.")


@pytest.mark.parametrize("scheme", [scheme for scheme, (package, _) in SCHEMES.items() if package])
def test_a_scheme_whose_package_is_missing_is_said_at_the_start(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """The message names the package and what brings it."""
    assert policy([scheme], [], []).schemes == {scheme}
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    package, extra = SCHEMES[scheme]
    with pytest.raises(ValueError, match=rf"needs the package {package}.*notebook-runner\[{extra}\]"):
        policy([scheme], [], [])


def test_what_an_operator_cannot_allow_is_refused() -> None:
    """A scheme that is not there, and files without a folder."""
    with pytest.raises(ValueError, match="'ftp'"):
        policy(["ftp"], [], [])
    with pytest.raises(ValueError, match="--uri-folders"):
        policy(["file"], [], [])


def test_hosts_are_compared_without_case_on_the_web_and_with_it_elsewhere() -> None:
    """Host names have no case, buckets have."""
    allowed = UriPolicy(
        frozenset({"https", "s3"}), frozenset({"Reports.Example.org", "Bucket", "[2001:db8::1]"})
    )
    allowed.check("https://REPORTS.example.ORG.:8443/a?b=c")
    allowed.check("https://[2001:DB8::1]/a")
    allowed.check("s3://Bucket/a b/ü.ipynb")
    for uri in ("https://example.org/a", "https://x.reports.example.org/a", "s3://bucket/a"):
        with pytest.raises(RefusedError, match="--uri-hosts"):
            allowed.check(uri)


@pytest.mark.parametrize(
    "uri", ["https://user:word@a/b", "https://user@a/b", "s3://key:word@a/b", "abfs://a@b/c"]
)
def test_credentials_in_a_uri_are_told_as_what_they_are(uri: str) -> None:
    """They would be in histories and logs; Azure's account is the server's as well."""
    with pytest.raises(RefusedError, match="credentials are the server's own"):
        parse(uri)


def test_nothing_after_a_question_mark_is_shown() -> None:
    """Names of a query's values neither: one without a name would be its value."""
    assert shown("https://a/b?c=d&e") == "https://a/b?…"
    assert shown("https://a/b") == "https://a/b"
