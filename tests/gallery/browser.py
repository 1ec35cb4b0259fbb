"""A headless Chromium that opens a page as a reader does, and tells what is in it and what it asked for."""

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

from tests.support.tools import IS_CI

SECONDS = 300
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--window-size=1000,900"),
    # Slides name a script there. It is refused without a question, however slow a network is.
    "--host-resolver-rules=MAP unpkg.com ~NOTFOUND",
)
# Every element with text of its own that is hard to read on its ground: a contrast below 3 by WCAG's formula.
FAINT = """
const parts = (text) => text.match(/[\\d.]+/g).map(Number);
const over = ([r, g, b, a = 1], ground) => [r, g, b].map((c, i) => c * a + ground[i] * (1 - a));
const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const light = (rgb) => rgb.map((c) => linear(c / 255))
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
function ground(element) {
  if (!element) return matchMedia('(prefers-color-scheme: dark)').matches ? [0, 0, 0] : [255, 255, 255];
  const own = parts(getComputedStyle(element).backgroundColor);
  return own[3] === 0 ? ground(element.parentElement) : over(own, ground(element.parentElement));
}
const found = [];
for (const element of document.querySelectorAll('body *')) {
  const text = [...element.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data.trim()).join('');
  if (!text || !element.getClientRects().length) continue;
  const below = ground(element), ink = over(parts(getComputedStyle(element).color), below);
  const [dark, bright] = [light(ink), light(below)].sort((a, b) => a - b);
  const contrast = (bright + 0.05) / (dark + 0.05);
  if (contrast < 3) found.push(`${contrast.toFixed(2)} ${element.className} ${text.slice(0, 40)}`);
}
return found;
"""


class Browser:
    """An open browser.

    Attributes:
        driver: What drives it.
    """

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, page: Path, scheme: str = "light") -> None:
        """Opens a file, for a reader who likes it light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self._log()
        self.driver.get(page.as_uri())

    def resize(self, width: int, height: int = 900) -> None:
        """Makes the window as wide as a screen, a phone's below 600."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    @contextmanager
    def frame(self) -> Iterator[None]:
        """Lets questions be about what is in the page's frame."""
        self.driver.switch_to.frame(0)
        try:
            yield
        finally:
            self.driver.switch_to.default_content()

    def ask(self, script: str) -> Any:
        """Evaluates a script that is not the page's."""
        return self.driver.execute_script(script)

    def asked_for(self) -> list[str]:
        """What the page has asked of the network or of the disk, beside itself, since it was opened."""
        told = [json.loads(entry["message"])["message"] for entry in self._log()]
        sent = [one["params"] for one in told if one["method"] == "Network.requestWillBeSent"]
        urls = [one["request"]["url"] for one in sent]
        return [url for url in urls if not url.startswith("data:")][1:]

    def complaints(self) -> str:
        """What the browser has said about the page since it was asked last, such as what a policy forbids."""
        entries: list[Any] = self.driver.get_log("browser")  # type: ignore[no-untyped-call] # selenium's
        return "\n".join(entry["message"] for entry in entries)

    def _log(self) -> list[Any]:
        entries: list[Any] = self.driver.get_log("performance")  # type: ignore[no-untyped-call] # selenium's
        return entries

    def keep(self, target: Path) -> None:
        """Keeps a picture of the whole page."""
        # The page's own measures: it lays itself out to tell them, and the browser's may be 0 until then.
        width, height = self.ask(
            "const page = document.documentElement; return [page.scrollWidth, page.scrollHeight]"
        )
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, 8000), "scale": 1}
        asked = {"captureBeyondViewport": True, "clip": clip}
        picture = self.driver.execute_cdp_cmd("Page.captureScreenshot", asked)["data"]
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(base64.b64decode(picture))


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser between `with` and its end; the test is skipped where there is none, but never in CI."""
    program, helper = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and helper):
        (pytest.fail if IS_CI else pytest.skip)("not installed: chromium, or chromedriver")
    options = ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = Chrome(options, ChromeService(helper))
    try:
        driver.set_page_load_timeout(SECONDS)
        yield Browser(driver)
    finally:
        driver.quit()
