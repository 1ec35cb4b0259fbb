"""Notebook paths that try everything: what is outside the root is never read."""

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from notebook_runner_server.errors import RunnerError
from notebook_runner_server.runs.sources import NotebookRoot

pytestmark = pytest.mark.fault

INSIDE, OUTSIDE = b"inside", b"outside"
SWAPS = 2000

NAMES = ".. . in.ipynb below out self up root secret.ipynb swapped %2e%2e ..\\ ..; ~ proc fd"
PIECES = st.one_of(st.sampled_from([*NAMES.split(), "", "\0", "\udce9", "a" * 300]), st.text(max_size=20))
PATHS = st.tuples(st.sampled_from(["", "/", "//", "./", "../", "\\"]), st.lists(PIECES, max_size=8)).map(
    lambda both: both[0] + "/".join(both[1])
)


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """A root with links that lead out of it, into it and to themselves, and a secret beside it."""
    with tempfile.TemporaryDirectory() as folder:
        outer, inner = Path(folder), Path(folder, "root")
        (inner / "below").mkdir(parents=True)
        (outer / "secret.ipynb").write_bytes(OUTSIDE)
        (inner / "in.ipynb").write_bytes(INSIDE)
        (inner / "below" / "in.ipynb").write_bytes(INSIDE)
        (inner / "out").symlink_to(outer)
        (inner / "up").symlink_to("..")
        (inner / "below" / "up").symlink_to("../..")
        (inner / "self").symlink_to("self")
        (inner / "proc").symlink_to("/proc/self/cwd")
        yield inner


@settings(max_examples=2000, deadline=None, database=None)
@given(path=PATHS)
def test_no_path_leads_out(root: Path, path: str) -> None:
    """2,000 paths of `..`, NUL, encodings and links: each is read inside the root, or refused."""
    with suppress(RunnerError):
        content, folder = NotebookRoot(root, 100).read(path)
        assert content == INSIDE
        assert Path(folder).is_relative_to(root.resolve())


def test_a_link_that_is_exchanged_while_it_is_read(root: Path) -> None:
    """A folder becomes a link to the outside and back again and again: the outside is never read."""
    place, real, link = root / "swapped", root / "real", root / "link"
    real.mkdir()
    (real / "secret.ipynb").write_bytes(INSIDE)
    link.symlink_to(root.parent)
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            for one in (real, link):
                os.rename(one, place)
                os.rename(place, one)

    thread = threading.Thread(target=swap)
    thread.start()
    read = set()
    try:
        for _ in range(SWAPS):
            with suppress(RunnerError):
                read.add(NotebookRoot(root, 100).read("swapped/secret.ipynb")[0])
    finally:
        over.set()
        thread.join()
    assert OUTSIDE not in read
