"""Files of a request are written into the run's folder, and nowhere else."""

from pathlib import Path

import pytest

from notebook_runner_server.execution import input_files
from notebook_runner_server.execution.interface import InputFile


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder, and a folder beside it."""
    (tmp_path / "beside").mkdir()
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def test_files_are_written_with_their_folders(folder: Path) -> None:
    """For this user alone; again, with the same result."""
    files = [InputFile("a", b"1"), InputFile("b/c/d", b"2"), InputFile("b/e", b"")]
    for _ in range(2):
        input_files.write(folder, files)
    found = {str(one.relative_to(folder)): one for one in folder.rglob("*")}
    assert {name: one.read_bytes() for name, one in found.items() if one.is_file()} == {
        file.path: file.content for file in files
    }
    assert {one.stat().st_mode & 0o777 for one in found.values() if one.is_file()} == {0o600}
    assert {one.stat().st_mode & 0o777 for one in found.values() if one.is_dir()} == {0o700}


@pytest.mark.parametrize("path", ["link/file", "file", "../beside/file", "/beside/file"])
def test_no_path_leads_out_of_the_folder(folder: Path, path: str) -> None:
    """Not over a link to a folder, not over one to a file, and not by its names."""
    beside = folder.parent / "beside"
    (beside / "target").write_bytes(b"before")
    (folder / "link").symlink_to(beside)
    (folder / "file").symlink_to(beside / "target")
    with pytest.raises(OSError, match=r"."):
        input_files.write(folder, [InputFile(path, b"after")])
    assert {one.name: one.read_bytes() for one in beside.iterdir()} == {"target": b"before"}


def test_content_is_not_shown() -> None:
    """A file in a log line or a traceback has its path only."""
    assert repr(InputFile("a", b"secret")) == "InputFile(path='a')"
