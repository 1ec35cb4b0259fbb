"""The `files` format: what of a run folder is packed, and how much."""

import os
import socket
import zipfile
from pathlib import Path

import pytest

from notebook_runner_server.runs.files import UnpackableError, pack


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with two files of five bytes each."""
    work = tmp_path / "work"
    (work / "below" / "empty").mkdir(parents=True)
    (work / "top.txt").write_bytes(b"12345")
    (work / "below" / "deep.txt").write_bytes(b"abcde")
    return work


def packed(folder: Path, max_bytes: int = 100) -> dict[str, bytes]:
    """What a zip of the folder has, by name."""
    target = folder.parent / "target.zip"
    pack(folder, target, max_bytes)
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def test_regular_files_are_packed_under_their_relative_names(folder: Path) -> None:
    """All files of all folders, by their paths in the run folder."""
    assert packed(folder) == {"top.txt": b"12345", "below/deep.txt": b"abcde"}


def test_an_empty_folder_gives_an_empty_zip(tmp_path: Path) -> None:
    """A run that left nothing has an artefact nevertheless."""
    (tmp_path / "work").mkdir()
    assert packed(tmp_path / "work") == {}


def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    """Neither a file, a folder nor a ring of links brings anything in; a hard link is a file of its own."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file.txt").write_bytes(b"secret")
    (folder / "file.txt").symlink_to(secret / "file.txt")
    (folder / "folder").symlink_to(secret)
    (folder / "ring").symlink_to(folder)
    (folder / "nothing").symlink_to("missing")
    (folder / "inside.txt").symlink_to(folder / "top.txt")
    assert sorted(packed(folder)) == ["below/deep.txt", "top.txt"]
    (folder / "hard.txt").hardlink_to(folder / "top.txt")
    assert packed(folder)["hard.txt"] == b"12345"


def test_a_backslash_separates_no_folders(folder: Path) -> None:
    """A name that leads elsewhere on Windows is one name in the zip."""
    (folder / "..\\..\\evil.txt").write_bytes(b"x")
    names = packed(folder)
    assert len(names) == 3
    assert not any("\\" in name for name in names)


def test_what_is_no_file_is_left_out(folder: Path) -> None:
    """A pipe and a socket are neither packed nor waited for."""
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(folder / "socket"))
        assert sorted(packed(folder)) == ["below/deep.txt", "top.txt"]


def test_the_bound_is_exact_and_comes_before_the_writing(folder: Path) -> None:
    """As many bytes as are allowed are packed; with one more nothing is written."""
    assert len(packed(folder, 10)) == 2
    with pytest.raises(UnpackableError, match="10 bytes; the server allows 9"):
        pack(folder, folder.parent / "over.zip", 9)
    assert not (folder.parent / "over.zip").exists()


def test_a_sparse_file_counts_with_its_size(folder: Path) -> None:
    """What takes no room on the disk would take it in memory and in the answer."""
    with (folder / "sparse").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(UnpackableError):
        packed(folder, 10**9)


def test_times_that_zip_does_not_have_are_no_error(folder: Path) -> None:
    """A file from before 1980 or after 2107 is packed as well."""
    os.utime(folder / "top.txt", (0, 0))
    os.utime(folder / "below" / "deep.txt", (2**33, 2**33))
    assert len(packed(folder)) == 2


def test_any_name_that_a_file_can_have_can_be_packed(folder: Path) -> None:
    """A notebook may name its files as it likes, also in bytes that are no UTF-8."""
    for name in ("ä €.txt", "a\nb", "\\", "-x", "😀"):
        (folder / name).write_bytes(b"x")
    os.close(os.open(os.fsencode(folder) + b"/\xff\xfe.txt", os.O_CREAT | os.O_WRONLY))
    assert len(packed(folder)) == 8
