"""Which URIs a run may notify."""

import pytest

from notebook_runner_server.runs.model import Notify
from notebook_runner_server.transfer.interface import RefusedError
from notebook_runner_server.webhooks.notifications import check

HOSTS = ["ci.example.com", "::1"]


@pytest.mark.parametrize(
    ("uri", "host"),
    [
        ("https://ci.example.com/done?token=1", "ci.example.com"),
        ("HTTP://CI.example.com:8080/", "ci.example.com"),
        ("https://[::1]/", "::1"),
    ],
)
def test_a_host_that_the_operator_names(uri: str, host: str) -> None:
    """In whatever case, and on any port; the URI is kept as it is."""
    assert check(HOSTS, uri) == Notify(host, uri)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "ci.example.com",
        "https://example.com/",
        "https://ci.example.com.evil.example/",
        "https://ci.example.com@evil.example/",
        "https://evil.example/ci.example.com",
        "https://user:word@ci.example.com/",
        "s3://ci.example.com/key",
        "file://ci.example.com/a",
        "https://ci.example.com/" + "a" * 10_000,
        "https://ci.example.com/\n",
    ],
)
def test_every_other_is_refused(uri: str) -> None:
    """Other hosts, other schemes, credentials and what is no URI."""
    with pytest.raises(RefusedError):
        check(HOSTS, uri)
