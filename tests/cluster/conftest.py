"""Fixtures of these tests: a cluster, and servers that execute their runs on it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.killable import KillableServer


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three workers with TLS for all tests of a module, each of which leaves them well."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def serve(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., KillableServer]]:
    """Starts servers on the cluster, one after the other on the same state folder."""
    with ExitStack() as servers:

        def one(*options: str) -> KillableServer:
            options = ("--worker-timeout", "30", "--queue", "9", *options)
            server = KillableServer(tmp_path / "state", *options, environment=cluster.environment)
            return servers.enter_context(server)

        yield one
