"""Fixtures of tests that name notebooks by URI; a test module takes them by importing them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import Server
from tests.support.web import BUCKET, ObjectStore, Web, object_store

# How long a service may take, also on a busy machine; no test waits for it.
URI_SECONDS = 60


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    """A web server."""
    with Web() as serving:
        yield serving


@pytest.fixture(scope="module")
def objects() -> Iterator[ObjectStore]:
    """An S3 API."""
    with object_store() as serving:
        yield serving


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that file URIs may lead into."""
    return tmp_path_factory.mktemp("shared").resolve()


def allowing(shared: Path, timeout: int = URI_SECONDS) -> list[str]:
    """The options of a server that allows what the tests have, with the seconds that a service may take."""
    options = ["--uri-schemes", "http,s3,file", "--uri-hosts", f"127.0.0.1,{BUCKET},nowhere"]
    return [*options, "--uri-folders", str(shared), "--uri-timeout", str(timeout)]


@pytest.fixture(scope="module")
def uri_server(
    tmp_path_factory: pytest.TempPathFactory, objects: ObjectStore, shared: Path
) -> Iterator[Server]:
    """A server that allows what the tests have, and small notebooks only."""
    options = [*allowing(shared), "--queue", "3", "--max-notebook-bytes", "100000"]
    state = tmp_path_factory.mktemp("state")
    with Server(state, *options, environment=objects.environment) as running:
        yield running
