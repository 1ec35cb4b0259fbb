"""What a reader sees: pages in a real browser, light and dark, with pictures kept for people to look at."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.export import hostile
from tests.gallery.browser import FAINT, Browser, chromium
from tests.gallery.notebooks import ATTACK, SHOW
from tests.support.calls import artefact, inline, perform, struct
from tests.support.server import Server

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "examples" / "quickstart.ipynb"
# Not in the repository: for people, and kept by CI.
KEPT = ROOT / "test-artefacts"
SCHEMES = ["light", "dark"]
# What the slides are shown by, as docs/how-to/results.md says.
REVEAL = "https://unpkg.com/reveal.js@4.0.2/"
PICTURES = """
return [...document.images].filter((one) => one.naturalWidth > 0).map((one) => one.getBoundingClientRect())
  .filter((box) => box.width > 100 && box.height > 100).length
"""
OWNED = "return document.documentElement.dataset.owned || (document.title === 'owned' ? 'focus' : null)"
WAYS_OUT = """
return [...document.querySelectorAll('iframe, object, embed, form, input, link, base, [onerror], [onload]')]
  .map((one) => one.outerHTML.slice(0, 200)).concat([...document.links]
  .filter((one) => !/^(https?|file|mailto):$/.test(one.protocol)).map((one) => one.href.slice(0, 200)))
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all pages."""
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


TRIED = """
for (const one of document.querySelectorAll('body *')) {
  for (const kind of ['mouseover', 'focus', 'pointerrawupdate', 'toggle', 'begin', 'error', 'load'])
    one.dispatchEvent(new Event(kind, {bubbles: true}));
}
// Links lead elsewhere when a reader wants them to; others may do nothing.
for (const one of document.links) if (!/^(https?|mailto|file):$/.test(one.protocol)) one.click();
"""

Page = Callable[..., Path]


@pytest.fixture(scope="module")
def page(server: Server, browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Page:  # noqa: ARG001 - without a browser no run is needed
    """Gives the file of an artefact of a notebook that was executed by the server, each executed once."""
    folder = tmp_path_factory.mktemp("pages")
    requests = {
        "quickstart": pb.StartRequest(
            notebook_content=QUICKSTART.read_bytes(), parameters=struct({"games": 5, "largest": 20_000})
        ),
        "attack": inline(*ATTACK, allow_errors=True),
        "show": inline(*SHOW, allow_errors=True),
    }
    ended: dict[str, pb.Run] = {}

    def made(name: str, to: str = "html", *, omit_input: bool = False) -> Path:
        if name not in ended:
            ended[name] = perform(server.stub, requests[name]).run
            assert ended[name].state == pb.RUN_STATE_SUCCEEDED
        path = folder / f"{name}-{to}-{omit_input}.html"
        path.write_bytes(artefact(server.stub, ended[name].run_id, format=to, omit_input=omit_input))
        return path

    return made


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_quickstart_can_be_seen(browser: Browser, page: Page, scheme: str) -> None:
    """Its plot, table and formula are there in their size, and nothing is asked of anybody."""
    browser.open(page("quickstart"), scheme)
    browser.keep(KEPT / f"quickstart-{scheme}.png")
    assert browser.ask(PICTURES) == 1
    assert browser.ask("return document.querySelectorAll('table.dataframe tbody tr').length") >= 8
    assert browser.ask("return document.querySelector('table').getBoundingClientRect().width") > 100
    assert browser.ask("return document.querySelector('math').getBoundingClientRect().width") > 20
    assert browser.ask("return document.title") == "How many darts does it take to know π?"
    assert browser.ask("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.asked_for() == []


@pytest.mark.parametrize("name", ["quickstart", "show"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_everything_can_be_read(browser: Browser, page: Page, scheme: str, name: str) -> None:
    """Code, tables, coloured cells, ANSI colours and tracebacks stand out from their ground."""
    browser.open(page(name), scheme)
    browser.keep(KEPT / f"{name}-{scheme}.png")
    ground = browser.ask("return getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 17, 17)"}[scheme]
    assert browser.ask(FAINT) == []


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("to", ["html", "slides"])
def test_nothing_of_a_notebook_runs(browser: Browser, page: Page, to: str, scheme: str) -> None:
    """A notebook that tries every way in has its words shown, runs nothing, and asks for nothing."""
    browser.open(page("attack", to), scheme)
    asked = [url for url in browser.asked_for() if not (to == "slides" and url.startswith(REVEAL))]
    browser.keep(KEPT / f"attack-{to}-{scheme}.png")
    words = browser.ask("return document.body.textContent")
    assert [way for way in ("markdown", "html", "markdown-output") if f"words of {way}" not in words] == []
    assert browser.ask(OWNED) is None
    assert [way for way in browser.ask(WAYS_OUT) if not (to == "slides" and REVEAL in way)] == []
    assert asked == []


@pytest.mark.parametrize("to", ["html", "slides"])
def test_nothing_runs_without_the_policy(browser: Browser, tmp_path: Path, to: str) -> None:
    """What cleans a page needs no help: with the policy taken out, nothing runs or is asked for."""
    cells = [cell for markup in hostile.MARKUP for cell in hostile.everywhere(markup)]
    pages = [hostile.document(*cells), *map(hostile.in_metadata, hostile.WORDS)]
    for number, node in enumerate(pages):
        html, policies = re.subn(
            r"<meta[^>]*Content-Security-Policy[^>]*>", "", hostile.page(tmp_path, node, to)
        )
        assert policies == 1
        opened = tmp_path / f"{number}.html"
        opened.write_text(html)
        browser.open(opened)
        # What waits for a reader: the pointer, the focus, an element that opens.
        browser.ask(TRIED)
        asked = [url for url in browser.asked_for() if not (to == "slides" and url.startswith(REVEAL))]
        assert asked == []
        assert browser.ask("return window.ran === undefined && document.title.length > 0")
        assert browser.ask("return document.body.textContent.length > 0")


def test_a_browser_without_the_policy_runs_what_is_not_cleaned(browser: Browser, tmp_path: Path) -> None:
    """The attacks are some: most of them run or load when nobody cleans them."""
    ran = 0
    for number, markup in enumerate(hostile.MARKUP[:8]):
        opened = tmp_path / f"{number}.html"
        opened.write_text(f"<!DOCTYPE html><body>{markup}")
        browser.open(opened)
        ran += browser.ask("return window.ran === 1") or bool(browser.asked_for())
    assert ran >= 5


def test_without_input_the_results_are_left(browser: Browser, page: Page) -> None:
    """No code and no prompt is on the page, and the plot and the table are."""
    browser.open(page("quickstart", omit_input=True))
    browser.keep(KEPT / "quickstart-no-input.png")
    assert browser.ask("return document.querySelectorAll('.jp-InputArea-editor').length") == 0
    assert "In [" not in browser.ask("return document.body.innerText.replaceAll('\\u00a0', ' ')")
    assert browser.ask(PICTURES) == 1
    assert browser.ask("return document.querySelectorAll('table.dataframe').length") == 1
