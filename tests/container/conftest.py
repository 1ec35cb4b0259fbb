"""What the tests of image and manifests share: the image, built once, and the server's pod."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from container.deployed import Deployed
from container.podman import build


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
    """Makes pods of the test's own, which are started by `play`."""
    with ExitStack() as undo:

        def make(**environment: Any) -> Deployed:
            made = Deployed(tmp_path, image, **environment)
            undo.callback(made.remove)
            made.play()
            return made

        yield make
