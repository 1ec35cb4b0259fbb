"""Fixtures of these tests: a pool with real kernels."""

from collections.abc import Iterator

import pytest

from notebook_runner_server.execution.options import WarmKernels
from tests.execution.pools import Pool


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """One pool with one worker for all tests of a module: each has to leave it well.

    Kernels are warm, as they are by default: a cold one takes four times as much processor time.
    """
    with Pool(tmp_path_factory.mktemp("pool"), warm=WarmKernels({"python3": 1})) as opened:
        yield opened
