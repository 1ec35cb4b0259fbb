"""Walks and removals of folders that their notebook has made as deep, closed or changing as it can."""

import gc
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from notebook_runner_server import folder_tree

DEPTH = 20_000
# Of one file; it would be copied over if a link to its folder were followed.
SECRET = b"secret"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A folder outside, with a file of the same name as those inside."""
    folder = tmp_path / "secret"
    folder.mkdir()
    (folder / "file").write_bytes(SECRET)
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """A folder with a file, and one below."""
    folder = tmp_path / "tree"
    (folder / "below").mkdir(parents=True)
    (folder / "file").write_bytes(b"12345")
    (folder / "below" / "file").write_bytes(b"abcde")
    yield folder
    folder_tree.remove_if_possible(folder)


def nest(folder: Path, depth: int) -> None:
    """Makes folders, each in the one before, deeper than any path can name."""
    descriptor = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("n", dir_fd=descriptor)
        below = os.open("n", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=descriptor))
    os.close(descriptor)


def paths(folder: Path) -> list[str]:
    """What a walk finds."""
    return [entry.path for entry in folder_tree.walk(folder)]


def test_files_are_found_by_name_nearest_first(tree: Path) -> None:
    """Links are found as themselves, and no folder is entered over one."""
    (tree / "link").symlink_to("below")
    (tree / "a").mkdir()
    (tree / "a" / "z").touch()
    assert paths(tree) == ["file", "link", "a/z", "below/file"]
    assert folder_tree.size(tree) == 10 + len("below")


def test_only_what_is_stored_is_measured(tree: Path) -> None:
    """The hole in a sparse file takes no space, and a second name of a file none either."""
    with (tree / "sparse").open("wb") as file:
        file.truncate(2**40)
    (tree / "below" / "again").hardlink_to(tree / "file")
    assert folder_tree.size(tree) == 10
    assert folder_tree.content_size(tree) == 2**40 + 15


@pytest.mark.parametrize("name", ["missing", "file", "link"])
def test_what_is_no_folder_has_nothing_in_it(tree: Path, name: str) -> None:
    """Nor is a link to one entered."""
    (tree / "link").symlink_to("below")
    assert paths(tree / name) == []


def test_depth_is_no_limit(tree: Path) -> None:
    """All is found, measured and removed below thousands of folders."""
    nest(tree, DEPTH)
    assert paths(tree)[-1] == "n/" * DEPTH + "file"
    assert folder_tree.size(tree) == 10
    folder_tree.remove(tree)
    assert not tree.exists()


def test_folders_without_rights_are_removed(tree: Path) -> None:
    """Also for a user whom the modes of files stop; what cannot be read is left out of a walk."""
    for mode in (0o000, 0o200, 0o400, 0o100):
        closed = tree / f"{mode:o}"
        (closed / "in").mkdir(parents=True)
        (closed / "in" / "file").touch()
        (closed / "in").chmod(mode)
        closed.chmod(mode)
    assert "file" in paths(tree)
    tree.chmod(0o000)
    folder_tree.remove(tree)
    assert not tree.exists()


def test_a_removal_follows_no_link(tree: Path, secret: Path) -> None:
    """What a link leads to stays, and a link in the place of the folder itself is an error."""
    (tree / "link").symlink_to(secret)
    (tree / "below" / "link").symlink_to(secret / "file")
    folder_tree.remove(tree)
    tree.symlink_to(secret)
    with pytest.raises(OSError, match="tree"):
        folder_tree.remove(tree)
    assert (secret / "file").read_bytes() == SECRET
    tree.unlink()


def test_what_can_be_removed_is_removed(tree: Path) -> None:
    """What is mounted in it is not; the error names the first, and all else is gone."""
    (tree / "below" / "more").mkdir()
    removed = os.rmdir

    def busy(name: str, *, dir_fd: int | None = None) -> None:
        if name == "more":
            raise OSError(16, "Device or resource busy", name)
        removed(name, dir_fd=dir_fd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rmdir", busy)
        with pytest.raises(OSError, match="busy"):
            folder_tree.remove(tree)
    assert [one.name for one in tree.rglob("*")] == ["below", "more"]


def test_a_folder_that_becomes_a_link_is_not_followed(tree: Path, secret: Path) -> None:
    """What was found is read where it was found."""
    found = []
    for entry in folder_tree.walk(tree):
        if entry.path == "below/file":
            (tree / "below").rename(tree / "moved")
            (tree / "below").symlink_to(secret)
        descriptor = entry.open()
        found.append(os.read(descriptor, 100))
        os.close(descriptor)
    assert found == [b"12345", b"abcde"]


def test_a_folder_that_is_moved_away_ends_the_walk(tree: Path, secret: Path) -> None:
    """The way back out of it must lead to where the walk came from."""
    (tree / "zebra").mkdir()
    (tree / "zebra" / "file").touch()
    found = []
    for entry in folder_tree.walk(tree):
        found.append(entry.path)
        if entry.path == "below/file":
            (tree / "below").rename(secret / "below")
    assert found == ["file", "below/file"]


def test_swaps_at_any_moment_bring_nothing_in(tree: Path, secret: Path) -> None:
    """A folder that is exchanged for a link to another, again and again."""
    done = threading.Event()

    def swap() -> None:
        (tree / "link").symlink_to(secret)
        while not done.is_set():
            (tree / "below").rename(tree / "aside")
            (tree / "link").rename(tree / "below")
            (tree / "below").rename(tree / "link")
            (tree / "aside").rename(tree / "below")

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        contents = []
        for _ in range(500):
            for entry in folder_tree.walk(tree):
                if stat.S_ISREG(entry.about.st_mode):
                    descriptor = entry.open()
                    contents.append(os.read(descriptor, 100))
                    os.close(descriptor)
    finally:
        done.set()
        thread.join()
    assert set(contents) <= {b"12345", b"abcde"}


@pytest.mark.parametrize("path", ["..", "below/../..", "/", "link", "link/more", "file"])
def test_what_is_not_below_is_not_opened(tree: Path, secret: Path, path: str) -> None:
    """Neither by a path that leads out, nor over a link, nor as a file."""
    (tree / "link").symlink_to(secret)
    with pytest.raises(OSError):  # noqa: PT011 - each has another number
        folder_tree.open_below(tree, path, make=True)
    assert os.listdir(secret) == ["file"]


def test_folders_are_made_for_this_user_alone(tree: Path) -> None:
    """Those that are missing; those that are there stay as they are."""
    descriptor = folder_tree.open_below(tree, "below/new/newer", make=True)
    assert os.path.samestat(os.fstat(descriptor), (tree / "below/new/newer").stat())
    os.close(descriptor)
    assert stat.S_IMODE((tree / "below/new").stat().st_mode) == 0o700


def test_no_descriptor_stays_open(tree: Path) -> None:
    """Neither after a whole walk nor after one that was given up."""
    # Those of earlier tests may be closed meanwhile.
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))
    paths(tree)
    walk = folder_tree.walk(tree)
    next(walk)
    walk.close()  # type: ignore[attr-defined]  # it is a generator
    folder_tree.remove(tree)
    assert set(os.listdir("/proc/self/fd")) <= before


def test_a_folder_that_is_gone_when_it_is_entered_is_well(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else may remove the same tree."""
    enter = folder_tree._made_enterable

    def removed_first(name: str, folder: int | None = None) -> int:
        if folder is not None:
            os.unlink(f"{name}/file", dir_fd=folder)
            os.rmdir(name, dir_fd=folder)
        return enter(name, folder)

    monkeypatch.setattr(folder_tree, "_made_enterable", removed_first)
    folder_tree.remove(tree)
    assert not tree.exists()
