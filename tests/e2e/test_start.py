"""Start: every way to give a notebook, and everything that can be asked of its run."""

import json
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import executed, inline, perform, struct
from tests.support.notebooks import code, markdown, notebook, printed, results, written
from tests.support.server import Server

pytestmark = pytest.mark.guarantee

VALUES = {
    "whole": 3,
    "negative": -7,
    "big": 2**53,
    "fraction": 0.5,
    "text": "Grüße '\"\\ \n end",
    "yes": True,
    "nothing": None,
    "nested": {"list": [1, 2.5, "x", None, False], "inner": {"n": 1}},
}


def test_inline(server: Server) -> None:
    """A notebook that the request brings is executed, cell by cell."""
    ended = perform(server.stub, inline("a = 20", markdown("# Text"), "a + 22", ""))
    node = executed(server.stub, ended.run.run_id)
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED
    assert (ended.run.cells_completed, ended.run.cells_total) == (4, 4)
    assert results(node) == ["42"]
    assert [cell.get("execution_count") for cell in node.cells] == [1, None, 2, None]


def test_path(server: Server, notebook_root: Path) -> None:
    """A notebook under the root runs in its own folder and imports what lies beside it."""
    ended = perform(server.stub, pb.StartRequest(notebook_path="folder/place.ipynb"))
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED, ended.run.failure
    node = executed(server.stub, ended.run.run_id)
    assert ended.run.notebook_path == "folder/place.ipynb"
    assert results(node) == [repr((str((notebook_root / "folder").resolve()), 42))]


def test_path_leaves_the_source_as_it_is(server: Server, notebook_root: Path) -> None:
    """Executing a notebook under the root changes no file there."""
    before = {path: path.read_bytes() for path in notebook_root.rglob("*.ipynb")}
    perform(server.stub, pb.StartRequest(notebook_path="default.ipynb"))
    assert {path: path.read_bytes() for path in notebook_root.rglob("*.ipynb")} == before


def test_empty_request_runs_the_default_notebook(server: Server) -> None:
    """An empty request runs what the operator chose."""
    ended = perform(server.stub, pb.StartRequest())
    assert ended.run.notebook_path == "default.ipynb"
    assert printed(executed(server.stub, ended.run.run_id), 1) == "hello world\n"


def test_default_notebook_takes_parameters(server: Server) -> None:
    """Parameters reach the default notebook too."""
    ended = perform(server.stub, pb.StartRequest(parameters=struct({"who": "you"})))
    assert printed(executed(server.stub, ended.run.run_id), 2) == "hello you\n"


def test_parameters_arrive_with_their_types(server: Server) -> None:
    """Every kind of value is in the kernel what it was in the request; whole numbers are int."""
    show = f"import json; print(json.dumps([{', '.join(VALUES)}], sort_keys=True))"
    ended = perform(server.stub, inline(show, parameters=struct(VALUES)))
    assert ended.run.parameters == struct(VALUES)
    assert ended.run.cells_total == 2
    shown = printed(executed(server.stub, ended.run.run_id), 1).strip()
    assert shown == json.dumps(list(VALUES.values()), sort_keys=True)


@pytest.mark.parametrize("place", ["tagged", "untagged", "injected before"])
def test_parameters_are_injected_as_papermill_does_it(server: Server, tmp_path: Path, place: str) -> None:
    """The injected cell has papermill's source, tag and place, also in a notebook that has one."""
    cells: list[str | NotebookNode] = [markdown("# Title"), "print(whole, text)"]
    if place != "untagged":
        cells.insert(1, code("whole = 1\ntext = ''", "parameters"))
    if place == "injected before":
        cells.insert(2, code("whole = 5", "injected-parameters"))
    values = {"whole": 3, "text": "new"}
    node = notebook(*cells, kernelspec={"name": "python3", "display_name": "Python 3", "language": "python"})
    request = pb.StartRequest(notebook_content=written(node), parameters=struct(values))
    ran = executed(server.stub, perform(server.stub, request).run.run_id)
    nbformat.write(node, tmp_path / "theirs.ipynb")
    loaded = load_notebook_node(str(tmp_path / "theirs.ipynb"))
    expected = parameterize_notebook(loaded, values, kernel_name="python3", language="python")
    assert [_outline(cell) for cell in ran.cells] == [_outline(cell) for cell in expected.cells]
    assert printed(ran, len(ran.cells) - 1) == "3 new\n"


def _outline(cell: NotebookNode) -> tuple[str, list[str], list[str]]:
    """A cell without its outputs and its id; the order of parameters is not promised."""
    return cell.cell_type, sorted(cell.source.splitlines()), cell.metadata.get("tags", [])


def test_parameters_of_a_notebook_without_the_tag_are_not_checked(server: Server) -> None:
    """Without a cell tagged `parameters` any name is taken, at the top."""
    ended = perform(server.stub, inline("fresh", parameters=struct({"fresh": 1})))
    node = executed(server.stub, ended.run.run_id)
    assert node.cells[0].metadata.tags == ["injected-parameters"]
    assert results(node) == ["1"]


def test_format_3_is_read(server: Server) -> None:
    """A notebook of nbformat 3 runs, and comes back as nbformat 4."""
    old = nbformat.convert(notebook("1 + 1", markdown("text")), 3)
    request = pb.StartRequest(notebook_content=nbformat.writes(old, version=3).encode())
    node = executed(server.stub, perform(server.stub, request).run.run_id)
    assert node.nbformat == 4
    assert results(node) == ["2"]


def test_cell_ids_and_metadata_are_kept(server: Server) -> None:
    """What the caller had in the notebook stays in it."""
    node = notebook("1", markdown("two"), custom={"mine": [1, 2]})
    request = pb.StartRequest(notebook_content=written(node))
    ran = executed(server.stub, perform(server.stub, request).run.run_id)
    nbformat.validate(ran)
    assert [cell.id for cell in ran.cells] == [cell.id for cell in node.cells]
    assert ran.metadata.custom == {"mine": [1, 2]}
    assert ran.metadata.language_info.name == "python"


def test_labels_and_kernel_are_answered(server: Server) -> None:
    """A run carries its labels and the kernelspec it runs with."""
    ended = perform(server.stub, inline("1", labels={"team": "a", "stage": ""}))
    assert dict(ended.run.labels) == {"team": "a", "stage": ""}
    assert ended.run.kernel_name == "python3"


def test_kernel_name_comes_before_the_notebooks_own(server: Server) -> None:
    """The request's kernelspec is taken where the notebook names one that is not there."""
    node = notebook("1 + 1", kernelspec={"name": "no-such-kernel", "display_name": "None"})
    request = pb.StartRequest(notebook_content=written(node), kernel_name="python3")
    ended = perform(server.stub, request)
    assert (ended.run.state, ended.run.kernel_name) == (pb.RUN_STATE_SUCCEEDED, "python3")


def test_allow_errors_goes_on(server: Server) -> None:
    """A cell that raises does not end a run that allows errors."""
    ended = perform(server.stub, inline("1 / 0", "'after'", allow_errors=True))
    outcomes = [event.cell_finished.outcome for event in ended.events if event.HasField("cell_finished")]
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED
    assert outcomes == [pb.CELL_OUTCOME_ERROR_ALLOWED, pb.CELL_OUTCOME_SUCCEEDED]
    assert results(executed(server.stub, ended.run.run_id)) == ["'after'"]


def test_cell_tags_are_nbclients(server: Server) -> None:
    """`raises-exception` lets one cell raise, `skip-execution` skips one."""
    cells: list[str | NotebookNode] = [
        code("1 / 0", "raises-exception"),
        code("x = 1", "skip-execution"),
        "'x' in dir()",
    ]
    ended = perform(server.stub, inline(*cells))
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED
    assert results(executed(server.stub, ended.run.run_id)) == ["False"]


def test_environment_reaches_the_kernel_and_nobody_else(server: Server) -> None:
    """Variables of a request are in its kernel, and not in the kernel of the next run."""
    look = "import os; os.environ.get('SECRET_WORD')"
    first = perform(server.stub, inline(look, environment={"SECRET_WORD": "open sesame"}))
    second = perform(server.stub, inline(look))
    shown = [results(executed(server.stub, ended.run.run_id)) for ended in (first, second)]
    assert shown == [["'open sesame'"], []]
    assert "open sesame" not in str(first.run)
    assert "open sesame" not in str(server.log)


FOLDER_CELL = """
import os, pathlib, stat
folder = pathlib.Path(os.environ["NOTEBOOK_RUNNER_RUN_DIR"])
print(folder.resolve(), oct(stat.S_IMODE(folder.stat().st_mode)), pathlib.Path.cwd(), sep="|")
(folder / "mine").touch(exist_ok=False)
"""


def test_every_inline_run_has_a_private_folder(server: Server) -> None:
    """The run folder is new for each run, open to nobody else, and where an inline run works."""
    nodes = [executed(server.stub, perform(server.stub, inline(FOLDER_CELL)).run.run_id) for _ in range(2)]
    told = [printed(node, 0).strip().split("|") for node in nodes]
    assert all(mode == "0o700" and place == folder for folder, mode, place in told)
    assert told[0][0] != told[1][0]


STATE_CELL = """
import builtins, os, random, sys
import numpy
print(hasattr(builtins, "mark"), os.environ.get("MARK"), "mark" in sys.modules, sys.path[-1] == "mark",
      sorted(name for name in dir() if not name.startswith("_")))
builtins.mark = os.environ["MARK"] = sys.modules["mark"] = "set"
sys.path.append("mark")
os.chdir("/")
os.umask(0)
"""
CHANCE_CELL = "print(random.random(), numpy.random.random(), os.urandom(4), id(object()))"


def test_runs_share_no_state(server: Server) -> None:
    """What one run changes in its process no other run sees, and chance differs between them."""
    ends = [perform(server.stub, inline(STATE_CELL, CHANCE_CELL)) for _ in range(3)]
    nodes = [executed(server.stub, ended.run.run_id) for ended in ends]
    first = printed(nodes[0], 0)
    assert first.startswith("False None False False")
    assert [printed(node, 0) for node in nodes] == [first] * 3
    numbers = [printed(node, 1).split()[:2] for node in nodes]
    assert len({number for pair in numbers for number in pair}) == 6
