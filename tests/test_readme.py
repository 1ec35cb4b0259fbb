"""Pages tell the truth: all that they tell readers to do works as it stands, in its order."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.pages import REPOSITORY, RUN, Reader, blocks
from tests.support.server import Server

PAGES = ["README.md", "docs/index.md", "docs/tutorial.md", "docs/how-to/secure.md", "docs/how-to/cluster.md"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.e2e if name == "README.md" else pytest.mark.long)
        for name in PAGES
    ],
)
def test_what_the_page_says_works(name: str, make_server: Callable[..., Server], tmp_path: Path) -> None:
    """Every block runs, against a real server, and ends and prints as the page says."""
    reader = Reader(tmp_path, make_server)
    try:
        for block in blocks(REPOSITORY / name):
            if block.is_run:
                reader.follow(block)
    finally:
        reader.close()


@pytest.mark.parametrize("name", PAGES)
def test_little_is_exempt(name: str) -> None:
    """The page has blocks, most of them run, and each that does not says why."""
    found = [block for block in blocks(REPOSITORY / name) if block.language in RUN]
    run = [block for block in found if block.is_run]
    assert run
    assert len(run) >= 2 * (len(found) - len(run))


@pytest.mark.parametrize("name", PAGES)
def test_no_block_is_without_a_language(name: str) -> None:
    """A block that nobody runs has a language that says so: `text` for example."""
    assert [str(block) for block in blocks(REPOSITORY / name) if not block.language] == []
