"""Names on the web that stand for this machine are seen when a connection is made to them."""

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from notebook_runner_server.transfer import web
from notebook_runner_server.transfer.interface import RefusedError
from notebook_runner_server.transfer.policy import UriPolicy
from tests.support.web import Web

pytestmark = pytest.mark.integration

NAME = "rebound.example"


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A web server on this machine, with a name: the resolver is a fake, for no name service is here."""
    original = socket.getaddrinfo

    def look_up(host: Any, port: Any, *rest: Any, **more: Any) -> Any:
        return original("127.0.0.1" if host == NAME else host, port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with Web() as running:
        yield running


def test_a_name_that_stands_for_this_machine_is_refused_on_the_way(serving: Web, tmp_path: Any) -> None:
    """The policy cannot know; the connection is not made, for reading and for writing alike."""
    uri = f"http://{NAME}:{serving.port}/objects/a"
    UriPolicy(frozenset({"http"})).check(uri)
    with pytest.raises(RefusedError, match="--uri-hosts"):
        asyncio.run(web.read(uri, 100, any_address=False))
    (tmp_path / "a").write_bytes(b"a")
    with (tmp_path / "a").open("rb") as file, pytest.raises(RefusedError, match="--uri-hosts"):
        asyncio.run(web.write(uri, file, any_address=False))
    assert serving.requests == []


def test_a_host_that_the_operator_names_may_be_this_machine(serving: Web) -> None:
    """Then it is meant."""
    serving.put("a", b"content")
    uri = f"http://{NAME}:{serving.port}/objects/a"
    UriPolicy(frozenset({"http"}), frozenset({NAME})).check(uri)
    assert asyncio.run(web.read(uri, 100, any_address=True)) == b"content"


def test_what_a_uri_carries_is_in_no_error(serving: Web) -> None:
    """Signatures stay out of messages, whatever goes wrong."""
    for path in ("status/500", "status/404", "redirect?http://127.0.0.1", "short"):
        uri = f"http://127.0.0.1:{serving.port}/{path}{'&' if '?' in path else '?'}secret"
        with pytest.raises(Exception, match=r".") as caught:
            asyncio.run(web.read(uri, 100, any_address=True))
        assert "secret" not in str(caught.value)


def test_a_webhook_to_this_machine_is_refused_on_the_way(serving: Web) -> None:
    """Unless its host may have any address: then it comes, and what the receiver answers is its own."""
    uri = f"http://{NAME}:{serving.port}/hook"
    with pytest.raises(RefusedError):
        asyncio.run(web.post(uri, b"{}", {}, any_address=False))
    assert serving.requests == []
    asyncio.run(web.post(uri, b"{}", {}, any_address=True))
    assert serving.requests == ["POST /hook"]
