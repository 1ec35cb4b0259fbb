"""Check that no file names a path above the repository's root, or a path of one machine."""

from __future__ import annotations

import ast
import os
import posixpath
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]

# Folders in which people and CI systems keep their checkouts, data and tools.
_MACHINE = re.compile(
    r"(?<![\w./~})*+-])(/(?:builds|home|media|mnt|opt|root|srv|Users|work|workspaces?)/[\w.-]+)"
)
_OF_THE_PROJECT = {
    "/home/notebook-runner",  # the user in the image
    "/home/somebody",  # an example in tests
    "/opt/build",  # in the image, while it is built
    "/opt/notebook-runner",  # in the image
    "/opt/other",  # an example for images based on this one
    "/srv/notebooks",  # of the systemd unit
}
_PATHS = re.compile(r"[\w.+@~/-]*\.\.[\w.+@~/-]*")
# Without one of these no expression leads upwards; most modules need not be parsed.
_UPWARDS = re.compile(r"\.parents?\b|dirname|(?<!\.)\.\.(?!\.)")
# Packages are imported from these folders.
_SOURCES = ("", "client", "server")


def repository_files(root: Path) -> list[PurePosixPath]:
    """Return the files of the repository, including those that are not committed yet."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True).stdout  # noqa: S603 - git of PATH
    return [PurePosixPath(os.fsdecode(name)) for name in sorted(set(listed.split(b"\0"))) if name]


def findings(root: Path, names: Iterable[PurePosixPath]) -> Iterator[str]:
    """Yield a line for each path that leads out of the repository, or that belongs to one machine."""
    modules = _Modules(root)
    for name in names:
        path = root / name
        if path.is_symlink():
            target = os.readlink(path)
            if _is_outside(posixpath.join(name.parent, target)):
                yield f"{name}: a link to {target}, outside the repository"
        elif path.is_file():
            try:
                text = path.read_text("utf-8")
            except UnicodeDecodeError:
                continue  # a picture, for example
            found = list(_in_text(name, text.splitlines()))
            if name.suffix == ".py" and _UPWARDS.search(text):
                found += modules.above_root(name)
            yield from (f"{name}:{number}: {what}" for number, what in sorted(found))


def _in_text(name: PurePosixPath, lines: list[str]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines, 1):
        for match in _MACHINE.finditer(line):
            if match[1] not in _OF_THE_PROJECT:
                yield number, f"{match[1]} is a path of one machine"
        for match in _PATHS.finditer(line) if ".." in line else ():
            if _leaves(name, line, match):
                yield number, f"{match[0]} is outside the repository"


def _leaves(name: PurePosixPath, line: str, match: re.Match[str]) -> bool:
    path = match[0]
    before = line[: match.start()][-1:]
    if path.startswith("//") or ".." not in path.split("/"):
        return False  # a URI's, or an ellipsis
    if path.startswith("/") and not re.match(r"""[)}"']""", before):
        return False  # absolute
    # A path after a variable is relative to the file; scripts of CI change to the root.
    from_root = name.parts[0] == ".ci" and not path.startswith("/")
    return _is_outside(posixpath.join("" if from_root else name.parent, path.lstrip("/")))


def _is_outside(path: str) -> bool:
    """Whether a path that is relative to the root leads out of it."""
    return posixpath.isabs(path) or posixpath.normpath(path).split("/")[0] == ".."


class _Modules:
    """Follows `Path(__file__)` through the expressions and constants of Python modules."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._trees: dict[PurePosixPath, ast.Module] = {}
        self._constants: dict[PurePosixPath, dict[str, str]] = {}

    def above_root(self, name: PurePosixPath) -> Iterator[tuple[int, str]]:
        """Yield the lines that name a path above the root, with the path."""
        lines: dict[int, str] = {}
        for node in ast.walk(self._tree(name)):
            if isinstance(node, ast.expr) and (path := self._value(name, node)) and _is_outside(path):
                lines.setdefault(node.lineno, f"{path} is outside the repository: {ast.unparse(node)}")
        yield from lines.items()

    def _tree(self, name: PurePosixPath) -> ast.Module:
        if name not in self._trees:
            self._trees[name] = ast.parse((self._root / name).read_text("utf-8"))
        return self._trees[name]

    def _names(self, name: PurePosixPath) -> dict[str, str]:
        """Return the constants of a module that are paths, including imported ones."""
        if name not in self._constants:
            found = self._constants[name] = {}
            for node in self._tree(name).body:
                match node:
                    case ast.Assign(targets=[ast.Name(id=constant)], value=value):
                        if path := self._value(name, value):
                            found[constant] = path
                    case ast.ImportFrom(module=str(module), names=imported, level=0):
                        if source := self._file(module):
                            theirs = self._names(source)
                            found |= {
                                each.asname or each.name: theirs[each.name]
                                for each in imported
                                if each.name in theirs
                            }
        return self._constants[name]

    def _file(self, module: str) -> PurePosixPath | None:
        below = PurePosixPath(*module.split("."))
        places = (PurePosixPath(source, below) for source in _SOURCES)
        candidates = (file for place in places for file in (place.with_suffix(".py"), place / "__init__.py"))
        return next((file for file in candidates if (self._root / file).is_file()), None)

    def _value(self, name: PurePosixPath, node: ast.expr) -> str | None:
        """Return the path of an expression that is derived from `__file__`, relative to the root."""
        if isinstance(node, ast.Name):
            return str(name) if node.id == "__file__" else self._names(name).get(node.id)
        inner, parts = _call(node) if isinstance(node, ast.Call) else _step(node)
        path = self._value(name, inner) if inner else None
        if path is None:
            return None
        value = posixpath.normpath(posixpath.join(path, *parts))
        return None if posixpath.isabs(value) else value


def _step(node: ast.expr) -> tuple[ast.expr | None, list[str]]:
    """Return the expression that a path is derived from, and the parts that the path adds."""
    match node:
        case ast.Attribute(value=inner, attr="parent"):
            return inner, [".."]
        case ast.Subscript(
            value=ast.Attribute(value=inner, attr="parents"), slice=ast.Constant(value=int(up))
        ):
            return inner, [".."] * (up + 1)
        case ast.BinOp(left=inner, op=ast.Div(), right=ast.Constant(value=str(part))):
            return inner, [part]
    return None, []


def _call(node: ast.Call) -> tuple[ast.expr | None, list[str]]:
    """Return the same for a call."""
    match node.func, node.args:
        case (ast.Attribute(value=inner, attr="resolve" | "absolute"), []):
            return inner, []
        case (ast.Name(id="Path" | "str") | ast.Attribute(attr="Path" | "abspath" | "realpath"), [inner]):
            return inner, []
        case (ast.Attribute(attr="dirname"), [inner]):
            return inner, [".."]
        case (ast.Attribute(value=inner, attr="joinpath"), parts):
            return inner, _constants(parts)
        case (ast.Attribute(attr="join"), [inner, *parts]):
            return inner, _constants(parts)
    return None, []


def _constants(nodes: list[ast.expr]) -> list[str]:
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


if __name__ == "__main__":
    sys.exit("\n".join(findings(ROOT, repository_files(ROOT))) or None)
