"""Mutated notebooks: each is prepared or refused, and nothing else ever happens."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import nbformat
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from notebook_runner_server.errors import (
    InvalidFieldError,
    InvalidNotebookError,
    UnknownParameterError,
)
from notebook_runner_server.execution.notebook import decode, prepare
from notebook_runner_server.execution.segments import HEAD, SEPARATOR
from tests.support.documents import SEEDS, any_documents, strange_documents
from tests.support.notebooks import code, notebook

KERNELS = {"python3": "python", "ir": "R"}
REFUSED = (InvalidNotebookError, UnknownParameterError, InvalidFieldError)
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
        segments = prepare(data, parameters, "", KERNELS)
    except REFUSED:
        return False
    whole = HEAD + SEPARATOR.join(segments.cells) + segments.tail
    node = decode(whole)
    assert len(node.cells) == len(segments.cells)
    segments.kernel_name.encode()
    "".join(segments.repairs).encode()
    sources = [cell.source for cell in node.cells if cell.cell_type == "code"]
    json.dumps(sources, ensure_ascii=False).encode()
    nbformat.reads(whole.decode(errors="surrogatepass"), as_version=4)
    return True


@pytest.fixture(autouse=True, scope="module")
def _quiet_nbformat() -> Iterator[None]:
    """Keeps what nbformat logs of invalid notebooks out of the reports, which pytest-xdist sends as UTF-8."""
    logger = logging.getLogger("traitlets")
    logger.disabled = True
    yield
    logger.disabled = False


@many
@given(strange_documents(), st.sampled_from([{}, {}, {"a": 1}]))
def test_strange_documents_are_prepared_or_refused(data: bytes, parameters: dict[str, Any]) -> None:
    """Values of all types in all places: no error but the three that callers are told of."""
    judge(data, parameters)


@many
@given(any_documents, st.sampled_from([{}, {}, {"a": 1}]))
def test_every_json_document_is_prepared_or_refused(data: bytes, parameters: dict[str, Any]) -> None:
    """JSON of every shape, whatever of a notebook it has: no error but the three that callers are told of."""
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
