"""The marks by which tests find the processes of a server."""

from uuid import uuid4

from tests.support.processes import limit

SERVERS = 5000


def test_no_two_servers_have_the_same_mark() -> None:
    """A test that ends a server never kills the processes of another test's server."""
    assert len({limit(uuid4().hex) for _ in range(SERVERS)}) == SERVERS
