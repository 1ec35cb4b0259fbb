"""Parameters are injected as papermill injects them, and names that are none are refused."""

import copy
import json
import pickle
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from notebook_runner_server.errors import (
    InvalidFieldError,
    InvalidNotebookError,
    UnknownParameterError,
    unknown_parameters,
)
from notebook_runner_server.execution.notebook import prepare
from notebook_runner_server.execution.segments import HEAD, SEPARATOR
from tests.support.notebooks import code, content, markdown, notebook, parsed, written

KERNELS = {"python3": "python", "ir": "R"}
PYTHON = {"kernelspec": {"name": "python3", "display_name": "Python"}, "language_info": {"name": "python"}}
R = {"kernelspec": {"name": "ir", "display_name": "R"}, "language_info": {"name": "R"}}
VALUES: dict[str, Any] = {
    "a": 1,
    "b": -2.5,
    "c": "ä '\"\\\n{x}",
    "d": True,
    "e": None,
    "f": [1, "x", [None]],
    "g": {"k": {"l": [False]}},
    "h": float("nan"),
    "i": [float("inf"), -float("inf")],
}
ALL = "\n".join(f"{name} = 0" for name in VALUES)


def parameterized(node: NotebookNode, parameters: dict[str, Any], kernel_name: str = "") -> NotebookNode:
    """The notebook after its preparation."""
    segments = prepare(written(node), parameters, kernel_name, KERNELS)
    whole = HEAD + SEPARATOR.join(segments.cells) + segments.tail
    return parsed(whole)


def reference(folder: Path, node: NotebookNode, parameters: dict[str, Any]) -> NotebookNode:
    """The notebook after papermill's own loading and parameterizing."""
    path = folder / "reference.ipynb"
    nbformat.write(node, path)
    loaded = load_notebook_node(str(path))
    kernel = loaded.metadata.get("kernelspec", {}).get("name", "python3")
    language = loaded.metadata.get("language_info", {}).get("name", "python")
    made: NotebookNode = parameterize_notebook(loaded, parameters, kernel_name=kernel, language=language)
    return made


def told(node: NotebookNode) -> list[tuple[str, str, list[str]]]:
    """What of the cells a reader and a kernel see."""
    return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in node.cells]


@pytest.mark.parametrize(
    "node",
    [
        notebook("1", **PYTHON),
        notebook(markdown("# t"), code(ALL, "parameters"), "2", **PYTHON),
        notebook(code(ALL, "parameters", "x"), code("a = 5", "injected-parameters"), "2", **PYTHON),
        notebook(code("a = 5", "injected-parameters"), **PYTHON),
        notebook("1"),
        notebook(),
        notebook("1", **R),
        notebook(code("x", "injected-parameters"), "1", **R),
    ],
    ids=["none", "tagged", "again", "injected alone", "no kernel", "no cell", "R", "R again"],
)
def test_the_cells_are_those_that_papermill_makes(tmp_path: Path, node: NotebookNode) -> None:
    """Where the cell goes, what is in it and its tag: as papermill does, for every type of value."""
    values = {
        name: value for name, value in VALUES.items() if "R" not in str(node.metadata) or name in "abcdf"
    }
    expected = reference(tmp_path, copy.deepcopy(node), values)
    assert told(parameterized(node, values)) == told(expected)


def test_the_injected_cell_gives_the_values() -> None:
    """Executed, the cell assigns what was given, with the types that were given."""
    node = parameterized(notebook(code(ALL, "parameters"), **PYTHON), VALUES)
    names: dict[str, Any] = {}
    exec(node.cells[1].source, names)  # noqa: S102 - what a kernel does
    assert repr({name: names[name] for name in VALUES}) == repr(VALUES)
    assert [type(names[name]) for name in "abcd"] == [int, float, str, bool]


def test_the_rest_of_the_notebook_stays() -> None:
    """Cells above and below, their ids and the metadata; papermill's record of the values is added."""
    node = notebook(code("a = 0", "parameters"), "b", markdown("c"), title="x", **PYTHON)
    after = parameterized(node, {"a": 1})
    assert [cell.id for cell in (after.cells[0], *after.cells[2:])] == [cell.id for cell in node.cells]
    assert (after.metadata.title, after.metadata.papermill["parameters"]) == ("x", {"a": 1})


def test_without_parameters_nothing_is_touched() -> None:
    """A notebook that is given none is executed as it is."""
    data = content(code("a = 0", "parameters"), "b")
    segments = prepare(data, {}, "", KERNELS)
    assert HEAD + SEPARATOR.join(segments.cells) + segments.tail == data + b"\n"


def test_the_language_is_that_of_the_kernel_where_the_notebook_says_none() -> None:
    """The kernelspec's language is used, of the one asked for before the notebook's own."""
    node = notebook("1")
    assert parameterized(node, {"a": True}, "ir").cells[0].source.endswith("a = TRUE\n")
    assert parameterized(node, {"a": True}, "python3").cells[0].source.endswith("a = True\n")


@pytest.mark.parametrize(
    ("source", "given", "unknown", "known"),
    [
        ("a = 1\nb = 2", ["a", "z", "y"], ["y", "z"], ["a", "b"]),
        ("", ["a"], ["a"], []),
        ("# a = 1", ["a"], ["a"], []),
        ("a: int = 1  # the first\nb: 'x' = [\n]", ["c"], ["c"], ["a", "b"]),
        ("print(a)", ["a"], ["a"], []),
    ],
)
def test_unknown_parameters_are_named_with_the_known_ones(
    source: str, given: list[str], unknown: list[str], known: list[str]
) -> None:
    """Given and not assigned in the `parameters` cell: all of them, sorted, beside the names there are."""
    with pytest.raises(UnknownParameterError) as caught:
        parameterized(notebook(code(source, "parameters")), dict.fromkeys(given, 1))
    assert caught.value.metadata == {"unknown": ",".join(unknown), "known": ",".join(known)}


def test_a_value_with_an_equals_sign_names_a_parameter() -> None:
    """What Python assigns is a parameter, also where papermill's reading of the line gives up."""
    source = "url = 'http://x/?a=b'\nx = y = dict(a=1)"
    after = parameterized(notebook(code(source, "parameters")), {"url": "u", "y": 1})
    assert after.cells[1].source == '# Parameters\nurl = "u"\ny = 1\n'


def test_the_order_is_the_notebooks_own() -> None:
    """A map has no order: names come as the cell has them, the rest and what is inside of values by name."""
    given = {"b": {"z": 1, "k": [{"y": 1, "x": 2}]}, "a": 1, "c": 2}
    tagged = parameterized(notebook(code("c = 0\na = 0\nb = 0", "parameters")), given)
    assert tagged.cells[1].source == ('# Parameters\nc = 2\na = 1\nb = {"k": [{"x": 2, "y": 1}], "z": 1}\n')
    names = [line.split()[0] for line in parameterized(notebook("1"), given).cells[0].source.splitlines()]
    assert names == ["#", "a", "b", "c"]


def test_an_order_that_was_given_is_kept() -> None:
    """Of names and of keys, whatever the notebook's own is."""
    given = {"b": {"z": 1, "k": [{"y": 1, "x": 2}]}, "a": 1}
    data = content(code("a = 0\nb = 0", "parameters"))
    cell = json.loads(prepare(data, given, "", KERNELS, is_ordered=True).cells[1])
    assert "".join(cell["source"]) == '# Parameters\nb = {"z": 1, "k": [{"y": 1, "x": 2}]}\na = 1\n'


def test_a_parameters_cell_that_is_not_python_takes_any() -> None:
    """Its mistake is shown by the run, in the cell that has it; names can be read of no part of it."""
    node = parameterized(notebook(code("a = 1\nb = = 2", "parameters"), **PYTHON), {"c": 1})
    assert node.cells[1].source == "# Parameters\nc = 1\n"


def test_unknown_parameters_arrive_from_another_process() -> None:
    """A large notebook is prepared in one of its own."""
    arrived = pickle.loads(pickle.dumps(unknown_parameters(["z"], ["a", "b"])))  # noqa: S301 - its own
    assert arrived.metadata == {"unknown": "z", "known": "a,b"}
    assert str(arrived) == "Unknown parameter 'z'. The notebook's parameters: a, b."


def test_a_translator_is_found_by_the_kernel_before_the_language() -> None:
    """As papermill does: for some kernels it goes by the name alone."""
    kernels = {".net-csharp": "C#", "pysparkkernel": "pyspark"}
    csharp = prepare(content("1"), {"a": True}, ".net-csharp", kernels).cells[0]
    assert "".join(json.loads(csharp)["source"]) == "// Parameters\nvar a = true;\n"
    tagged = content(code("a = 1", "parameters"))
    spark = prepare(tagged, {"a": 2}, "pysparkkernel", kernels).cells[1]
    assert "".join(json.loads(spark)["source"]) == "# Parameters\na = 2\n"
    with pytest.raises(UnknownParameterError) as caught:
        prepare(tagged, {"b": 2}, "pysparkkernel", kernels)
    assert caught.value.metadata == {"unknown": "b", "known": "a"}


def test_any_parameter_is_taken_where_no_cell_is_tagged() -> None:
    """Without the tag the notebook does not say which it has."""
    assert parameterized(notebook("1"), {"anything": 1}).cells[0].source.endswith("anything = 1\n")


def test_a_parameters_cell_that_papermill_cannot_read_takes_any() -> None:
    """For languages that papermill does not parse, an empty list of names is no proof."""
    node = notebook(code("a <- 1", "parameters"), **R)
    assert "b = 2" in parameterized(node, {"b": 2}).cells[1].source


@pytest.mark.parametrize("name", ["if", "None", "class", "True", "a b", "1a", "", "a.b", "a-b", "a;b", "a\n"])
def test_names_that_python_does_not_have_are_refused(name: str) -> None:
    """A keyword, or no identifier: it would be a syntax error, or code."""
    for node in (notebook("1"), notebook(code("a = 1", "parameters"), **PYTHON)):
        with pytest.raises(InvalidFieldError, match=re.escape(f"{name!r} is not a valid Python name.")):
            parameterized(node, {name: 1})


def test_a_refusal_repeats_the_beginning_of_a_name() -> None:
    """A name may have a megabyte."""
    with pytest.raises(InvalidFieldError) as caught:
        parameterized(notebook("1"), {"1" * 1_000_000: 1})
    assert str(caught.value) == f"parameters: '{'1' * 100}' is not a valid Python name."
    assert caught.value.field == "parameters"


def test_names_with_dots_are_names_in_r() -> None:
    """What Python refuses another language may have."""
    assert "a.b = 1" in parameterized(notebook("1", **R), {"a.b": 1}).cells[0].source


@pytest.mark.parametrize("name", ["π", "naïve", "_", "__a__", "ifx", "match"])
def test_names_that_python_has_are_taken(name: str) -> None:
    """Letters of any script, underscores, and words that are keywords only here and there."""
    assert f"{name} = 1" in parameterized(notebook("1"), {name: 1}).cells[0].source


@pytest.mark.parametrize(
    ("language", "value", "why"),
    [
        ("cobol", 1, "cobol: No parameter translator functions specified"),
        ("bash", {"a": 1}, "bash: "),
        ("\ud800", 1, "?: No parameter translator functions specified"),
    ],
)
def test_what_cannot_be_translated_is_refused_in_a_sentence(language: str, value: object, why: str) -> None:
    """An unknown language, or a value that the language does not have; in text that can be sent."""
    data = json.dumps(notebook("1", language_info={"name": language})).encode()
    with pytest.raises(InvalidNotebookError) as caught:
        prepare(data, {"a": value}, "", KERNELS)
    assert str(caught.value).startswith(f"The parameters cannot be translated to {why}")
    str(caught.value).encode()


def test_a_value_never_leaves_its_literal() -> None:
    """Strings that would end the literal, the line or the cell stay strings."""
    for text in ("'''\"\"\"", "\\", "\\'", "\n", "\r\n", "\0", "%magic", "!ls", "{}", "\u2028", "a\ud7ffb"):
        node = parameterized(notebook("1"), {"a": text, "b": [text], "c": {text: text}})
        names: dict[str, Any] = {}
        exec(node.cells[0].source, names)  # noqa: S102 - what a kernel does
        assert (names["a"], names["b"], names["c"]) == (text, [text], {text: text})
        assert json.loads(json.dumps(node.cells[0].source)) == node.cells[0].source
