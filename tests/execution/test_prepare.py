"""Notebooks on their way in: what is a notebook, what is not, and that its segments are the whole."""

import contextlib
import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from jupyter_client.manager import KernelManager
from nbformat.v4 import new_markdown_cell, new_output
from papermill.execute import remove_error_markers

from notebook_runner_server.errors import InvalidNotebookError
from notebook_runner_server.execution.notebook import (
    MAX_MESSAGE,
    decode,
    encode_cell,
    encode_tail,
    prepare,
)
from notebook_runner_server.execution.options import resolve_kernel_name
from notebook_runner_server.execution.repairs import ERROR_MARKER_TAG, MAX_REPAIR, MAX_REPAIRS
from notebook_runner_server.execution.segments import HEAD, SEPARATOR, PreparedNotebook
from tests.support.notebooks import code, content, markdown, notebook, written
from tests.support.public_notebooks import notebook_paths

PATHS = [path for name in ("nbclient", "nbconvert", "papermill") for path in notebook_paths(name)]
KERNELS = {"python3": "python"}
# Tests make every warning an error; in the server, mending ids is no event.
pytestmark = pytest.mark.filterwarnings(
    "ignore::nbformat.warnings.MissingIDFieldWarning", "ignore::nbformat.warnings.DuplicateCellId"
)


def prepared(data: bytes) -> PreparedNotebook:
    """Prepares a notebook without parameters."""
    return prepare(data, {}, "", KERNELS)


def joined(segments: PreparedNotebook) -> bytes:
    """The notebook file that the segments make."""
    return HEAD + SEPARATOR.join(segments.cells) + segments.tail


def refusal(data: bytes) -> str:
    """Why bytes are refused."""
    with pytest.raises(InvalidNotebookError) as caught:
        prepared(data)
    assert len(str(caught.value)) < MAX_MESSAGE + 200
    return str(caught.value)


def without_ids(node: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The same notebook without the ids that were made up for its cells."""
    for cell in node.cells:
        cell.pop("id", None)
    return node


def unexecuted(node: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The same notebook before it was executed, and without the cells in which papermill shows a failure."""
    for cell in node.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.setdefault("tags", [])
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.metadata.pop("execution", None)
    for name in ("start_time", "end_time", "duration", "exception", "input_path", "output_path"):
        node.metadata.get("papermill", {}).pop(name, None)
    remove_error_markers(node)
    for cell in node.cells:
        if not cell.metadata.tags:
            del cell.metadata["tags"]
    return node


@pytest.mark.parametrize("source", PATHS, ids=lambda path: path.stem)
def test_real_notebooks_are_joined_as_nbformat_writes_them(tmp_path: Path, source: Path) -> None:
    """The segments are, byte for byte, what nbformat writes, and the notebook that nbformat reads."""
    data = source.read_bytes()
    segments = prepared(data)
    whole = joined(segments)
    path = tmp_path / "reference.ipynb"
    nbformat.write(nbformat.reads(whole.decode(), as_version=4), path)
    assert whole == path.read_bytes()
    original = unexecuted(nbformat.reads(data.decode(), as_version=4))
    assert without_ids(unexecuted(nbformat.reads(whole.decode(), as_version=4))) == without_ids(original)
    assert all(cell.get("outputs", []) == [] for cell in map(json.loads, segments.cells))
    assert len(segments.cells) == len(original.cells)
    assert segments.kernel_name == original.metadata.get("kernelspec", {}).get("name", "")


@pytest.mark.parametrize("source", PATHS, ids=lambda path: path.stem)
def test_joined_segments_can_be_prepared_again(source: Path) -> None:
    """What came out goes in again and comes out the same, needs no repair, and is what a worker decodes."""
    once = prepared(source.read_bytes())
    assert prepared(joined(once)) == replace(once, repairs=())
    node = decode(joined(once))
    assert [cell.cell_type for cell in node.cells] == [json.loads(cell)["cell_type"] for cell in once.cells]


def version_3() -> bytes:
    """A notebook as IPython 2 wrote it."""
    cells = [
        {"cell_type": "heading", "level": 2, "source": "title", "metadata": {}},
        {
            "cell_type": "code",
            "input": ["1 +\n", "1"],
            "language": "python",
            "collapsed": False,
            "metadata": {},
            "outputs": [],
        },
    ]
    worksheets = [{"cells": cells, "metadata": {}}]
    return json.dumps(
        {"nbformat": 3, "nbformat_minor": 0, "metadata": {"name": "x"}, "worksheets": worksheets}
    ).encode()


def test_nbformat_3_becomes_4() -> None:
    """Cells of old notebooks arrive as cells of today."""
    node = decode(joined(prepared(version_3())))
    assert [(cell.cell_type, cell.source) for cell in node.cells] == [
        *(("markdown", "## title"), ("code", "1 +\n1")),
    ]
    assert node.nbformat == 4


@pytest.mark.parametrize(
    "cells",
    [
        [],
        ["1"],
        ["a\nb\n", "ä €", "😀"],
        [new_markdown_cell("x", attachments={"a.png": {"image/png": "aaaa"}})],
    ],
)
def test_cells_keep_what_they_have(cells: list[Any]) -> None:
    """Sources, attachments and characters of all sizes come through, with no cell or with many."""
    data = content(*cells)
    assert joined(prepared(data)).rstrip() == data.rstrip()


def test_a_byte_order_mark_is_no_segment_of_the_json() -> None:
    """Editors of some systems begin files with one."""
    data = content("1")
    assert prepared(b"\xef\xbb\xbf" + data) == prepared(data)


def test_a_kernelspec_without_a_name_means_the_default_kernel() -> None:
    """Such notebooks are about."""
    data = broken(lambda document: document["metadata"].update(kernelspec={"display_name": "x"}))
    assert prepared(data).kernel_name == ""


def test_the_kernel_that_is_asked_for_wins() -> None:
    """Over the one that the notebook names; which there are is not asked here."""
    data = written(notebook("1", kernelspec={"name": "ir", "display_name": "R"}))
    assert (prepared(data).kernel_name, prepare(data, {}, "other", KERNELS).kernel_name) == ("ir", "other")


def test_missing_and_repeated_ids_are_mended() -> None:
    """Every cell has an id of its own afterwards."""
    node = notebook("1", "2", "3")
    node.cells[1].id = node.cells[0].id
    del node.cells[2]["id"]
    ids = [json.loads(cell)["id"] for cell in prepared(json.dumps(node).encode()).cells]
    assert len(set(ids)) == 3


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "The notebook is not JSON: Expecting value at line 1, column 1."),
        (b"\n print(1)", "The notebook is not JSON: Expecting value at line 2, column 2."),
        (b"\xff\xfe", "The notebook is not UTF-8: invalid start byte at byte 0."),
        (b"abc\x80", "The notebook is not UTF-8: invalid start byte at byte 3."),
        (content("1").decode().encode("utf-16"), "The notebook is not UTF-8: invalid start byte at byte 0."),
        (b"[]", 'The JSON is not a notebook: it has no "nbformat".'),
        (b"null", 'The JSON is not a notebook: it has no "nbformat".'),
        (b'"nbformat"', 'The JSON is not a notebook: it has no "nbformat".'),
        (b'{"cells": []}', 'The JSON is not a notebook: it has no "nbformat".'),
        (b'{"nbformat": 2}', "Unsupported nbformat 2. Supported: 3, 4."),
        (b'{"nbformat": 5}', "Unsupported nbformat 5. Supported: 3, 4."),
        (b'{"nbformat": true}', "Unsupported nbformat True. Supported: 3, 4."),
        (b'{"nbformat": 4.0}', "Unsupported nbformat 4.0. Supported: 3, 4."),
        (b'{"nbformat": "4"}', "Unsupported nbformat 4. Supported: 3, 4."),
        (b'{"nbformat": {}}', "Unsupported nbformat {}. Supported: 3, 4."),
        (b'{"nbformat": "\\ud800"}', "Unsupported nbformat ?. Supported: 3, 4."),
        (b'{"nbformat": 4}', "The notebook cannot be executed: cells must be a list of cells."),
        (
            b'{"nbformat": 4, "cells": [1]}',
            "The notebook cannot be executed: cells/0 must be an object, not a number.",
        ),
        (b'{"nbformat": 3}', "The notebook cannot be read: KeyError: 'worksheets'"),
        (
            b'{"nbformat": 3, "worksheets": 1}',
            "The notebook cannot be read: TypeError: 'int' object is not iterable",
        ),
        (b"[" * 100_000, "The notebook is nested too deeply."),
        (b'{"a":' * 100_000, "The notebook is nested too deeply."),
        (b"1" * 10_000, "The notebook has an integer of more than 4,300 digits."),
        (
            b'{"nbformat": 4, "cells": [], "metadata": {"x": ' + b"[" * 900 + b"]" * 900 + b"}}",
            "The notebook is nested too deeply.",
        ),
    ],
)
def test_what_is_no_notebook_is_refused_with_the_reason(data: bytes, why: str) -> None:
    """One error, whatever is wrong, that says what it is."""
    assert refusal(data) == why


def broken(change: Callable[[Any], object]) -> bytes:
    """A good notebook with one thing wrong."""
    document = json.loads(content("1", "2"))
    change(document)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda document: document["cells"][1].update(cell_type=5), "cells/1/cell_type"),
        (lambda document: document["cells"][1].pop("cell_type"), "cells/1/cell_type"),
        (lambda document: document["cells"].append(5), "cells/2"),
        (lambda document: document["cells"][1].pop("source"), "cells/1/source"),
        (lambda document: document["cells"][0].update(source=1), "cells/0/source"),
        (lambda document: document["cells"][0].update(source=["a", 1]), "cells/0/source"),
        (lambda document: document["cells"][0].update(source=None), "cells/0/source"),
        (lambda document: document["cells"][0].update(metadata=[]), "cells/0/metadata"),
        (
            lambda document: document["metadata"].update(kernelspec={"name": 1, "display_name": "x"}),
            "metadata/kernelspec/name",
        ),
        (lambda document: document.update(cells={}), "cells must be a list"),
        (lambda document: document.pop("cells"), "cells must be a list"),
        (lambda document: document.update(metadata="x"), "metadata must be an object, not a string"),
    ],
)
def test_what_cannot_be_executed_is_refused_with_the_place(
    change: Callable[[Any], object], where: str
) -> None:
    """The message names the place in the notebook."""
    assert where in refusal(broken(change))


@pytest.mark.parametrize(
    ("change", "repair"),
    [
        (lambda document: document.update(metadata=None), "Added the missing metadata."),
        (
            lambda document: document.update(nbformat_minor="5"),
            "nbformat_minor, which was not a whole number, to 5",
        ),
        (
            lambda document: document.update(nbformat_minor=-1),
            "nbformat_minor, which was not a whole number, to 5",
        ),
        (lambda document: document.pop("nbformat_minor"), "nbformat_minor, which was missing, to 5."),
        (lambda document: document["cells"][1].pop("outputs"), "outputs: cell 1."),
        (lambda document: document["cells"][1].update(outputs="x"), "outputs: cell 1."),
        (lambda document: document["cells"][0].update(execution_count=1.5), "execution_count: cell 0."),
        (lambda document: document["metadata"].update(kernelspec=[]), "Removed the kernelspec"),
        (lambda document: document["metadata"].update(language_info={}), "Removed the language_info"),
        (
            lambda document: document["cells"][1]["metadata"].update(scrolled=5),
            "'scrolled' from the metadata",
        ),
        (lambda document: document.update({"x" * 100: 1}), "Removed the key 'xxxx"),
        (lambda document: document["cells"][0].update({"\ud800": 1}), "Removed the key"),
        (
            lambda document: document["cells"].append({"cell_type": "raw", "source": 5}),
            "with its JSON: cell 2",
        ),
    ],
)
def test_what_is_harmless_is_repaired(change: Callable[[Any], object], repair: str) -> None:
    """The notebook is valid afterwards, and says what was repaired, and where, in text that can be sent."""
    segments = prepared(broken(change))
    nbformat.validate(decode(joined(segments)))
    assert repair in "\n".join(segments.repairs)
    assert max(map(len, segments.repairs)) <= MAX_REPAIR
    "".join(segments.repairs).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document["cells"][0].update(outputs=[{"output_type": "stream"}]),
        lambda document: document["cells"][0].update(outputs=[5, {"output_type": "song"}]),
        lambda document: document["cells"].append({"cell_type": "poem", "id": "p", "metadata": {}, "x": 1}),
        lambda document: document.update(nbformat_minor=10**400, x=1),
        lambda document: document["metadata"].update(x={"y": [float("nan")]}),
    ],
)
def test_what_is_not_kept_or_not_known_needs_no_repair(change: Callable[[Any], object]) -> None:
    """Outputs go whatever they are; cells of other types and what later formats have stays."""
    assert prepared(broken(change)).repairs == ()


def test_what_later_formats_have_stays() -> None:
    """Keys before and after the cells, and whatever has their name."""
    document = json.loads(content("1"))
    document.update(nbformat_minor=99, authors=["a"], x={"cells": []}, metadata={"y": {"cells": []}})
    assert json.loads(joined(prepared(json.dumps(document).encode()))) == document


def test_what_is_encoded_stays_as_it_was() -> None:
    """A worker encodes a cell again and again, while the notebook is executed."""
    image = {"text/plain": "a\nb", "image/svg+xml": "<svg>\n</svg>"}
    cells = [code("1\n2"), new_markdown_cell("x\ny", attachments={"a": image}), code("3")]
    cells[0].outputs = [new_output("display_data", image), new_output("stream", text="a\nb")]
    node = notebook(*cells, orig_nbformat=3)
    before = copy.deepcopy(node)
    assert json.loads(encode_cell(node.cells[1]))["attachments"]["a"]["text/plain"] == ["a\n", "b"]
    assert json.loads(encode_cell(node.cells[0]))["outputs"][1]["text"] == ["a\n", "b"]
    assert b"orig_nbformat" not in encode_tail(node)
    assert node == before


def test_many_repairs_are_bounded() -> None:
    """A notebook with everything wrong in every cell does not make a run large."""
    cell = {"cell_type": "markdown", "source": "", "metadata": {}}
    cells = [{**cell, "id": "a", **{f"key {number}": 1 for number in range(50)}} for _ in range(50)]
    document = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}
    repairs = prepared(json.dumps(document).encode()).repairs
    assert len(repairs) == MAX_REPAIRS
    assert repairs[0] == (
        "Removed the key 'key 0', which this type of cell cannot have: "
        "cells 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 40 more."
    )
    assert repairs[-1] == "32 more kinds of repairs are not listed."


def test_outputs_of_nbformat_3_are_not_read() -> None:
    """Old outputs of any kind, or none at all, do not keep a notebook from being converted."""
    document = json.loads(version_3())
    for outputs in ([{"output_type": "display_data", "json": "{"}], "x", None):
        document["worksheets"][0]["cells"][1]["outputs"] = outputs
        assert prepared(json.dumps(document).encode()).repairs == ()
    del document["worksheets"][0]["cells"][1]["outputs"]
    document["worksheets"].append(document["worksheets"][0])
    assert prepared(json.dumps(document).encode()).repairs == (
        "Set the missing or invalid outputs: cells 1, 3.",
    )


def test_red_cells_are_removed_as_papermill_removes_them() -> None:
    """What is left are the cells that papermill would execute again."""
    node = notebook("1", "2")
    for place in (2, 1, 0):
        node.cells.insert(place, new_markdown_cell("red", metadata={"tags": ["x", ERROR_MARKER_TAG]}))
    segments = prepared(written(node))
    assert decode(joined(segments)).cells == remove_error_markers(node).cells
    assert len(segments.cells) == 2


@pytest.mark.parametrize(
    "name", ["python", "Python", "python2", "python3", "Python3", "PYTHON3", "ir", "IR", "", "x y", "ÄÖ", "1"]
)
def test_kernel_names_are_those_that_jupyter_client_takes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Of each name the kernelspec that jupyter_client looks for; of none, none."""
    looked_for: list[str] = []
    monkeypatch.setattr(
        KernelSpecManager, "_find_spec_directory", lambda _, kernel: looked_for.append(kernel)
    )
    with contextlib.suppress(NoSuchKernel), caplog.at_level("CRITICAL"):
        KernelSpecManager().get_kernel_spec(KernelManager(kernel_name=name).kernel_name)
    assert looked_for == [resolve_kernel_name(name)]


@pytest.mark.parametrize("value", [[], [1], ["a"], "x", "", 1, True, None, 1.5])
@pytest.mark.parametrize("key", ["kernelspec", "language_info", "papermill"])
def test_metadata_that_are_no_objects_are_refused_or_left_alone(key: str, value: object) -> None:
    """What tools expect to be an object and is none never is a fault of the server."""
    data = broken(lambda document: document["metadata"].update({key: value}))
    for parameters in ({}, {"a": 1}):
        try:
            prepare(data, parameters, "", KERNELS)
        except InvalidNotebookError:
            continue


def test_text_that_no_kernel_can_be_sent_is_refused() -> None:
    """A lone surrogate in a source; in an output it is kept as an escape."""
    node = notebook("1")
    node.cells[0].source = "'\ud800'"
    why = "The notebook has text that is not valid Unicode (a lone surrogate)."
    assert refusal(json.dumps(node).encode()) == why
    named = broken(lambda document: document["metadata"].update(kernelspec={"name": "python3\ud800"}))
    assert refusal(named) == why
    assert b"\\ud800" in prepared(json.dumps(notebook(markdown("\ud800"))).encode()).cells[0]


def test_a_message_repeats_only_a_bounded_segment_of_the_notebook() -> None:
    """A notebook of a megabyte that fails the schema is not sent back."""
    node = code("x" * 1_000_000)
    document = json.loads(content("1"))
    document["cells"] = [{**node, "cell_type": ["y" * 1_000_000]}]
    assert len(refusal(json.dumps(document).encode())) < MAX_MESSAGE + 200
