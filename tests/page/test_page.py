"""The page as people use it, in a real browser, with a real server: follow, start, kill, and come back."""

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.gallery.browser import FAINT
from tests.page.reader import SECONDS, ServerPage, reader
from tests.support.calls import finish, inline, perform, started, struct
from tests.support.errors import refused
from tests.support.gate import Gate
from tests.support.http_client import HttpCaller
from tests.support.notebooks import code, content
from tests.support.server import Server

SHOW = """
import base64, sys, time
from IPython.display import display, HTML, Image
print("\\x1b[31mred\\x1b[0m and \\x1b[1mbold\\x1b[0m")
print("10 %\\r20 %\\r100 %")
print("careful", file=sys.stderr)
display(HTML("<table><tr><th>n</th><th>square</th></tr><tr><td>7</td><td>49</td></tr></table>"))
display(Image(base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")))
"""
PARAMETERS = """
who = "world"  # whom to greet
times = 3
ratio: float = 0.5
loud = False
names = ["a", "b"]
"""
PRINT = "print(who, times, ratio, loud, names)"
RED = "[...document.querySelectorAll('.text span')].find((one) => one.innerText === 'red')"
HOSTILE = "<img src=x onerror='top.owned=1'><script>top.owned=1</script>"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, notebook_root: Path) -> Iterator[Server]:
    """A server with the page."""
    options = ["--notebook-root", str(notebook_root), "--default-notebook", "default.ipynb", "--queue", "5"]
    with Server(tmp_path_factory.mktemp("state"), *options, "--http-listen", "127.0.0.1:0") as running:
        yield running


@pytest.fixture(scope="module")
def page(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerPage]:
    """A reader of that server's page."""
    with reader(tmp_path_factory.mktemp("profile"), server.http) as found:
        yield found


@pytest.fixture(scope="module")
def failed(server: Server) -> pb.Run:
    """A run that failed."""
    request = inline(
        code("size = 1", "parameters"),
        SHOW,
        "1 / 0",
        name="report",
        labels={"team": "blue"},
        parameters=struct({"size": 2}),
    )
    return perform(server.stub, request).run


def test_runs_appear_as_they_come(server: Server, page: ServerPage, failed: pb.Run, gate: Gate) -> None:
    """The list has the runs there are, and each change, without a reload."""
    page.open("/")
    page.sees(failed.name, ".row")
    page.sees("failed", ".row .state")
    with started(server.stub, inline(gate.source, name="a late run")) as run:
        page.sees("a late run", ".row")
        page.sees("running", ".row .state")
        gate.open()
        finish(server.stub, run.run_id)
        page.until(
            "![...document.querySelectorAll('.row .state')].some((one) => one.innerText === 'running')"
        )
    page.keep("runs")
    server.stub.Delete(pb.DeleteRequest(run_id=run.run_id))
    page.until("!document.querySelector('main').innerText.includes('a late run')")
    page.click("report", ".row")
    page.sees_state("failed")
    assert page.address() == f"/runs/{failed.run_id}"


def test_a_filter_is_part_of_the_address(server: Server, page: ServerPage, failed: pb.Run) -> None:
    """State, label and caller select runs, and a link keeps them."""
    perform(server.stub, inline("pass", name="fine", labels={"team": "red"}))
    page.open("/")
    page.sees("fine", ".row")
    page.type("label", "team=blue" + Keys.ENTER)
    page.until("document.querySelectorAll('.row').length === 1")
    assert page.address() == "/?label=team%3Dblue"
    page.sees("report", ".row")
    page.open("/?state=succeeded&label=team%3Dred")
    page.until("document.querySelectorAll('.row').length === 1")
    page.sees("fine", ".row")
    page.open("/?owner=nobody")
    page.sees("No runs match the filter.")
    page.open(f"/?state=failed&label=team%3D{failed.labels['team']}")
    page.sees("report", ".row")


def test_output_comes_live(server: Server, page: ServerPage, gate: Gate) -> None:
    """Text with colours and carriage returns, tables and pictures are there while the cell runs."""
    with started(server.stub, inline(f"{SHOW}\n{gate.source}", "print('the end')", name="live")) as run:
        page.open_run(run)
        page.sees_state("running")
        page.sees("red and bold", ".text.stdout")
        page.until(f"getComputedStyle({RED}).color === 'rgb(179, 38, 30)'")
        page.sees("100 %", ".text.stdout")
        assert "20 %" not in page.until("document.querySelector('.timeline').innerText")
        page.sees("careful", ".text.stderr")
        page.until("document.querySelector('img.rich').naturalWidth === 1")
        page.until("document.querySelector('iframe.rich').getAttribute('sandbox') === ''")
        with page.browser.frame():
            page.until("document.body.innerText.includes('49')")
        page.keep("live")
        gate.open()
        page.sees_state("succeeded")
        page.sees("the end", ".text.stdout")
        page.until("document.querySelector('progress').value === 2")
        page.until("document.querySelector('[role=status]').innerText === 'Run live: succeeded'")


def test_a_failure_has_its_cell_and_traceback(page: ServerPage, failed: pb.Run) -> None:
    """The page says why a run failed, shows the cell, and what it was given."""
    page.open_run(failed)
    page.sees("ZeroDivisionError: division by zero", ".failure p")
    page.sees("ZeroDivisionError", ".failure pre")
    page.click(f"Show cell {failed.failure.cell_index}")
    page.sees("1 / 0", ".cell.failed code")
    page.sees('{"size":2}' if '"size":2' in failed.parameters_json else failed.parameters_json, ".values")
    page.keep("failed")


def test_the_executed_notebook_is_in_a_sandboxed_frame(page: ServerPage, failed: pb.Run) -> None:
    """It is read with the caller's credentials, and its frame runs no scripts."""
    page.open_run(failed)
    page.click("Show it here")
    page.until("document.querySelector('iframe.notebook')?.getAttribute('sandbox') === ''")
    page.browser.driver.switch_to.frame(page.until("document.querySelector('iframe.notebook')"))
    page.until("document.body.innerText.includes('ZeroDivisionError')")
    assert page.until("getComputedStyle(document.body).fontSize"), "its styles are allowed"
    page.browser.driver.switch_to.default_content()
    page.browser.ask("document.querySelector('iframe.notebook').scrollIntoView()")
    page.keep("notebook")


def test_kill_asks_before(server: Server, page: ServerPage, gate: Gate) -> None:
    """Cancel and Escape leave the run alone; the confirmation kills it."""
    with started(server.stub, inline(gate.source, name="to kill")) as run:
        page.open_run(run)
        page.sees_state("running")
        page.click("Kill")
        assert page.findings() == []
        page.keep("kill")
        page.click("Cancel", "dialog[open]")
        page.until("!document.querySelector('dialog[open]')")
        page.click("Kill")
        page.until("document.querySelector('dialog[open]')?.contains(document.activeElement)")
        page.browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
        page.until("!document.querySelector('dialog[open]')")
        assert server.stub.Get(pb.GetRequest(run_id=run.run_id)).run.state == pb.RUN_STATE_RUNNING
        page.click("Kill")
        page.click("Kill the run", "dialog[open]")
        page.sees_state("killed")
        assert server.stub.Get(pb.GetRequest(run_id=run.run_id)).run.state == pb.RUN_STATE_KILLED


def test_delete_asks_before(server: Server, page: ServerPage) -> None:
    """Cancel leaves the run alone; the confirmation deletes it, and the list without it is shown."""
    run = perform(server.stub, inline("1", name="to delete")).run
    page.open_run(run)
    page.click("Delete")
    assert page.findings() == []
    page.keep("delete")
    page.click("Cancel", "dialog[open]")
    page.until("!document.querySelector('dialog[open]')")
    assert server.stub.Get(pb.GetRequest(run_id=run.run_id)).run == run
    page.click("Delete")
    page.click("Delete the run", "dialog[open]")
    page.sees("Runs", "h1")
    page.until("document.querySelector('.row, .empty')")
    page.until("!document.querySelector('main').innerText.includes('to delete')")
    assert page.address() == "/"
    gone = refused(lambda: server.stub.Get(pb.GetRequest(run_id=run.run_id)))
    assert gone.kind == (grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND")
    page.open_run(run)
    page.sees("Unknown run", "[role=alert]")


def test_a_form_is_made_of_the_parameters(server: Server, page: ServerPage, tmp_path: Path) -> None:
    """A file's parameters are fields with defaults; what is changed is sent, with its type."""
    (tmp_path / "greet.ipynb").write_bytes(content(code(PARAMETERS, "parameters"), PRINT))
    page.open("/start")
    page.until("document.getElementsByName('file')[0]").send_keys(str(tmp_path / "greet.ipynb"))
    page.sees("whom to greet")
    page.keep("start")
    assert page.findings() == []
    page.type("p:who", "you\\ \"'")
    page.type("p:times", "123456789012345678901")
    page.until("document.getElementsByName('p:loud')[0]").click()
    page.click("Start", "form")
    page.sees_state("succeeded")
    run = server.stub.Get(pb.GetRequest(run_id=page.address().removeprefix("/runs/"))).run
    assert run.name == "greet"
    assert json.loads(run.parameters_json) == {
        "who": "you\\ \"'",
        "times": 123456789012345678901,
        "loud": True,
    }
    page.sees("you\\ \"' 123456789012345678901 0.5 True ['a', 'b']", ".text.stdout")


def test_run_again_with_other_parameters(server: Server, page: ServerPage) -> None:
    """The form has the notebook and the parameters of the run, exactly; a new value replaces one of them."""
    given = '{"times": 1.0, "names": {"x": [NaN, 9007199254740993]}}'
    request = inline(code(PARAMETERS, "parameters"), PRINT, name="again", parameters_json=given)
    first = perform(server.stub, request).run
    page.open_run(first)
    page.click("Run again")
    page.until("document.getElementsByName('p:names')[0]")
    page.type("p:who", "me")
    page.click("Start", "form")
    page.sees_state("succeeded")
    second = server.stub.Get(pb.GetRequest(run_id=page.address().removeprefix("/runs/"))).run
    assert second.run_id != first.run_id
    page.sees("me 1.0 0.5 False {'x': [nan, 9007199254740993]}", ".text.stdout")


def test_a_wrong_value_is_refused_before_it_is_sent(page: ServerPage, tmp_path: Path) -> None:
    """The error names the parameter and what was given."""
    (tmp_path / "greet.ipynb").write_bytes(content(code(PARAMETERS, "parameters"), PRINT))
    page.open("/start")
    page.until("document.getElementsByName('file')[0]").send_keys(str(tmp_path / "greet.ipynb"))
    page.sees("whom to greet")
    page.type("p:times", "many")
    page.click("Start", "form")
    page.sees("times must be a number (got many).", "[role=alert]")
    page.type("p:times", "4")
    page.type("p:names", "['x']")
    page.click("Start", "form")
    page.sees("names must be JSON", "[role=alert]")


def test_the_parameters_of_a_path_come_from_the_server(page: ServerPage) -> None:
    """A name that the notebook does not have is refused, and then there are fields for those that it has."""
    page.open("/start")
    page.click("Add a parameter")
    name, value = page.until("[...document.querySelectorAll('.pair input')]")
    name.send_keys("whom")
    value.send_keys('"you"')
    page.click("Start", "form")
    page.sees("Unknown parameter 'whom'", "[role=alert]")
    page.until("document.getElementsByName('p:who')[0]")


def test_hostile_texts_stay_texts(server: Server, page: ServerPage) -> None:
    """Names, labels, printed text, tables and errors of a notebook run no script and load nothing."""
    source = f"from IPython.display import display, HTML\nprint({HOSTILE!r})\ndisplay(HTML({HOSTILE!r}))"
    request = inline(source, f"raise ValueError({HOSTILE!r})", name=HOSTILE[:60], labels={"x": HOSTILE[:60]})
    run = perform(server.stub, request).run
    page.open("/")
    page.sees(HOSTILE[:20], ".row")
    page.open_run(run)
    page.sees(HOSTILE, ".text.stdout")
    page.sees(HOSTILE, ".failure")
    page.until("document.querySelector('iframe.rich')")
    page.click("Show it here")
    page.until("document.querySelector('iframe.notebook')")
    assert page.browser.ask("return [window.owned, document.querySelectorAll('main img').length]") == [
        None,
        0,
    ]


def test_the_page_has_one_stream(server: Server, page: ServerPage, gate: Gate) -> None:
    """The list's stream ends when a run is opened, and that of the run when the reader goes back."""
    with started(server.stub, inline(gate.source, name="streamed")) as run:
        page.browser.asked_for()
        page.open("/")
        page.sees("streamed", ".row")
        page.click("streamed", f".row:has([href$='{run.run_id}'])")
        page.sees_state("running")
        page.browser.driver.back()
        page.sees("streamed", ".row")
        opened, ended = set[str](), set[str]()

        def counted(_: object) -> bool:
            for entry in page.browser._log():
                message = json.loads(entry["message"])["message"]
                if message["method"] == "Network.requestWillBeSent":
                    if any(one in message["params"]["request"]["url"] for one in ("/progress", "/watch")):
                        opened.add(message["params"]["requestId"])
                elif message["method"] in ("Network.loadingFailed", "Network.loadingFinished"):
                    ended.add(message["params"]["requestId"])
            return (len(opened), len(opened - ended)) == (3, 1)

        # The browser tells of a stream that has ended a moment later.
        WebDriverWait(page.browser.driver, SECONDS, 0.1).until(counted, f"{opened} opened, {ended} ended")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_reader_can_use_it(page: ServerPage, failed: pb.Run, scheme: str) -> None:
    """Axe finds nothing, all text has contrast, and nothing is wider than a phone."""
    for path, place in [("/", ".row"), (f"/runs/{failed.run_id}", ".failure"), ("/start", "form")]:
        for width in (1200, 390):
            page.open(path, scheme, width)
            page.until("document.querySelector(arguments[0])", place)
            assert page.findings() == []
            assert page.browser.ask(FAINT) == []
            assert page.width_beyond_screen() <= 0
            page.keep(f"{path.strip('/').partition('/')[0] or 'list'}-{scheme}-{width}")


def test_the_keyboard_is_enough(page: ServerPage, failed: pb.Run) -> None:
    """Tab reaches the filter and the runs, and Enter opens one; the heading has the focus then."""
    page.open("/")
    page.sees(failed.name, ".row")
    reached = []
    for _ in range(12):
        page.browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(
            page.browser.ask("return document.activeElement.innerText || document.activeElement.name")
        )
        if page.browser.ask("return document.activeElement.matches('.row a')"):
            break
    assert reached[0] == "Skip to the content"
    assert {"label", "owner"} < set(reached)
    page.browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    page.until("document.querySelector('.progress')")
    page.until("document.activeElement.tagName === 'H1'")


def test_nothing_is_loaded_from_elsewhere(server: Server, page: ServerPage, failed: pb.Run) -> None:
    """The page asks this server only, and its policy forbids all else and complains of nothing."""
    page.browser.asked_for()
    for path in ("/", f"/runs/{failed.run_id}", "/start"):
        page.open(path)
        page.until("document.querySelector('h1')")
    page.open_run(failed)
    page.sees_state("failed")
    assert {one.split("/")[2] for one in page.browser.asked_for()} == {server.http}
    assert page.browser.complaints() == ""
    policy = HttpCaller(server.http).get("/").headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; ")
    assert "frame-ancestors 'none'" in policy
    assert "script-src 'self' " not in policy


def test_a_run_that_does_not_exist(page: ServerPage) -> None:
    """The server's error is shown."""
    page.open("/runs/20000101-000000-00000000")
    page.until("document.querySelector('[role=alert]')")
