"""Notebooks that nbclient and papermill run, as files in tests/cases: each is run and has its right value."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import nbformat
import pytest
from google.protobuf.struct_pb2 import Struct, Value
from nbformat import NotebookNode

from notebook_runner import Client
from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import executed, inline, perform, struct
from tests.support.errors import refused
from tests.support.gate import Gate
from tests.support.notebooks import code
from tests.support.reference import Reference
from tests.support.server import Server

CASES = Path(__file__).parents[1] / "cases"
PROGRAM = Path(sys.executable).with_name("notebook-runner")
SECONDS = 60.0
ALIASES = (("python", "python3"), ("Python3", "python3"), ("PYTHON3", "python3"), ("python3", "python3"))


class Case(NamedTuple):
    """What each code cell prints, and a word of each repair; `nbclient`: it runs this file, too."""

    printed: list[str]
    repairs: list[str] = []  # noqa: RUF012 - a named tuple's default, never changed
    nbclient: bool = True
    is_valid: bool = True


EXTRA = {
    "outputs": "cells 0, 2",
    "execution_count": "cell 0",
    "prompt_number": "cell 1",
    "attachments": "cell 1",
    "collapsed": "cell 1",
}
REPAIRED = {
    "future-minor": Case(["today\n"]),
    "unknown-cell-type": Case(
        ["known\n", "after\n"], ["attachments: cell 1"], nbclient=False, is_valid=False
    ),
    "extra-keys": Case(
        ["ok\n"],
        [
            *(f"'{key}', which this type of cell cannot have: {cells}." for key, cells in EXTRA.items()),
            "'signature'",
        ],
    ),
    "ids-before-4.5": Case(["first\n"], ["id, which nbformat 4.4 does not have: cells 0, 1"]),
    "invalid-ids": Case(
        [f"{number}\n" for number in range(1, 9)],
        ["not valid: cells 0, 3, 4, 6, 7", "another cell has too: cell 2", "missing id: cell 5"],
        nbclient=False,
    ),
    "kernelspec-without-display-name": Case(["ok\n"], ["display_name"]),
    "metadata-of-other-types": Case(
        ["ok\n"],
        [
            *("kernelspec", "language_info", "title", "authors"),
            *("'collapsed'", "'name'", "'jupyter'"),
        ],
        nbclient=False,
    ),
    "execution-count-star": Case(["ok\n", "done\n", "2"], ["execution_count: cells 0, 1, 2"]),
    "missing-keys": Case(
        ["a\n", "b\n"],
        ["nbformat_minor", "metadata", "source: cell 1", "outputs: cells 0, 2", "execution_count: cell 0"],
        nbclient=False,
    ),
    "tags-and-attachments": Case(
        ["1\n", "2\n", "3\n", "", "4\n"],
        ["duplicate tags: cell 0", "not valid: cells 1, 2, 7", "list: cell 3", "attachments: cells 4, 5, 6"],
        nbclient=False,
    ),
}


@pytest.fixture(scope="module")
def reference() -> Iterator[Reference]:
    """Nbclient itself."""
    with Reference() as running:
        yield running


def case(name: str, **fields: Any) -> pb.StartRequest:
    """A request for one of the files."""
    return pb.StartRequest(notebook_content=(CASES / f"{name}.ipynb").read_bytes(), **fields)


def code_cells(node: NotebookNode) -> list[NotebookNode]:
    """The cells that are executed."""
    return [cell for cell in node.cells if cell.cell_type == "code"]


def output_texts(node: NotebookNode) -> list[str]:
    """What each code cell printed or answered."""
    return [
        "".join(out.get("text", "") or out.get("data", {}).get("text/plain", "") for out in cell.outputs)
        for cell in code_cells(node)
    ]


def output_text(server: Server, request: pb.StartRequest) -> str:
    """What the last code cell of a run prints that succeeds."""
    run = perform(server.stub, request).run
    assert run.state == pb.RUN_STATE_SUCCEEDED, run
    return output_texts(executed(server.stub, run.run_id))[-1]


@pytest.mark.parametrize("name", REPAIRED)
def test_what_is_harmless_is_repaired_and_listed(server: Server, reference: Reference, name: str) -> None:
    """The run succeeds, prints what it prints with nbclient, keeps its format, and lists each repair."""
    wanted = REPAIRED[name]
    run = perform(server.stub, case(name)).run
    assert run.state == pb.RUN_STATE_SUCCEEDED, run
    node = executed(server.stub, run.run_id)
    assert output_texts(node) == wanted.printed
    repairs = list(run.notebook_repairs)
    assert len(repairs) == len(wanted.repairs), repairs
    for word in wanted.repairs:
        assert any(word in repair for repair in repairs), (word, repairs)
    if wanted.is_valid:
        nbformat.validate(node)
    if wanted.nbclient:
        theirs = reference.execute(CASES / f"{name}.ipynb").notebook
        assert output_texts(theirs) == wanted.printed
        assert (theirs.nbformat, theirs.nbformat_minor) == (node.nbformat, node.nbformat_minor)
        assert [cell.cell_type for cell in theirs.cells] == [cell.cell_type for cell in node.cells]
        assert [cell.execution_count for cell in code_cells(theirs)] == [
            cell.execution_count for cell in code_cells(node)
        ]


def test_cells_of_unknown_types_are_kept(server: Server) -> None:
    """Their keys come out as they went in, and every format shows the cells around them."""
    run = perform(server.stub, case("unknown-cell-type")).run
    cell = executed(server.stub, run.run_id).cells[1]
    assert (cell.cell_type, cell.verses, "source" in cell) == ("poem", ["roses", "violets"], False)
    for name in ("html", "markdown", "script", "slides"):
        page = server.stub.Output(pb.OutputRequest(run_id=run.run_id, format=name), timeout=SECONDS)
        assert b"after" in page.content, name


def test_a_valid_notebook_lists_no_repairs(server: Server) -> None:
    """Nothing is said of a notebook with nothing wrong, whatever its outputs were."""
    assert not perform(server.stub, inline("1")).run.notebook_repairs
    assert not perform(server.stub, case("earlier-outputs")).run.notebook_repairs


def test_what_cannot_be_executed_is_refused_with_its_place(server: Server) -> None:
    """A code cell whose source is no text: the message names the cell and what is wrong with it."""
    document = json.loads(case("extra-keys").notebook_content)
    document["cells"][1]["source"] = 5
    request = pb.StartRequest(notebook_content=json.dumps(document).encode())
    refusal = refused(lambda: server.stub.Start(request, timeout=SECONDS))
    assert refusal.kind == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_NOTEBOOK")
    assert "cells/1/source" in refusal.message


@pytest.mark.parametrize(("given", "taken"), ALIASES)
def test_a_kernel_name_is_resolved_as_jupyter_client_does(server: Server, given: str, taken: str) -> None:
    """In Start and in the notebook; the run says what was taken, and the notebook keeps what it named."""
    asked = perform(server.stub, case("kernel-in-other-case", kernel_name=given)).run
    assert (asked.state, asked.kernel_name) == (pb.RUN_STATE_SUCCEEDED, taken)
    document = json.loads(case("kernel-in-other-case").notebook_content)
    document["metadata"]["kernelspec"]["name"] = given
    named = perform(server.stub, pb.StartRequest(notebook_content=json.dumps(document).encode())).run
    assert (named.state, named.kernel_name) == (pb.RUN_STATE_SUCCEEDED, taken)
    assert executed(server.stub, named.run_id).metadata.kernelspec.name == given


@pytest.mark.parametrize("name", ["kernel-named-python", "kernel-in-other-case"])
def test_kernels_that_notebooks_name_otherwise(server: Server, name: str) -> None:
    """The files run with python3."""
    run = perform(server.stub, case(name)).run
    assert (run.state, run.kernel_name) == (pb.RUN_STATE_SUCCEEDED, "python3")


def test_unknown_kernels_are_still_refused(server: Server) -> None:
    """`Python` in capitals is a kernelspec of that name, as for jupyter_client, and there is none."""
    for name in ("Python", "no-such-kernel"):
        request = case("kernel-named-python", kernel_name=name)
        refusal = refused(lambda request=request: server.stub.Start(request, timeout=SECONDS))  # type: ignore[misc]
        assert refusal.reason == "UNKNOWN_KERNEL"


def test_the_default_and_warm_kernels_are_resolved(make_server: Any) -> None:
    """An operator may write `python` as well: notebooks without a kernelspec run, and on a warm kernel."""
    running = make_server("--default-kernel", "python", "--warm-kernels", "Python3=1")
    info = running.stub.Info(pb.InfoRequest(), timeout=SECONDS)
    kernel = next(one for one in info.kernels if one.name == "python3")
    assert (kernel.is_default, kernel.warm_wanted) == (True, 1)
    assert perform(running.stub, inline("1")).run.kernel_name == "python3"


@pytest.mark.parametrize(
    ("name", "parameters", "text"),
    [
        ("parameters-unpacked", {"low": 5, "rest": [9], "right": 8}, "5 2 3 4 [9] 7 8\n"),
        (
            "parameters-other-statements",
            dict.fromkeys(
                ["bare", "size", "mode", "step", "last", "source", "fallback", "factor", "count"], 0
            ),
            "0 0 0 0 0 0 0 0 0\n",
        ),
        (
            "parameters-beside-magics",
            {"url": "http://z/?c=d", "files": ["two"]},
            "http://z/?c=d 3 ['two'] %not a magic\n",
        ),
        ("parameters-annotation-only", {"region": "north"}, "north\n"),
        ("parameters-float", {"step": 1.0}, "[0.5 1.  1. ] float\n"),
    ],
)
def test_names_that_the_parameters_cell_assigns(
    server: Server, name: str, parameters: dict[str, Any], text: str
) -> None:
    """Each is a parameter, however the cell assigns it, and `--help-notebook` has the same names."""
    with Client(server.target) as client:
        run = client.run(CASES / f"{name}.ipynb", parameters=parameters)
    assert output_texts(executed(server.stub, run.id))[-1] == text
    shown = json.loads(command(server, "run", "--json", "--help-notebook", CASES / f"{name}.ipynb"))
    assert set(parameters) <= {one["name"] for one in shown}


def test_a_parameter_without_a_default_that_is_not_given(server: Server) -> None:
    """The run fails in the cell that needs it."""
    run = perform(server.stub, case("parameters-annotation-only")).run
    assert (run.state, run.failure.exception_name) == (pb.RUN_STATE_FAILED, "NameError")
    assert run.failure.cell_index == 1


VALUES: list[tuple[Any, str]] = [
    (1.0, "1.0"),
    (-0.0, "-0.0"),
    (0, "0"),
    (1e300, "1e+300"),
    (2**53 + 1, "9007199254740993"),
    (-(10**400), str(-(10**400))),
    (float("nan"), "nan"),
    (float("inf"), "inf"),
    ([-float("inf"), 2.0, True, None], "[-inf, 2.0, True, None]"),
    ({"b": 1, "a": {"z": 1.0, "y": 2}}, "{'b': 1, 'a': {'z': 1.0, 'y': 2}}"),
    ({1: "a", None: 2, 1.5: [{True: 4}]}, "{'1': 'a', 'None': 2, '1.5': [{'True': 4}]}"),
    ("ä\n'\"", repr("ä\n'\"")),
]


@pytest.mark.parametrize(("value", "text"), VALUES, ids=[text[:20] for _, text in VALUES])
def test_values_arrive_as_papermill_gives_them(server: Server, value: Any, text: str) -> None:
    """Types, digits, signs and the order of keys; the run keeps them, also over a restart."""
    with Client(server.target) as client:
        run = client.run(CASES / "parameters-values.ipynb", parameters={"value": value})
    assert output_texts(executed(server.stub, run.id))[-1] == f"{text}\n"
    assert repr(run.parameters["value"]) == text


def test_a_restart_keeps_exact_values(tmp_path: Path) -> None:
    """The history has types, digits, order and repairs as they were, and the same request is the same run."""
    text = '{"value": {"z": [1.0, -0.0, NaN, -Infinity, 9007199254740993], "a": 1e300}}'
    document = json.loads(case("parameters-values").notebook_content)
    del document["nbformat_minor"]
    request = pb.StartRequest(
        notebook_content=json.dumps(document).encode(), parameters_json=text, request_id="once"
    )
    with Server(tmp_path / "state") as first:
        before = perform(first.stub, request).run
        assert (before.state, before.parameters_json) == (
            pb.RUN_STATE_SUCCEEDED,
            text.replace("1e300", "1e+300"),
        )
    with Server(tmp_path / "state") as second:
        after = second.stub.Start(request, timeout=SECONDS).run
    assert after == before
    assert len(after.notebook_repairs) == 1


def test_the_order_of_parameters_is_the_callers(server: Server) -> None:
    """Names are assigned in the order in which they were given, as papermill does."""
    with Client(server.target) as client:
        run = client.run(CASES / "parameters-unpacked.ipynb", parameters={"right": 1, "low": 2, "high": 3})
    injected = executed(server.stub, run.id).cells[1].source
    assert injected == "# Parameters\nright = 1\nlow = 2\nhigh = 3\n"


def test_a_client_that_knows_only_the_struct(server: Server) -> None:
    """It gets what it got: whole numbers as int, the rest as float, NaN as NaN."""
    for value, text in ((1.0, "1"), (1.5, "1.5"), (2.0**60, repr(2.0**60)), (-0.0, "-0.0")):
        request = case("parameters-values", parameters=struct({"value": value}))
        assert output_text(server, request) == f"{text}\n"
    nan = Struct(fields={"value": Value(number_value=math.nan)})
    assert output_text(server, case("parameters-values", parameters=nan)) == "nan\n"


def test_json_alone_and_json_beside_a_struct(server: Server) -> None:
    """JSON counts where both are given, and both must say the same."""
    assert output_text(server, case("parameters-values", parameters_json='{"value": 1.0}')) == "1.0\n"
    both = case("parameters-values", parameters_json='{"value": 1.0}', parameters=struct({"value": 1}))
    assert output_text(server, both) == "1.0\n"
    other = case("parameters-values", parameters_json='{"value": 1.0}', parameters=struct({"value": 2}))
    refusal = refused(lambda: server.stub.Start(other, timeout=SECONDS))
    assert refusal.kind == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert refusal.fields == ["parameters_json"]


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "1", "null", '"x"', "{", "{} {}", '{"value": NaM}', '{"value": "\\ud800"}', '{"\\udfff": 1}'),
        *('{"value": ' + "9" * 5000 + "}", '{"value": ' + "[" * 31 + "]" * 31 + "}"),
        *('{"value": ' + "[" * 100_000 + "]" * 100_000 + "}", '{"value": "' + "x" * 2**20 + '"}'),
        '{"value": {"a\\ud800": 1}}',
    ],
    ids=range(14),
)
def test_json_that_holds_no_parameters_is_refused(server: Server, text: str) -> None:
    """What is not an object of values within the limits is INVALID_FIELD, never a fault of the server."""
    request = case("parameters-values", parameters_json=text)
    refusal = refused(lambda: server.stub.Start(request, timeout=SECONDS))
    assert refusal.kind == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"), refusal
    assert refusal.fields == ["parameters_json"]


def command(server: Server, *arguments: str | Path) -> str:
    """What the command prints that ends with 0."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("NOTEBOOK_RUNNER_")}
    done = subprocess.run(
        [PROGRAM, *arguments],
        env={**inherited, "NOTEBOOK_RUNNER_TARGET": server.target},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done
    return done.stdout


def strict(line: str) -> Any:
    """JSON as every other language reads it: without NaN and infinities."""
    return json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_json_of_the_command_with_values_that_json_does_not_have(server: Server, tmp_path: Path) -> None:
    """NaN and infinities are strings in `run`, `watch` and `list --json`, which end with 0."""
    file = tmp_path / "values.json"
    file.write_text('{"value": [NaN, -Infinity, 9007199254740993]}')
    path = CASES / "parameters-values.ipynb"
    events = [strict(line) for line in command(server, "run", "--json", path, "-f", file).splitlines()]
    run_id = events[-1]["run_changed"]["run_id"]
    listed = [strict(line) for line in command(server, "list", "--json").splitlines()]
    watched = [strict(line) for line in command(server, "watch", "--json", run_id).splitlines()]
    runs = [events[-1]["run_changed"], watched[-1]["run_changed"]]
    runs += [run for run in listed if run["run_id"] == run_id]
    assert [run["parameters"] for run in runs] == [{"value": ["NaN", "-Infinity", 9007199254740993]}] * 3


def test_the_command_says_what_was_repaired(server: Server) -> None:
    """`run` and `watch` print one line, `list --json` has the field."""
    path = CASES / "ids-before-4.5.ipynb"
    shown = command(server, "run", path)
    line = "repaired: Removed the id, which nbformat 4.4 does not have: cells 0, 1."
    assert shown.splitlines().count(line) == 1
    assert command(server, "watch").splitlines().count(line) == 1
    newest = strict(command(server, "list", "--json").splitlines()[0])
    assert newest["notebook_repairs"] == [line.removeprefix("repaired: ")]


def test_outputs_of_earlier_executions_are_cleared(server: Server) -> None:
    """Cells that were not executed have no outputs, no execution count and no times after a failed run."""
    run = perform(server.stub, case("earlier-outputs")).run
    assert (run.state, run.failure.cell_index) == (pb.RUN_STATE_FAILED, 3)
    cells = code_cells(executed(server.stub, run.run_id))
    assert [(cell.outputs, cell.execution_count) for cell in (*cells[1:3], cells[4])] == [([], None)] * 3
    assert cells[0].outputs == []
    assert "execution" not in cells[4].metadata


def test_marks_of_an_earlier_failure_are_removed(server: Server) -> None:
    """What papermill wrote into the notebook when it failed is gone, and what it keeps is kept."""
    with Client(server.target) as client:
        run = client.run(CASES / "papermill-failed.ipynb", parameters={"x": 2})
    node = executed(server.stub, run.id)
    assert [cell.cell_type for cell in node.cells] == ["code", "code", "code", "markdown"]
    assert [cell.id for cell in (node.cells[0], *node.cells[2:])] == ["values", "divide", "end"]
    assert not [cell for cell in node.cells if "papermill" in cell.metadata]
    record = {
        "default_parameters": {},
        "environment_variables": {},
        "parameters": {"x": 2},
        "version": "2.7.0",
    }
    assert node.metadata.papermill == record
    assert output_texts(node)[-1] == "0.5\n"
    again = perform(server.stub, case("papermill-failed")).run
    assert (again.state, again.failure.cell_index) == (pb.RUN_STATE_FAILED, 1)
    assert [cell.id for cell in executed(server.stub, again.run_id).cells] == ["values", "divide", "end"]


def test_a_run_that_starts_has_no_outputs_yet(server: Server, gate: Gate) -> None:
    """Also while the run waits or goes on, what Output answers is not last week's."""
    cell = code("print('new')")
    cell["outputs"] = [nbformat.v4.new_output("stream", name="stdout", text="old")]
    with Client(server.target) as client:
        run = client.start(nbformat.v4.new_notebook(cells=[code(gate.source), cell]))
        assert "old" not in run.output().decode()
        gate.open()
        run.wait()
