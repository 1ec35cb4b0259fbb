"""Collects the files to send with a notebook."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from .v1 import notebook_runner_pb2 as pb

__all__ = ["MAX_FILES", "input_files"]

MAX_FILES = 1000
"""The most files that a run may have, by the contract."""

_IGNORED = frozenset({"__pycache__", ".git", ".ipynb_checkpoints"})


def input_files(paths: Iterable[str | os.PathLike[str]]) -> list[pb.InputFile]:
    """Read files and folders, each with its path in the run's working folder, sorted by path.

    Raises:
        TypeError: One path is given instead of several.
        ValueError: Two files would have the same path, there are too many, a path is empty, or a name is not
            Unicode. Or a folder contains something that is neither a file nor a folder, or a symbolic link
            that leads out of it or to a folder.
        OSError: A file cannot be read.
    """
    if isinstance(paths, str | bytes | os.PathLike):
        raise TypeError(f"files must be a list of paths: [{os.fspath(paths)!r}].")
    found: dict[str, Path] = {}
    for given in paths:
        if not os.fspath(given):
            raise ValueError("files contains an empty path. Name the current folder as '.'.")
        for name, path in _collect(Path(given)):
            if not _is_unicode(name):
                raise ValueError(f"The name of {name!r} is not valid Unicode. Rename the file.")
            if name in found:
                raise ValueError(f"files names {name} twice: {found[name]} and {path}.")
            found[name] = path
            if len(found) > MAX_FILES:
                raise ValueError(
                    f"files names more than {MAX_FILES} files. Name fewer, or send an archive that the "
                    "notebook unpacks."
                )
    return [pb.InputFile(path=name, content=path.read_bytes()) for name, path in sorted(found.items())]


def _collect(given: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files of what was named, each with its path relative to the folder that contains it."""
    if not given.exists():
        hint = "No such local file or folder to send with the notebook"
        raise FileNotFoundError(2, hint, str(given))
    if given.is_dir():
        # A folder such as `.` or `..` has no name of its own, and stands for its contents.
        name = "" if given.name == ".." else given.name
        yield from _walk(given, PurePosixPath(name), given.resolve())
    else:
        _check_kind(given)
        yield given.name, given


def _walk(folder: Path, prefix: PurePosixPath, root: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.iterdir()):
        if path.name in _IGNORED:
            continue
        if path.is_symlink():
            _check_link(path, root)
        if path.is_dir():
            yield from _walk(path, prefix / path.name, root)
        else:
            _check_kind(path)
            yield str(prefix / path.name), path


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_link(link: Path, root: Path) -> None:
    advice = "Name its target in files, or remove the link."
    # Unlike Path.resolve, this accepts a link that leads to itself.
    target = Path(os.path.realpath(link))
    if not target.is_relative_to(root):
        raise ValueError(f"{link} is a symbolic link that leads out of {root}. {advice}")
    if not target.exists():
        raise ValueError(f"{link} is a symbolic link to a file that does not exist. Remove the link.")
    if target.is_dir():
        raise ValueError(f"{link} is a symbolic link to a folder. {advice}")


def _check_kind(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file, and cannot be sent with the notebook.")
