"""Make the pictures of the README and the guides: a run in a terminal, in the page, and as HTML.

`make pictures` writes them into docs/assets/. It needs tmux and Chromium.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "docs" / "assets"
COMMANDS = Path(sys.executable).parent
COMMAND = "notebook-runner run examples/quickstart.ipynb -p games=1000 --html done.html --no-input"
COLUMNS, LINES = 98, 16
# The picture is taken when this has been printed, in the middle of the run.
MOMENT = "100,000 darts"
TIMEOUT = 120.0  # seconds
PAGE_SIZE = "860,1370"  # pixels
BROWSER_SIZE = "1100,1000"

# Rich's own format loads a font from another host.
SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def terminal(tmux: list[str]) -> str:
    """Return the terminal's content, with colours as escape sequences, in the middle of the run."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        capture = [*tmux, "capture-pane", "-p", "-e"]
        shown = subprocess.run(capture, check=True, capture_output=True, text=True)  # noqa: S603 - tmux of PATH
        if MOMENT in shown.stdout:
            return shown.stdout
        time.sleep(0.1)
    raise SystemExit(f"The terminal did not show {MOMENT!r} within {TIMEOUT:g} s")


def svg(content: str) -> str:
    """Return a picture of a terminal's content."""
    lines = [f"$ {COMMAND}", *content.rstrip().splitlines()]
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True)
        console.print(Text.from_ansi("\n".join(lines)), no_wrap=True, crop=True)
        drawn = console.export_svg(title="notebook-runner", code_format=SVG, unique_id="live")
    return "\n".join(line.rstrip() for line in drawn.splitlines()) + "\n"


def main() -> None:
    """Run the example on a server of its own, and take both pictures."""
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(  # noqa: S603 - the project's own program
            [
                COMMANDS / "notebook-runner-server",
                "--listen",
                "127.0.0.1:0",
                "--http-listen",
                "127.0.0.1:0",
                "--state-dir",
                f"{folder}/state",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        tmux = ["tmux", "-S", f"{folder}/tmux"]
        try:
            events = [json.loads(line) for line in _until_started(server)]
            http = next(event["address"] for event in events if event["event"] == "http_started")
            address = events[-1]["address"]
            program, *arguments = COMMAND.replace("done.html", f"{folder}/done.html").split()
            size = ["-x", str(COLUMNS), "-y", str(LINES)]
            environment = [f"NOTEBOOK_RUNNER_TARGET={address}", "COLORTERM=truecolor"]
            command = ["env", *environment, str(COMMANDS / program), *arguments]
            subprocess.run([*tmux, "new-session", "-d", *size, *command], cwd=ROOT, check=True)  # noqa: S603 - as above
            (ASSETS / "live.svg").write_text(svg(terminal(tmux)), encoding="utf-8")
            deadline = time.monotonic() + TIMEOUT
            while not Path(folder, "done.html").exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            _photograph("browser.png", f"http://{http}/runs/latest", BROWSER_SIZE)
        finally:
            server.terminate()
            subprocess.run([*tmux, "kill-server"], check=False, capture_output=True)  # noqa: S603 - as above
            server.wait()
        _photograph("page.png", f"file://{folder}/done.html", PAGE_SIZE)


def _until_started(server: subprocess.Popen[str]) -> Iterator[str]:
    """Yield the lines of the server's log up to the one that says that it has started."""
    for line in server.stderr or []:
        yield line
        if "state_dir" in line:
            return


def _photograph(name: str, address: str, size: str) -> None:
    """Write a picture of a page into docs/assets/, once the page has loaded what it needs."""
    browser = ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars", "--virtual-time-budget=10000"]
    options = [f"--window-size={size}", f"--screenshot={ASSETS / name}"]
    subprocess.run([*browser, *options, address], check=True, capture_output=True)  # noqa: S603 - as above


if __name__ == "__main__":
    main()
