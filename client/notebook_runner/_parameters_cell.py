"""What parameters a notebook's cell tagged `parameters` has, where it is written in Python.

The server decides by this which parameters a notebook accepts, and the command shows them: so nothing but the
standard library is imported here.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

__all__ = ["Parameter", "python_parameters"]

_TYPE_COMMENT = re.compile(r"type:\s*(\S+)\s*")

# Lines that IPython takes for its own. The second pattern is tried where the first is not enough: `% x` is a
# magic, and may be the rest of an expression as well.
_MAGIC_LINES = (
    re.compile(r"\s*(?:%{1,2}[^\W\d]|![^=]|\?|[,;/][^\W\d])|\s*[\w.*%]+\?{1,2}\s*$"),
    re.compile(r"\s*(?:%|!|\?|[,;/])|.*\?{1,2}\s*$"),
)
_MAGIC_VALUE = re.compile(r"(\s*[^\W\d][\w.,\s\[\]]*=\s*)((?:%{1,2}[^\W\d]|![^=]).*)")
_CELL_MAGIC = re.compile(r"\s*%%(\w+)")
_PYTHON_CELL_MAGICS = {"time", "timeit", "capture", "prun", "debug"}

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    Attributes:
        name: The name that a run gives a value to.
        type: The annotation, else the type of the default where it is a literal, else empty.
        default: The source of the default; empty if there is none.
        help: The comment at the end of the line, without `#`.
    """

    name: str
    type: str
    default: str
    help: str


@dataclass(frozen=True)
class _Assignment:
    """A name that is assigned, with its annotation, its value and the line where that ends, if any."""

    name: str
    annotation: str = ""
    value: ast.expr | None = None
    line: int = 0


def python_parameters(source: str) -> tuple[Parameter, ...]:
    """Return the names that a cell in Python assigns at its top level, in the order in which they come.

    All ways to assign a name count, also those within `if`, `for`, `with` and `try`; imports, functions and
    classes do not. Magics and shell lines are left out; what they assign (`files = !ls`) counts.

    Raises:
        SyntaxError: It is not Python.
    """
    try:
        return _parameters(source)
    except (ValueError, MemoryError, RecursionError) as error:
        # A zero byte, a lone surrogate, or expressions nested too deep.
        raise SyntaxError(str(error) or "too complex", ("", 1, None, None)) from error


def _parameters(source: str) -> tuple[Parameter, ...]:
    plain, tree = _parse(source)
    comments = _comments(plain)
    found: dict[str, Parameter] = {}
    for one in _assignments(tree):
        known = found.get(one.name)
        if known and one.value is None:
            found[one.name] = replace(known, type=one.annotation.strip("'\"") or known.type)
            continue
        comment = comments.get(one.line, "")
        match = _TYPE_COMMENT.match(comment)
        kind = (one.annotation or (match[1] if match else "") or _literal_type(one.value)).strip("'\"")
        default = _text_of(source, one.value)
        found[one.name] = Parameter(one.name, kind, default, comment[match.end() :] if match else comment)
    return tuple(found.values())


def _parse(source: str) -> tuple[str, ast.Module]:
    """Parse a cell without what is IPython's in it; each line and column stays where it is."""
    if (cell_magic := _CELL_MAGIC.match(source)) and cell_magic[1] not in _PYTHON_CELL_MAGICS:
        raise SyntaxError(f"%%{cell_magic[1]} makes this a cell in another language", ("", 1, None, None))
    try:
        return source, ast.parse(source)
    except SyntaxError as error:
        for pattern in _MAGIC_LINES:
            plain = _without_magics(source.split("\n"), pattern)
            with contextlib.suppress(SyntaxError):
                return plain, ast.parse(plain)
        raise error from None


def _without_magics(lines: list[str], pattern: re.Pattern[str]) -> str:
    plain: list[str] = []
    is_continued = False
    for line in lines:
        value = _MAGIC_VALUE.fullmatch(line)
        if is_continued:
            plain.append("")
        elif value:
            # A name that is as long as what it stands for, so that the default is found in the source.
            plain.append(value[1] + "_" * len(value[2].encode(errors="replace")))
        elif pattern.match(line):
            plain.append(line[: len(line) - len(line.lstrip())] + "pass")
        else:
            plain.append(line)
            continue
        is_continued = line.rstrip().endswith("\\")
    return "\n".join(plain)


def _assignments(tree: ast.Module) -> Iterator[_Assignment]:
    """Yield each name that is assigned in the cell's own scope, in the order of the source."""
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, _SCOPES):
            # What a function assigns is its own, unless it says that it is not.
            inner = [name for one in ast.walk(node) if isinstance(one, ast.Global) for name in one.names]
            yield from map(_Assignment, inner)
        else:
            yield from _bound_by(node)
            nodes.extend(reversed(list(ast.iter_child_nodes(node))))


def _bound_by(node: ast.AST) -> Iterator[_Assignment]:
    """Yield the names that a node itself assigns."""
    match node:
        case ast.Assign():
            for target in node.targets:
                yield from _paired(target, node.value, node.end_lineno or 0)
        case ast.AnnAssign(target=ast.Name(id=name)):
            yield _Assignment(name, ast.unparse(node.annotation), node.value, node.end_lineno or 0)
        case ast.NamedExpr():
            yield _Assignment(node.target.id, "", node.value)
        case ast.For() | ast.AsyncFor() | ast.AugAssign():
            yield from _names(node.target)
        case ast.withitem(optional_vars=ast.expr() as target):
            yield from _names(target)
        case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
            yield _Assignment(name)
        case ast.Global():
            yield from map(_Assignment, node.names)
        case _:
            pass


def _paired(target: ast.expr, value: ast.expr, line: int) -> Iterator[_Assignment]:
    """Yield the names of a target, each with its part of the value if it is known."""
    if isinstance(target, ast.Name):
        yield _Assignment(target.id, "", value, line)
    elif isinstance(target, ast.Tuple | ast.List):
        parts = value.elts if isinstance(value, ast.Tuple | ast.List) else []
        if len(parts) == len(target.elts) and not _has_star([*parts, *target.elts]):
            for one, part in zip(target.elts, parts, strict=True):
                yield from _paired(one, part, line)
        else:
            yield from _names(target)


def _has_star(expressions: Iterable[ast.expr]) -> bool:
    return any(isinstance(one, ast.Starred) for one in expressions)


def _names(target: ast.AST) -> Iterator[_Assignment]:
    """Yield the names that a target binds; attributes and items are not parameters."""
    if isinstance(target, ast.Name):
        yield _Assignment(target.id)
    elif isinstance(target, ast.Tuple | ast.List):
        for one in target.elts:
            yield from _names(one)
    elif isinstance(target, ast.Starred):
        yield from _names(target.value)


def _literal_type(value: ast.expr | None) -> str:
    if value is None:
        return ""
    try:
        kind = type(ast.literal_eval(value)).__name__
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return ""
    return "" if kind == "NoneType" else kind


def _text_of(source: str, value: ast.expr | None) -> str:
    return " ".join((ast.get_source_segment(source, value) or "").split()) if value else ""


def _comments(source: str) -> dict[int, str]:
    """Return the comment of each line, without its sign."""
    tokens = tokenize.generate_tokens(io.StringIO(source + "\n").readline)
    try:
        return {
            token.start[0]: token.string.lstrip("#").strip()
            for token in tokens
            if token.type == tokenize.COMMENT
        }
    except tokenize.TokenError as error:
        raise SyntaxError(error.args[0], ("", error.args[1][0], None, None)) from error
