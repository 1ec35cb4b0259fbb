"""Mutated notebooks: each is prepared or refused, and nothing else ever happens."""

import json
from typing import Any

import nbformat
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from notebook_runner_server.execution.notebook import (
    NotebookError,
    ParameterNameError,
    UnknownParameterError,
    decode,
    prepare,
)
from notebook_runner_server.execution.parts import HEAD, SEPARATOR
from tests.support.notebooks import code, content, notebook
from tests.support.public_notebooks import notebook_paths

# Small ones: they have every kind of cell and output, and mutations are not lost in them.
REAL = [data for path in notebook_paths("nbclient") if len(data := path.read_bytes()) < 6000]
SEEDS = [*REAL, content(code("a = 1", "parameters"), "a"), content()]
KERNELS = {"python3": "python", "ir": "R"}
REFUSED = (NotebookError, UnknownParameterError, ParameterNameError)
pytestmark = pytest.mark.filterwarnings(
    "ignore::nbformat.warnings.MissingIDFieldWarning",
    "ignore::nbformat.warnings.DuplicateCellId",
)
many = settings(
    max_examples=400,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
strange = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from([0, -1, 3, 4, 5, 2**63, 1e400, 1.5]),
        st.sampled_from(["", "code", "stream", "python3", "name", "\ud800", "x" * 100, "4"]),
    ),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["name", "a", "output_type"]), inner, max_size=2)
    ),
    max_leaves=4,
)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container of a document with each of its keys."""
    if not isinstance(value, (dict, list)):
        return []
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]


@st.composite
def strange_documents(draw: st.DrawFn) -> bytes:
    """A good notebook in which some values are others, are gone, or are new."""
    document = json.loads(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 3))):
        places = _places(document)
        if not places:
            break
        container, key = draw(st.sampled_from(places))
        if isinstance(container, dict) and draw(st.booleans()):
            names = ["kernelspec", "language_info", "papermill", "tags", "id", "nbformat_minor", "x"]
            key = draw(st.sampled_from([*names, key]))
        if draw(st.booleans()) or not isinstance(container, dict):
            container[key] = draw(strange)
        else:
            container.pop(key, None)
    return json.dumps(document).encode()


@st.composite
def strange_bytes(draw: st.DrawFn) -> bytes:
    """A good notebook with some bytes changed."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        place, length = draw(st.integers(0, len(data))), draw(st.integers(0, 6))
        data[place : place + length] = draw(st.binary(max_size=6))
    return bytes(data)


def judge(data: bytes, parameters: dict[str, Any]) -> bool:
    """Prepares a notebook; what is prepared can be executed, and a refusal is one of three."""
    try:
        parts = prepare(data, parameters, "", KERNELS)
    except REFUSED:
        return False
    whole = HEAD + SEPARATOR.join(parts.cells) + parts.tail
    node = decode(whole)
    assert len(node.cells) == len(parts.cells)
    assert isinstance(parts.kernel_name, str)
    json.dumps([cell.source for cell in node.cells], ensure_ascii=False).encode()
    nbformat.reads(whole.decode(errors="surrogatepass"), as_version=4)
    return True


@many
@given(strange_documents(), st.sampled_from([{}, {}, {"a": 1}]))
def test_strange_documents_are_prepared_or_refused(data: bytes, parameters: dict[str, Any]) -> None:
    """Values of all types in all places: no error but the three that callers are told of."""
    judge(data, parameters)


@many
@given(strange_bytes())
def test_changed_bytes_are_prepared_or_refused(data: bytes) -> None:
    """Bytes of all kinds in all places."""
    judge(data, {})


languages = st.sampled_from(
    [
        *("python", "R", "scala", "julia", "matlab", "bash", "C#", "F#", "PowerShell", "javascript", "", "x"),
        *(".net-csharp", ".net-fsharp", ".net-powershell"),
    ]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
sources = st.sampled_from(
    [
        "",
        "a = 1",
        "a: int = 1  # type: int",
        "a = [1,\n 2]",
        "a = '''",
        "a =",
        "#a=1",
        "a <- 1",
        "\\",
        "def f(",
    ]
)


@many
@given(languages, sources, st.dictionaries(st.sampled_from(["a", "b", "if", "π"]), values, max_size=2))
def test_parameters_of_every_type_in_every_language(
    language: str, source: str, parameters: dict[str, Any]
) -> None:
    """A language that cannot have a value is refused, in a sentence."""
    node = notebook(code(source, "parameters"), "a", language_info={"name": language})
    judge(json.dumps(node).encode(), parameters)


def test_the_seeds_themselves_are_good() -> None:
    """Mutations begin at what is accepted, or they would say nothing."""
    assert all(judge(data, {}) for data in SEEDS)
    assert len(SEEDS) > 10
