"""The port of the metrics holds against peers that say nothing, read nothing, or come in crowds."""

import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge

from notebook_runner_server.observability import endpoint
from notebook_runner_server.observability.endpoint import MAX_SCRAPES, Endpoint
from tests.support.polling import pause

pytestmark = pytest.mark.integration

PATIENCE = 1.0
LINES = 20
SECONDS = 60.0


@pytest.fixture
def open_endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """A port with a page of 2 MB, more than sockets hold, in few lines: it is made in no time."""
    monkeypatch.setattr(endpoint, "SCRAPE_SECONDS", PATIENCE)
    registry = CollectorRegistry()
    gauge = Gauge("one", "One.", ["label"], registry=registry)
    for number in range(LINES):
        gauge.labels(f"{number:0100000}").set(1)
    opened = Endpoint("127.0.0.1", 0, registry)
    yield opened
    opened.close()


def scrape(port: int) -> None:
    """Waits for the whole page, however often it is refused for want of room, or cut off for being late."""
    end, count = time.monotonic() + SECONDS, -1
    while count != LINES:
        assert time.monotonic() < end, f"{count} of {LINES} lines"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SECONDS) as answer:
                count = answer.read().count(b"one{")
        except OSError:
            pause()


def test_a_crowd_that_says_nothing(open_endpoint: Endpoint) -> None:
    """More silent connections than there are places keep a scrape out for a moment, not for ever."""
    with ExitStack() as stack:
        for _ in range(4 * MAX_SCRAPES):
            stack.enter_context(closing(socket.create_connection(("127.0.0.1", open_endpoint.port))))
        scrape(open_endpoint.port)


def test_peers_that_drip(open_endpoint: Endpoint) -> None:
    """A peer that sends a byte now and then is cut off when its time is over."""
    with closing(socket.create_connection(("127.0.0.1", open_endpoint.port))) as peer:
        peer.settimeout(PATIENCE / 5)
        begin = time.monotonic()
        with pytest.raises(ConnectionError):  # noqa: PT012 - it may be seen when sending or when reading
            while time.monotonic() < begin + SECONDS:
                peer.sendall(b"G")
                try:
                    if not peer.recv(1):
                        raise ConnectionError
                except TimeoutError:
                    continue
        assert time.monotonic() - begin < SECONDS


def test_readers_that_read_nothing(open_endpoint: Endpoint) -> None:
    """Peers that ask for the page and do not take it are cut off, and others are answered."""
    with ExitStack() as stack:
        for _ in range(MAX_SCRAPES):
            peer = stack.enter_context(closing(socket.create_connection(("127.0.0.1", open_endpoint.port))))
            peer.sendall(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n")
        scrape(open_endpoint.port)


@pytest.mark.skipif(not Path("/proc/net/if_inet6").is_file(), reason="this machine has no IPv6")
def test_both_families() -> None:
    """It listens on addresses of IPv6 as well."""
    opened = Endpoint("::1", 0, CollectorRegistry())
    with urllib.request.urlopen(f"http://[::1]:{opened.port}/metrics", timeout=SECONDS) as answer:
        assert answer.status == 200
    opened.close()
