"""What the dashboard and the documentation say of metrics is on a page that was scraped."""

import base64
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, inline
from tests.support.pages import REPOSITORY
from tests.support.scrape import ON, text
from tests.support.secure import bearer, new_token
from tests.support.server import Server

DASHBOARD = REPOSITORY / "docs" / "dashboards" / "notebook-runner.json"
PAGE = REPOSITORY / "docs" / "how-to" / "observe.md"
ALERTS = REPOSITORY / "k8s" / "components" / "monitoring" / "alerts.yaml"
# Nothing listens there.
RECEIVER = f"""
[webhooks.of-a-test]
url = "http://127.0.0.1:9/"
secret = "whsec_{base64.b64encode(bytes(32)).decode()}"
allow_internal = true
"""
# What Prometheus itself gives each series.
OF_A_SCRAPE = {"job", "instance"}
NAME = r"\b(?:notebook_runner|process|python)_\w+"


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page after a run of a caller with a name, of a server that has a webhook."""
    file = tmp_path_factory.mktemp("tokens") / "tokens"
    token = bearer(new_token(file))
    webhooks = file.with_name("webhooks")
    webhooks.touch(0o600)
    webhooks.write_text(RECEIVER)
    options = ("--tokens-file", str(file), "--webhooks-file", str(webhooks))
    with Server(tmp_path_factory.mktemp("state"), *ON, *options) as server:
        server.stub.Start(inline("1"), metadata=token, timeout=SECONDS)
        assert list(server.stub.Progress(pb.ProgressRequest(), metadata=token, timeout=SECONDS))
        yield text(server)


def labels(page: str) -> dict[str, dict[str, set[str]]]:
    """The values of each label of each series of a page."""
    found: dict[str, dict[str, set[str]]] = {}
    for name, has in re.findall(r"^([a-z]\w*)(?:{(.*)})? \S+$", page, re.MULTILINE):
        mine = found.setdefault(name, {})
        for label, value in re.findall(r'(\w+)="([^"]*)"', has):
            mine.setdefault(label, set()).add(value)
    return found


def check(expression: str, known: dict[str, dict[str, set[str]]]) -> None:
    """Asserts that what a query asks for is there: series, labels, and values that it names."""
    names = re.findall(NAME, expression)
    assert names, expression
    assert set(names) <= known.keys(), expression
    grouped = {
        label.strip() for by in re.findall(r"(?:by|on) \(([^)]*)\)", expression) for label in by.split(",")
    }
    asked = {label for name in names for label in known[name]} | OF_A_SCRAPE
    assert grouped <= asked, expression
    for name, selector in re.findall(rf"({NAME}){{([^}}]*)}}", expression):
        for label, operator, value in re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', selector):
            assert label in known[name].keys() | OF_A_SCRAPE, expression
            if label not in OF_A_SCRAPE:
                is_there = [one for one in known[name][label] if re.fullmatch(value, one)]
                assert is_there, f"{label}{operator}{value}: {expression}"
    assert expression.count("(") == expression.count(")"), expression


def queries(value: Any) -> Iterator[str]:
    """Every query of a dashboard, or of rules."""
    if isinstance(value, dict):
        yield from (value[key] for key in ("expr",) if key in value)
        yield from (one for part in value.values() for one in queries(part))
    elif isinstance(value, list):
        yield from (one for part in value for one in queries(part))


def test_every_query_of_the_dashboard(scraped: str) -> None:
    """Its metrics, labels and values are on the page."""
    dashboard = json.loads(DASHBOARD.read_text())
    found = list(queries(dashboard))
    assert len(found) > 30
    for expression in found:
        check(expression, labels(scraped))
    for variable in dashboard["templating"]["list"]:
        for name in re.findall(r"label_values\((\w+),", str(variable.get("definition", ""))):
            assert name in labels(scraped)


def test_the_dashboard_can_be_drawn() -> None:
    """Panels have ids of their own and lie side by side, and all ask the data source that is chosen."""
    dashboard = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        area = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not area & taken, panel["title"]
        taken |= area
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert all(target["legendFormat"] for target in panel["targets"])


def test_every_alert(scraped: str) -> None:
    """The rules ask for what there is, and the page lists each with its severity."""
    (group,) = yaml.safe_load(ALERTS.read_text())["spec"]["groups"]
    for rule in group["rules"]:
        # `up` is Prometheus's own.
        if not rule["expr"].startswith("up{"):
            check(rule["expr"], labels(scraped))
    rows = re.findall(r"^\| `(NotebookRunner\w+)` \| (\w+) \|", PAGE.read_text(), re.MULTILINE)
    assert rows == [(rule["alert"], rule["labels"]["severity"]) for rule in group["rules"]]


def test_the_page_lists_every_metric(scraped: str) -> None:
    """Name, type, labels and meaning of each are those of the scraped page, in its order."""
    known = labels(scraped)
    told = []
    for name, meaning in re.findall(r"^# HELP (notebook_runner_\S+) (.*)$", scraped, re.MULTILINE):
        kind = re.findall(rf"^# TYPE {name} (\w+)$", scraped, re.MULTILINE)[0]
        series = f"{name}_bucket" if kind == "histogram" else name
        told.append((name, kind, known[series].keys() - {"le"}, meaning))
    rows = re.findall(
        r"^\| `(notebook_runner_\w+)` \| (\w+) \| (.*) \| (.*) \|$", PAGE.read_text(), re.MULTILINE
    )
    listed = [(name, kind, set(re.findall(r"\w+", has)), text) for name, kind, has, text in rows]
    assert listed == told


def test_queries_that_are_wrong(scraped: str) -> None:
    """The check itself finds a name, a label and a value that are not there."""
    known = labels(scraped)
    for wrong in (
        "notebook_runner_nothing",
        "sum by (nothing) (notebook_runner_runs)",
        'notebook_runner_runs{nothing="x"}',
        'notebook_runner_runs{state="nothing"}',
    ):
        with pytest.raises(AssertionError):
            check(wrong, known)
