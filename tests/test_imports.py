"""No module imports itself through others, so that each can be read, tested and moved without its callers."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parent.parent


def imports(package: Path, *, in_functions: bool) -> dict[str, set[str]]:
    """The modules of a package that each of its modules imports, also for type checkers alone."""
    paths = {_name(package, path): path for path in package.rglob("*.py")}
    return {
        name: set(_imported(name, path, paths, in_functions=in_functions)) for name, path in paths.items()
    }


def _name(package: Path, path: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def _imported(name: str, path: Path, known: dict[str, Path], *, in_functions: bool) -> Iterator[str]:
    here = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in _statements(ast.parse(path.read_text(encoding="utf-8")), in_functions=in_functions):
        if isinstance(node, ast.Import):
            found = {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # A name is a module of the package, or something within the package's `__init__`.
            found = {full if (full := f"{module}.{one.name}") in known else module for one in node.names}
        else:
            continue
        yield from found & known.keys() - {name}


def _statements(node: ast.AST, *, in_functions: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        yield child
        if in_functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _statements(child, in_functions=in_functions)


@pytest.mark.parametrize(
    ("package", "in_functions"),
    [
        ("client/notebook_runner", True),
        # In functions the server imports what one of its processes needs and another must not load: the entry
        # point of a worker leads to the worker in the worker alone.
        ("server/notebook_runner_server", False),
    ],
)
def test_no_module_imports_itself_through_others(package: str, in_functions: bool) -> None:
    """The imports of each package can be put in an order."""
    found = imports(ROOT / package, in_functions=in_functions)
    assert len(found) > 20
    assert any(found.values())
    try:
        TopologicalSorter(found).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize(
    "source",
    [
        "from p import a",
        "from .a import x",
        "import p.a",
        "from . import a",
        "def f():\n    from p.a import x",
    ],
)
def test_a_circle_is_found(tmp_path: Path, source: str) -> None:
    """Each way to import a module is seen."""
    package = tmp_path / "p"
    package.mkdir()
    for name, text in {"__init__": "", "a": "from p.b import x", "b": source}.items():
        (package / f"{name}.py").write_text(text)
    found = imports(package, in_functions=True)
    assert found == {"p": set(), "p.a": {"p.b"}, "p.b": {"p.a"}}
    with pytest.raises(CycleError):
        TopologicalSorter(found).prepare()
