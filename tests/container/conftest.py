"""What the tests of image and manifests share: the image, built once, and the server's pod."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.container.deployed import Deployed
from tests.container.manifests import BASE, OVERLAYS, Manifest, container_of, find, rendered
from tests.container.podman import build


@pytest.fixture(scope="session")
def image() -> str:
    """The image of the server."""
    return build("runner")


@pytest.fixture(scope="session")
def deployed(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """One pod for all tests that leave it as they found it."""
    with ExitStack() as undo:
        made = Deployed(tmp_path_factory.mktemp("deployed"), image)
        undo.callback(made.remove)
        made.play()
        yield made


@pytest.fixture
def deploy(image: str, tmp_path: Path) -> Iterator[Callable[..., Deployed]]:
    """Starts a pod of the test's own."""
    with ExitStack() as undo:

        def make(**options: Any) -> Deployed:
            made = Deployed(tmp_path, image, **options)
            undo.callback(made.remove)
            made.play()
            return made

        yield make


@pytest.fixture(params=[BASE, *OVERLAYS], ids=lambda folder: folder.name)
def folder(request: pytest.FixtureRequest) -> Path:
    """The base, and each overlay."""
    chosen: Path = request.param
    return chosen


@pytest.fixture
def server(folder: Path) -> Manifest:
    """The server's container."""
    return container_of(find(rendered(folder), "Deployment"))
