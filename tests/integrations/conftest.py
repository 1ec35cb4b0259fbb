"""The host of each module: the program that it names in `HOST`, with this package installed as it is now."""

from pathlib import Path

import pytest

from tests.support.hosts import Host, build_wheel


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distribution's wheel."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def host(request: pytest.FixtureRequest, wheel: Path) -> Host:
    """The program that the module's tests start."""
    made = Host(request.module.HOST)
    made.install(wheel)
    return made
