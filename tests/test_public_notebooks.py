"""The notebooks of other projects' test suites: where they are, and what is said when they are missing."""

from pathlib import Path

import pytest

from tests.support import public_notebooks

COUNTS = {"nbclient": 23, "nbconvert": 23, "papermill": 24}


@pytest.mark.parametrize("distribution", COUNTS)
def test_every_notebook_is_there(distribution: str) -> None:
    """The pinned distributions' notebooks are unpacked, so that no test runs on fewer without a word."""
    assert len(public_notebooks.notebook_paths(distribution)) == COUNTS[distribution]


def test_missing_notebooks_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the download, the error names what is missing and the command that gets it."""
    monkeypatch.setattr(public_notebooks, "DATA", tmp_path)
    with pytest.raises(public_notebooks.MissingTestDataError, match=r"nbclient.*`make install`"):
        public_notebooks.folder("nbclient")
