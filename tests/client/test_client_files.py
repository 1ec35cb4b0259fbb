"""The files that are sent with a notebook, and the notebook's name."""

import os
from pathlib import Path
from typing import Any

import pytest

from notebook_runner import StartOptions, _files
from notebook_runner._requests import start_request


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with data and a package."""
    monkeypatch.chdir(tmp_path)
    for name in ("data.csv", "utils/a.py", "utils/deep/b.py", "other/data.csv", ".git/HEAD"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for name in ("utils/__pycache__/a.pyc", "utils/deep/.ipynb_checkpoints/b.py", "utils/.git/HEAD"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("ignored")
    return tmp_path


def sent(*paths: str | os.PathLike[str]) -> dict[str, str]:
    """What is sent for these paths."""
    request = start_request(b"{}", {"files": paths})
    return {file.path: file.content.decode() for file in request.files}


def test_files_and_folders() -> None:
    """A file goes beside the notebook, and a folder with its name and all that it contains."""
    utils = {"utils/a.py": "utils/a.py", "utils/deep/b.py": "utils/deep/b.py"}
    assert sent("data.csv", "utils/") == {"data.csv": "data.csv", **utils}
    assert sent(Path("utils").absolute()) == utils
    assert sent("utils/deep", "other/data.csv") == {
        "deep/b.py": "utils/deep/b.py",
        "data.csv": "other/data.csv",
    }
    assert sent() == {}


@pytest.mark.parametrize("name", [".", "./", "../{}"])
def test_the_folder_itself_stands_for_its_contents(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`.` has no name of its own; a folder that is reached by `..` has."""
    monkeypatch.chdir(folder / "utils")
    prefix = "utils/" if ".." in name else ""
    assert set(sent(name.format("utils"))) == {f"{prefix}a.py", f"{prefix}deep/b.py"}
    assert set(sent("..")) == {"data.csv", "utils/a.py", "utils/deep/b.py", "other/data.csv"}


def test_an_empty_path() -> None:
    """A variable that is not set does not send all that is in the current folder."""
    with pytest.raises(ValueError, match=r"files contains an empty path. Name the current folder as '\.'"):
        sent("data.csv", "")


def test_a_name_that_is_not_unicode(folder: Path) -> None:
    """No message can carry it; the error names the file."""
    (folder / "utils" / os.fsdecode(b"a\xff")).touch()
    with pytest.raises(ValueError, match=r"'utils/a\\udcff' is not valid Unicode. Rename the file"):
        sent("utils")


def test_links_within_the_folder(folder: Path) -> None:
    """A link to a file of the folder is sent as that file; a link that is named itself may lead anywhere."""
    (folder / "utils/link.py").symlink_to("a.py")
    (folder / "named").symlink_to("utils")
    assert sent("utils")["utils/link.py"] == "utils/a.py"
    assert sent("named")["named/link.py"] == "utils/a.py"


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("../data.csv", "leads out of"),
        ("/etc/passwd", "leads out of"),
        ("../other", "leads out of"),
        ("deep", "is a symbolic link to a folder"),
        (".", "is a symbolic link to a folder"),
        ("link", "does not exist"),
        ("none", "does not exist"),
    ],
)
def test_links_that_are_refused(folder: Path, target: str, problem: str) -> None:
    """No link of a folder makes a file outside of it leave this machine, and none is followed in circles."""
    (folder / "utils/link").symlink_to(target)
    with pytest.raises(ValueError, match=rf"utils/link .*{problem}"):
        sent("utils")


def test_what_is_no_file(folder: Path) -> None:
    """A pipe is refused before it is read, and a missing file is named."""
    os.mkfifo(folder / "utils/pipe")
    for path in ("utils", "utils/pipe"):
        with pytest.raises(ValueError, match=r"utils/pipe is not a regular file"):
            sent(path)
    with pytest.raises(FileNotFoundError, match=r"No such local file or folder .*'none\.csv'"):
        sent("none.csv")


@pytest.mark.parametrize("paths", ["data.csv", Path("data.csv"), b"data.csv"])
def test_one_path_is_no_list(paths: Any) -> None:
    """A single path is not taken for a list of letters."""
    with pytest.raises(TypeError, match=r"files must be a list of paths: \[b?'data.csv'\]"):
        start_request(b"{}", {"files": paths})


def test_files_of_one_path() -> None:
    """Two files cannot be at one place."""
    with pytest.raises(ValueError, match=r"data\.csv twice: data\.csv and other/data\.csv"):
        sent("data.csv", "other/data.csv")


def test_too_many_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are counted before any is read."""
    monkeypatch.setattr(_files, "MAX_FILES", 2)
    assert len(sent("utils")) == 2
    with pytest.raises(ValueError, match="more than 2 files"):
        sent("utils", "data.csv")


def test_files_for_a_notebook_of_the_server() -> None:
    """Its folder is not the run's own."""
    with pytest.raises(ValueError, match="cannot be set with server_path"):
        start_request(None, {"files": ["data.csv"], "server_path": "a.ipynb"})


@pytest.mark.parametrize(
    ("notebook", "options", "name"),
    [
        ("reports/sales.ipynb", {}, "sales"),
        (Path("sales.v2.ipynb"), {}, "sales.v2"),
        ("sales.json", {}, "sales.json"),
        ("sales.ipynb", {"name": "mine"}, "mine"),
        ("sales.ipynb", {"name": ""}, "sales"),
        (b"{}", {}, ""),
        ({"cells": []}, {"name": "mine"}, "mine"),
        (None, {"server_path": "a.ipynb"}, ""),
        ("x" * 200 + ".ipynb", {}, "x" * 128),
    ],
)
def test_the_name_of_a_run(folder: Path, notebook: Any, options: StartOptions, name: str) -> None:
    """It is that of the notebook's file, unless another is given; the server names its own notebooks."""
    if isinstance(notebook, str | Path):
        (folder / notebook).parent.mkdir(exist_ok=True)
        (folder / notebook).write_text("{}")
    assert start_request(notebook, options).name == name
