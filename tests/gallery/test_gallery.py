"""What a reader sees: pages in a real browser, light and dark, with pictures kept for people to look at."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium.webdriver.support.wait import WebDriverWait

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.export import hostile
from tests.gallery.browser import FAINT, SECONDS, Browser, chromium
from tests.gallery.notebooks import ATTACK, ESCAPE, PLOTS, SHOW
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
def page(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:  # noqa: ARG001 - without a browser no run is needed
    """Gives the file of an artefact of a notebook that was executed by the server, each executed once."""
    with Server(
        tmp_path_factory.mktemp("state"), "--export-formats", "html,html-interactive,slides,pdf"
    ) as server:
        yield pages_of(server, tmp_path_factory.mktemp("pages"))


def pages_of(server: Server, folder: Path) -> Page:
    """Returns what gives the file of an artefact."""
    requests = {
        "quickstart": pb.StartRequest(
            notebook_content=QUICKSTART.read_bytes(), parameters=struct({"games": 5, "largest": 20_000})
        ),
        "attack": inline(*ATTACK, allow_errors=True),
        "show": inline(*SHOW, allow_errors=True),
        "escape": inline(*ESCAPE),
        "plots": inline(*PLOTS, parameters=struct({"rows": 12, "name": "a <name>"})),
    }
    ended: dict[str, pb.Run] = {}

    def made(name: str, to: str = "html", *, omit_input: bool = False) -> Path:
        if name not in ended:
            ended[name] = perform(server.stub, requests[name]).run
            failed = name == "plots"
            assert ended[name].state == (pb.RUN_STATE_FAILED if failed else pb.RUN_STATE_SUCCEEDED)
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


@pytest.mark.parametrize("name", ["quickstart", "show", "plots"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_everything_can_be_read(browser: Browser, page: Page, scheme: str, name: str) -> None:
    """Code, tables, coloured cells, ANSI colours and tracebacks stand out from their ground."""
    browser.open(page(name), scheme)
    browser.keep(KEPT / f"{name}-{scheme}.png")
    ground = browser.ask("return getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 17, 17)"}[scheme]
    assert browser.ask(FAINT) == []


@pytest.fixture
def phone(browser: Browser) -> Iterator[None]:
    """The width of a phone, until the test ends."""
    browser.resize(390)
    yield
    browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.usefixtures("phone")
@pytest.mark.parametrize("name", ["quickstart", "show", "plots"])
def test_a_phone_scrolls_in_one_direction(browser: Browser, page: Page, name: str) -> None:
    """Only wide parts of a page scroll sideways, never the page."""
    browser.open(page(name), "dark")
    browser.keep(KEPT / f"{name}-phone.png")
    assert browser.ask("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.ask(FAINT) == []


def test_what_needs_scripts_is_a_picture_or_a_box(browser: Browser, page: Page) -> None:
    """Each plot is its picture or one box with its name; bars are full, and there once."""
    browser.open(page("plots"))
    boxes = "return [...document.querySelectorAll('.nbr-missing strong')].map((one) => one.textContent)"
    assert browser.ask(boxes) == [
        f"Interactive {name}" for name in ("Plotly figure", "Vega chart", "Bokeh plot")
    ]
    shown = "img[src^='data:image/png'], img[src^='data:image/svg'], .jp-RenderedSVG svg"
    assert browser.ask(f'return document.querySelectorAll("{shown}").length') == 2
    assert browser.ask("return [...document.querySelectorAll('progress')].map((one) => one.value)") == [1]
    text = browser.ask("return document.body.innerText").replace("\u2007", " ")
    assert text.count("outer: 100%|") == text.count("40/40 [") == text.count("bold in a widget") == 1
    assert "inner:" not in text
    assert "Loading BokehJS" not in text


def test_a_banner_leads_to_the_failing_cell(browser: Browser, page: Page) -> None:
    """The link brings the cell to the top of the window."""
    browser.open(page("plots"))
    assert browser.ask("return document.querySelector('.nbr-state').textContent") == "Failed"
    assert "a <name>" in browser.ask("return document.querySelector('.nbr-parameters').innerText")
    browser.driver.find_element("css selector", ".nbr-message a").click()
    top = "return document.querySelector('.jp-CodeCell:last-of-type').getBoundingClientRect().top"
    WebDriverWait(browser.driver, SECONDS).until(lambda _: -5 <= browser.ask(top) < 900)


def test_scripts_run_in_a_frame_that_asks_nobody(browser: Browser, page: Page) -> None:
    """The scripts of outputs run, without storage, the page around the frame, and any request."""
    page_in_frame = page("escape", "html-interactive")
    browser.open(page_in_frame)
    with browser.frame():
        WebDriverWait(browser.driver, SECONDS).until(
            lambda _: browser.ask("return document.documentElement.dataset.tried")
        )
        done = browser.ask("return {...document.documentElement.dataset}")
        browser.ask("document.dispatchEvent(new Event('leave'))")
    assert done == {
        "tried": "yes",
        "eval": "2",
        "element": "from element",
        "fetch": "TypeError",
        "popup": "null",
        **dict.fromkeys(("cookie", "storage", "parent", "navigate"), "SecurityError"),
    }
    # It sends itself away, too; the policy of the page around it forbids that.
    WebDriverWait(browser.driver, SECONDS).until(lambda _: "violates" in browser.complaints())
    browser.keep(KEPT / "interactive-escape.png")
    assert browser.asked_for() == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_interactive_page_can_be_read(browser: Browser, page: Page, scheme: str) -> None:
    """The frame has the page with its banner, whose link works, and says what it does not have."""
    browser.open(page("plots", "html-interactive"), scheme)
    browser.keep(KEPT / f"interactive-{scheme}.png")
    with browser.frame():
        assert browser.ask(FAINT) == []
        assert browser.ask("return document.querySelector('.nbr-state').textContent") == "Failed"
        browser.driver.find_element("css selector", ".nbr-message a").click()
        WebDriverWait(browser.driver, SECONDS).until(lambda _: browser.ask("return scrollY") > 500)
        assert "html-interactive" not in browser.ask("return document.body.innerText")
    assert browser.asked_for() == []


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
