"""A reader of the page: a browser at the address of a server."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    JavascriptException,
    StaleElementReferenceException,
)
from selenium.webdriver.support.wait import WebDriverWait

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.gallery.browser import Browser, chromium

SECONDS = 300
# Not in the repository: for people, and kept by CI.
KEPT = Path(__file__).parents[2] / "test-artefacts"
AXE = (Path(__file__).parent / "axe.min.js").read_text(encoding="utf-8")
FINDINGS = """
const done = arguments[0];
axe.run(document, {iframes: false, resultTypes: ['violations']}).then((found) => done(found.violations.map(
  (one) => `${one.id}: ${one.help}: ${one.nodes.map((node) => node.html).join(' | ').slice(0, 300)}`)),
  (error) => done([String(error)]));
"""
CLICKABLE = """
return [...document.querySelectorAll(`${arguments[0]} :is(a, button, summary, label)`)]
  .find((one) => one.getClientRects().length
    && (one.querySelector('.title') ?? one).innerText.trim() === arguments[1])
"""
# The page is drawn while it is asked.
NOT_YET = (JavascriptException, StaleElementReferenceException)
WIDER = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"


class ServerPage:
    """Reads and uses the page of one server.

    Attributes:
        browser: The browser.
    """

    def __init__(self, browser: Browser, address: str) -> None:
        self.browser = browser
        self._address = address

    def open(self, path: str, scheme: str = "light", width: int = 1200) -> None:
        """Opens an address of the page, for a reader who likes it light or dark."""
        driver = self.browser.driver
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.browser.resize(width)
        self.browser.complaints()
        driver.get(f"http://{self._address}{path}")

    def open_run(self, run: pb.Run, **options: Any) -> None:
        """Opens the page of a run."""
        self.open(f"/runs/{run.run_id}", **options)

    def until(self, script: str, *arguments: Any, seconds: float = SECONDS) -> Any:
        """Waits until a script of one expression gives something that is true, and returns it.

        What it asks of an element that is not there yet is not true yet.
        """
        driver = self.browser.driver
        return WebDriverWait(driver, seconds, 0.1, NOT_YET).until(
            lambda _: driver.execute_script(f"return {script}", *arguments), f"never true: {script}"
        )

    def sees(self, text: str, place: str = "main") -> None:
        """Waits until a place of the page has a text."""
        self.until(
            "[...document.querySelectorAll(arguments[0])]"
            ".some((one) => one.innerText.includes(arguments[1]))",
            place,
            text,
        )

    def sees_state(self, state: str) -> None:
        """Waits until the run is in a state."""
        self.sees(state, ".heading .state")

    def click(self, text: str, place: str = "main") -> None:
        """Clicks what has a text, as soon as it can be clicked."""
        driver = self.browser.driver

        def clicked(_: object) -> bool:
            found = driver.execute_script(CLICKABLE, place, text)
            if found is not None:
                found.click()
            return found is not None

        covered = (ElementClickInterceptedException, ElementNotInteractableException)
        WebDriverWait(driver, SECONDS, 0.1, (*NOT_YET, *covered)).until(clicked, f"never clicked: {text}")

    def type(self, name: str, text: str) -> None:
        """Types into a field, in the place of what is there."""
        field = self.until("document.getElementsByName(arguments[0])[0]", name)
        field.clear()
        field.send_keys(text)

    def address(self) -> str:
        """The address of the page, without the server."""
        return self.browser.driver.current_url.removeprefix(f"http://{self._address}")

    def findings(self) -> list[str]:
        """What axe finds hard to use for some readers."""
        self.browser.ask(AXE)
        found: list[str] = self.browser.driver.execute_async_script(FINDINGS)
        return found

    def width_beyond_screen(self) -> int:
        """How many pixels the page is wider than the screen."""
        found: int = self.browser.ask(WIDER)
        return found

    def keep(self, name: str) -> None:
        """Keeps a picture of the page for people."""
        self.browser.keep(KEPT / f"page-{name}.png")


@contextmanager
def reader(profile: Path, address: str) -> Iterator[ServerPage]:
    """A reader between `with` and its end."""
    with chromium(profile) as browser:
        browser.driver.set_script_timeout(SECONDS)
        yield ServerPage(browser, address)
