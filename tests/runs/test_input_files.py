"""Files of a request: what is refused, and how the others are kept until the run has ended."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notebook_runner_server.errors import DamagedRunError, InvalidFieldError
from notebook_runner_server.execution.interface import InputFile
from notebook_runner_server.runs import input_files
from notebook_runner_server.runs.folder import RunFolder

MAX_BYTES = 100
ALLOWED = ["a", "a b", ".hidden", "..a", "a/b/c", "...", "ä" * 127, "/".join(["a" * 203] * 5), "a:b*?", "-"]


@pytest.mark.parametrize("path", ALLOWED)
def test_a_path_within_the_folder_is_accepted(path: str) -> None:
    """Whatever characters a name has that Linux allows, but no backslash."""
    input_files.check([InputFile(path, b"")], MAX_BYTES)


def test_files_of_one_folder_are_accepted() -> None:
    """As many as allowed, with as many bytes."""
    input_files.check([InputFile(f"a/{number}", b"") for number in range(input_files.MAX_FILES)], 0)
    input_files.check([InputFile("a", b"x" * 60), InputFile("ab", b"x" * 40)], MAX_BYTES)
    with pytest.raises(InvalidFieldError, match=r"allows 100 bytes in all files together \(got 101\)"):
        input_files.check([InputFile("a", b"x" * 60), InputFile("ab", b"x" * 41)], MAX_BYTES)


def test_files_of_too_many_folders_are_refused() -> None:
    """A request of 1 MB could create half a million of them, and hold up all other calls meanwhile."""
    most = "/".join(str(number) for number in range(250))
    files = [InputFile(f"{first}{most}/x", b"") for first in range(4)]
    input_files.check(files, MAX_BYTES)
    with pytest.raises(InvalidFieldError, match="files: at most 1000 folders are allowed"):
        input_files.check([*files, InputFile("one/more", b"")], MAX_BYTES)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_path_is_refused_or_stays_in_the_folder(path: str) -> None:
    """None of those that are accepted leads to another folder."""
    try:
        input_files.check([InputFile(path, b"")], MAX_BYTES)
    except InvalidFieldError:
        return
    parts = path.split("/")
    assert all(part not in {"", ".", ".."} and "\0" not in part for part in parts)
    assert input_files.unpack(input_files.pack([InputFile(path, b"x")])) == (InputFile(path, b"x"),)


def test_files_are_kept_until_the_run_has_ended(tmp_path: Path) -> None:
    """Byte for byte; without any, there is nothing to keep."""
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.write_input_files([])
    assert folder.input_files() == ()
    files = tuple(InputFile(path, path.encode() * 3) for path in ALLOWED)
    folder.write_input_files(files)
    assert folder.input_files() == files
    folder.delete_inputs()
    assert folder.input_files() == ()


@pytest.mark.parametrize("place", [0, 40, -3])
def test_damage_is_noticed(tmp_path: Path, place: int) -> None:
    """The notebook never reads what its caller has not sent."""
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.write_input_files([InputFile("name", b"content" * 10)])
    path = folder.path / "input-files"
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DamagedRunError, match="input-files"):
        folder.input_files()
