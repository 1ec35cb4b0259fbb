"""Fixtures of these tests: a pool with real kernels."""

from collections.abc import Iterator

import pytest

from tests.execution.pools import Pool


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """One pool with one worker for all tests of a module: each has to leave it well."""
    with Pool(tmp_path_factory.mktemp("pool")) as opened:
        yield opened
