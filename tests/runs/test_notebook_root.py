"""The notebook root: what is under it can be read, whatever the path tries."""

import ctypes
import gc
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from notebook_runner_server.errors import (
    NotebookNotFoundError,
    NotebookTooLargeError,
    PathOutsideRootError,
    RunnerError,
)
from notebook_runner_server.runs.sources import NotebookRoot, check_size

LIMIT = 100
CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a notebook, a folder with another, and one beside the root."""
    folder = tmp_path / "root"
    (folder / "below").mkdir(parents=True)
    (folder / "top.ipynb").write_bytes(b"top")
    (folder / "below" / "deep.ipynb").write_bytes(b"deep")
    (tmp_path / "beside.ipynb").write_bytes(b"beside")
    return folder


@pytest.fixture
def read(root: Path) -> Callable[[str], tuple[bytes, str]]:
    """Reads a path under the root."""
    return NotebookRoot(root, LIMIT).read


Read = Callable[[str], tuple[bytes, str]]


def refusal(read: Read, path: str, kind: type[RunnerError]) -> RunnerError:
    """How a path is refused."""
    with pytest.raises(kind) as caught:
        read(path)
    assert caught.value.field == "notebook_path"
    return caught.value


@pytest.mark.parametrize("path", ["top.ipynb", "./top.ipynb", "below//deep.ipynb"])
def test_what_is_under_the_root_is_read(read: Read, root: Path, path: str) -> None:
    """A path answers the bytes of the file, and the folder that the file is in."""
    content, folder = read(path)
    file = root / path
    assert (content, Path(folder)) == (file.read_bytes(), file.resolve().parent)


@pytest.mark.parametrize(
    "path",
    [
        *("..", "../beside.ipynb", "below/../../beside.ipynb", "below/../top.ipynb", "./../beside.ipynb"),
        *("/etc/passwd", "/", "//etc/passwd", "top.ipynb\0", "\0", "\0/../beside.ipynb"),
    ],
)
def test_paths_that_lead_out_are_refused_by_their_form(read: Read, path: str) -> None:
    """Absolute paths, `..` anywhere and NUL anywhere, also where they would lead back in."""
    refusal(read, path, PathOutsideRootError)


def test_the_absolute_path_of_a_notebook_in_the_root_is_refused(read: Read, root: Path) -> None:
    """A caller names notebooks relative to the root, and learns nothing about where that is."""
    error = refusal(read, str(root / "top.ipynb"), PathOutsideRootError)
    assert str(root) not in error.message


def test_a_link_that_stays_in_the_root_is_followed(read: Read, root: Path) -> None:
    """Links to files and folders inside count as what they lead to; the folder is the file's own."""
    (root / "link.ipynb").symlink_to("below/deep.ipynb")
    (root / "folder").symlink_to(root / "below")
    for path in ("link.ipynb", "folder/deep.ipynb"):
        assert read(path) == (b"deep", str((root / "below").resolve()))


def test_a_link_that_leads_out_is_refused(read: Read, root: Path, tmp_path: Path) -> None:
    """By a file, by a folder on the way, by a chain of links, relative or absolute."""
    (root / "file.ipynb").symlink_to(tmp_path / "beside.ipynb")
    (root / "relative.ipynb").symlink_to("../beside.ipynb")
    (root / "chain.ipynb").symlink_to("file.ipynb")
    (root / "folder").symlink_to(tmp_path)
    (root / "proc.ipynb").symlink_to("/proc/self/environ")
    for path in ("file.ipynb", "relative.ipynb", "chain.ipynb", "folder/beside.ipynb", "proc.ipynb"):
        refusal(read, path, PathOutsideRootError)


def test_a_folder_whose_name_begins_like_the_root_is_outside(read: Read, root: Path) -> None:
    """`root-other` is not in `root`, though its path begins with the same letters."""
    other = root.with_name("root-other")
    other.mkdir()
    (other / "x.ipynb").write_bytes(b"x")
    (root / "link.ipynb").symlink_to(other / "x.ipynb")
    refusal(read, "link.ipynb", PathOutsideRootError)


def test_a_root_that_is_a_link_itself_is_the_folder_it_leads_to(root: Path, tmp_path: Path) -> None:
    """An operator may name the root by a link."""
    (tmp_path / "alias").symlink_to(root)
    assert NotebookRoot(tmp_path / "alias", LIMIT).read("top.ipynb") == (b"top", str(root.resolve()))


def test_what_is_no_regular_file_is_not_found(read: Read, root: Path) -> None:
    """A pipe, a socket, a device, a folder and the root itself answer at once that they are none."""
    os.mkfifo(root / "pipe")
    (root / "null").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(root / "socket"))
        for path in ("pipe", "socket", "below", "", ".", "below/"):
            assert "not found" in refusal(read, path, NotebookNotFoundError).message
    refusal(read, "null", PathOutsideRootError)


def test_what_is_not_there_is_not_found(read: Read, root: Path) -> None:
    """Missing files and folders, a file on the way, a link to nothing, links in a ring, a name too long."""
    (root / "nothing").symlink_to("missing")
    (root / "ring").symlink_to("ring")
    for path in ("missing", "missing/x", "top.ipynb/x", "nothing", "ring", "x" * 5000, "x/" * 3000):
        error = refusal(read, path, NotebookNotFoundError)
        assert len(error.message) < 500
        assert error.metadata["path"] == path[:200]


def without_capabilities(call: Callable[[], None]) -> None:
    """Makes a call on a thread that may no more than the file's mode allows, also for the superuser."""
    failures: list[BaseException] = []

    def body() -> None:
        header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
        nothing = (ctypes.c_uint32 * 6)()
        try:
            assert ctypes.CDLL(None, use_errno=True).capset(header, nothing) == 0
            call()
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    # Capabilities belong to a thread: this one is not needed afterwards.
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def test_what_may_not_be_read_is_not_found(read: Read, root: Path) -> None:
    """A file whose mode forbids reading answers as one that is not there, with the reason."""
    (root / "secret.ipynb").write_bytes(b"secret")
    (root / "secret.ipynb").chmod(0)

    def scenario() -> None:
        assert read("top.ipynb")[0] == b"top"
        assert "Permission denied" in refusal(read, "secret.ipynb", NotebookNotFoundError).message

    without_capabilities(scenario)


def test_the_size_limit_is_exact(read: Read, root: Path) -> None:
    """As many bytes as are allowed are read, one more is refused; the limit is named."""
    (root / "fits.ipynb").write_bytes(b"x" * LIMIT)
    (root / "over.ipynb").write_bytes(b"x" * (LIMIT + 1))
    assert len(read("fits.ipynb")[0]) == LIMIT
    with pytest.raises(NotebookTooLargeError, match=str(LIMIT)) as caught:
        read("over.ipynb")
    assert caught.value.metadata == {"limit_bytes": str(LIMIT)}
    with pytest.raises(NotebookTooLargeError):
        check_size(LIMIT + 1, LIMIT)
    check_size(LIMIT, LIMIT)


def test_a_file_without_a_size_of_its_own_is_bounded_too() -> None:
    """What claims to be empty and is not is read no further than the limit allows."""
    assert Path("/proc/self/maps").stat().st_size == 0
    with pytest.raises(NotebookTooLargeError):
        NotebookRoot(Path("/proc"), LIMIT).read(f"{os.getpid()}/maps")


def test_without_a_root_no_path_is_found() -> None:
    """The message says what the caller and what the operator can do."""
    error = refusal(NotebookRoot(None, LIMIT).read, "top.ipynb", NotebookNotFoundError)
    assert "--notebook-root" in error.message


def test_no_descriptor_stays_open(read: Read, root: Path) -> None:
    """However a read ends, its file is closed."""
    os.mkfifo(root / "pipe")
    (root / "over.ipynb").write_bytes(b"x" * (LIMIT + 1))
    # Those of earlier tests may be closed meanwhile.
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))
    read("top.ipynb")
    for path in ("pipe", "below", "over.ipynb", "missing"):
        with pytest.raises(RunnerError):
            read(path)
    assert set(os.listdir("/proc/self/fd")) <= before
