"""Result values: what a notebook displays as a scrap is a value of its run, by name, exact and durable."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, executed, finish, follow, inline, perform, reach, start
from tests.support.killable import KillableServer
from tests.support.public_notebooks import package
from tests.support.server import Server

pytestmark = pytest.mark.guarantee

MIME = "application/scrapbook.scrap.json+json"
# What a notebook needs without any package.
GLUE = f"""
def glue(name, data, update=None, **more):
    scrap = {{"name": name, "data": data, "encoder": "json", "version": 1, **more}}
    return display({{{MIME!r}: scrap}}, raw=True, display_id=update)
"""
SLEEP = "import time; time.sleep(1000)"


def values(run: pb.Run) -> Any:
    """The exact values of a run."""
    return json.loads(run.results_json) if run.results_json else {}


def told(events: list[pb.ProgressResponse]) -> list[tuple[str, Any]]:
    """The values that the events set."""
    results = [
        event.cell_output.display.result for event in events if event.cell_output.display.HasField("result")
    ]
    return [(result.name, json.loads(result.value_json)) for result in results]


def test_a_displayed_value_is_a_result_of_the_run(server: Server) -> None:
    """It comes with its event, and the run has it in the event of its end and in every later answer."""
    ended = perform(
        server.stub, inline(GLUE, "glue('total', 42)\nglue('rows', [{'a': 1.0}, None, 'x', True])")
    )
    expected = {"total": 42, "rows": [{"a": 1.0}, None, "x", True]}
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED, ended.run.failure
    assert told(ended.events) == list(expected.items())
    assert ended.run.results_json == '{"total": 42, "rows": [{"a": 1.0}, null, "x", true]}'
    assert dict(ended.run.results)["total"] == 42
    listed = server.stub.List(pb.ListRequest(page_size=1), timeout=SECONDS).runs[0]
    assert listed.results_json == ended.run.results_json
    assert listed.results == ended.run.results
    assert list(follow(server.stub, ended.run.run_id)) == ended.events


def test_the_last_value_wins_in_the_order_of_the_names(server: Server) -> None:
    """Also by an update of a display, and after a cell that failed."""
    cells = (
        f"{GLUE}\nhandle = glue('a', 1, update='it')\nglue('b', 1)\nglue('a', 2)",
        f"handle.update({{{MIME!r}: {{'name': 'b', 'data': 3}}}}, raw=True)",
        "1 / 0",
    )
    ended = perform(server.stub, inline(*cells))
    assert ended.run.state == pb.RUN_STATE_FAILED
    assert list(values(ended.run).items()) == [("a", 2), ("b", 3)]
    assert told(ended.events) == [("a", 1), ("b", 1), ("a", 2), ("b", 3)]


def test_numbers_are_exact(server: Server) -> None:
    """Whole numbers of any size and floats are what the notebook had; the Struct has what it can."""
    ended = perform(server.stub, inline(GLUE, "glue('n', [2**70, 1.0, 0.1, -0.0, 1e300, 3])"))
    assert ended.run.results_json == f'{{"n": [{2**70}, 1.0, 0.1, -0.0, 1e+300, 3]}}'
    assert list(ended.run.results["n"]) == [str(2**70), 1, 0.1, 0, 1e300, 3]  # type: ignore[arg-type] # a ListValue


def test_ipython_sends_numbers_that_json_lacks_as_strings(server: Server) -> None:
    """As in every notebook that Jupyter executes; the documentation says so."""
    source = "import math, warnings; warnings.simplefilter('ignore'); glue('n', [math.nan, -math.inf])"
    ended = perform(server.stub, inline(GLUE, source))
    assert values(ended.run) == {"n": ["nan", "-inf"]}


def test_what_is_malformed_is_a_display_and_no_result(server: Server) -> None:
    """No name, one that is too long, no dict, another encoder: the run goes on as before."""
    cells = [
        GLUE,
        "glue('', 1)\nglue(1, 1)\nglue('x' * 129, 1)\nglue('p', 'UEFSMQ==', encoder='pandas')",
        f"display({{{MIME!r}: 'text'}}, raw=True)\ndisplay({{{MIME!r}: {{'name': 'x'}}}}, raw=True)",
        "glue('x' * 128, 1)",
    ]
    ended = perform(server.stub, inline(*cells))
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED, ended.run.failure
    assert values(ended.run) == {"x" * 128: 1}
    assert sum(event.cell_output.HasField("display") for event in ended.events) == 7
    assert len(executed(server.stub, ended.run.run_id).cells[1].outputs) == 4


def test_values_are_bounded(server: Server) -> None:
    """A value of more than 16 KiB and what exceeds 64 KiB together are counted, and in the notebook."""
    cells = [
        GLUE,
        "glue('large', 1)\nglue('large', 'x' * 16_384)\nglue('deep', eval('[' * 40 + ']' * 40))",
        "for n in range(5): glue(f'v{n}', 'x' * 15_000)",
    ]
    ended = perform(server.stub, inline(*cells))
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED, ended.run.failure
    assert list(values(ended.run)) == ["v0", "v1", "v2", "v3"]
    assert ended.run.results_omitted == 3
    assert len(ended.run.results_json.encode()) <= 64 * 1024
    assert len(executed(server.stub, ended.run.run_id).cells[2].outputs) == 5


def test_scrapbooks_own_glue(server: Server) -> None:
    """Values of its encoders json and text are results; what is only displayed is none."""
    cells = [
        f"import sys, warnings\nsys.path.insert(0, {str(package('scrapbook'))!r})\nimport scrapbook as sb",
        "sb.glue('text', 'word')\nsb.glue('number', 1.5)\nsb.glue('many', {'a': [1, 2]})",
        "sb.glue('flag', True)",
        "sb.glue('number', 2)\nsb.glue('json', '[1]', encoder='json')\nsb.glue('shown', 7, display=True)",
        "from IPython.display import HTML\nsb.glue('page', HTML('<b>x</b>'))",
    ]
    ended = perform(server.stub, inline(*cells))
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED, ended.run.failure
    expected = {"text": "word", "number": 2, "many": {"a": [1, 2]}, "flag": True, "json": [1], "shown": 7}
    assert values(ended.run) == expected
    assert list(values(ended.run)) == list(expected)


@pytest.mark.process_pool("the run ends with its server")
def test_results_survive_the_death_of_the_server(
    tmp_path_factory: pytest.TempPathFactory, make_killable: Callable[..., KillableServer]
) -> None:
    """Those that were seen before a SIGKILL are in the history of the next server."""
    state = tmp_path_factory.mktemp("state")
    with make_killable(state) as server:
        run = start(server.stub, inline(GLUE, "glue('a', 1)", SLEEP))
        reach(server.stub, run.run_id, "cell_started", cell=2)
        server.die()
    with make_killable(state) as server:
        ended = finish(server.stub, run.run_id)
        assert ended.run.state == pb.RUN_STATE_INTERRUPTED
        assert values(ended.run) == {"a": 1}
        assert told(ended.events) == [("a", 1)]


@pytest.fixture
def make_killable() -> Callable[..., KillableServer]:
    """Starts a server that the test kills."""
    return KillableServer


def test_a_killed_run_keeps_its_results(server: Server) -> None:
    """What came before the Kill stays."""
    run = start(server.stub, inline(GLUE, "glue('a', 1)", SLEEP))
    reach(server.stub, run.run_id, "cell_started", cell=2)
    killed = server.stub.Kill(pb.KillRequest(run_id=run.run_id), timeout=SECONDS).run
    assert killed.state == pb.RUN_STATE_KILLED
    assert values(killed) == {"a": 1}
