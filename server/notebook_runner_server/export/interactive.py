"""The page with scripts: what of a notebook's outputs runs in it, and the frame that confines them.

The scripts of a notebook run in a sandboxed frame of their own origin, and a policy forbids every request. So
only that runs which is in the page: scripts in the outputs themselves, and the libraries of Plotly and Bokeh
if they are installed beside the server.
"""

from __future__ import annotations

import html
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from notebook_runner_server.export.markup import is_blank, sanitize_html
from notebook_runner_server.export.representation import HTML, LOADER, LOADER_LOGO

PLOTLY = "application/vnd.plotly.v1+json"
_JAVASCRIPT = "application/javascript"
_BOKEH = re.compile(r"application/vnd\.bokehjs_exec\.v\d+\+json")

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; media-src data: blob:; font-src data:; worker-src blob:; "
    "form-action 'none'; base-uri 'none'"
)
"""The content security policy of the page, which its frame inherits: nothing loads."""

_SCRIPTED = re.compile(
    r"<(?:script|canvas|iframe|form|input|button|select|textarea)\b|\son[a-z]+\s*=", re.IGNORECASE
)
# A script that is elsewhere, as an element or in the lists that loaders of libraries have, except MathJax,
# which plots do without.
_ELSEWHERE = re.compile(
    r"<script\b[^>]*\ssrc\s*=\s*[\"']?\s*(?:https?:)?//(?![^\s\"'>]*mathjax)"
    r"|&lt;script\b[^>]{0,500}\ssrc=&quot;(?:https?:)?//"
    r"|[\"']https?://(?:cdn\.jsdelivr\.net/npm/|unpkg\.com/|cdnjs\.cloudflare\.com/|cdn\.bokeh\.org/)"
    r"(?![^\"']*mathjax)[^\"']{0,200}(?:\.js|noext)[\"']",
    re.IGNORECASE,
)
_LIBRARY = 200_000
"""Length of a text that has a library in it, whatever that may load when it is asked to."""

# Links within a page resolve against the address of the page around the frame, so that they lead nowhere.
_JUMP = """
document.addEventListener("click", (event) => {
  const link = event.target.closest?.('a[href^="#"]');
  const target = link && document.getElementById(decodeURIComponent(link.getAttribute("href").slice(1)));
  if (target) {
    event.preventDefault();
    target.scrollIntoView();
  }
});
"""

_FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8" />
<meta http-equiv="Content-Security-Policy" content="{policy}" />
<meta name="viewport" content="width=device-width, initial-scale=1.0">
<meta name="color-scheme" content="light dark" />
<title>{title}</title>
<style>
html, body {{ height: 100%; margin: 0; overflow: hidden; }}
iframe {{ display: block; width: 100%; height: 100%; border: 0; }}
</style>
</head>
<body>
<iframe sandbox="allow-scripts" referrerpolicy="no-referrer" title="{title}" srcdoc="{page}"></iframe>
</body>
</html>
"""


def framed(title: str, page: str) -> str:
    """Return a page that shows another one in a sandboxed frame.

    Args:
        title: The title of both.
        page: The page for the frame, with scripts.
    """
    return _FRAME.format(policy=html.escape(POLICY), title=html.escape(title), page=html.escape(page))


class ScriptedOutputs:
    """The outputs of a page that run scripts, in order.

    Attributes:
        found: The HTML of each, with its scripts.
    """

    def __init__(self) -> None:
        self.found: list[str] = []
        self._plotly = _files("plotly", "package_data/plotly.min.js")
        self._bokeh = _files("bokeh", *(f"server/static/js/bokeh{part}.min.js" for part in _BOKEH_PARTS))
        self._has_plotly = self._has_bokeh = self._has_loader = False

    def add(self, data: Mapping[str, Any]) -> bool:
        """Add an output if it needs scripts that the page has; return whether it does."""
        made = self._made(data)
        if made is None:
            return False
        self.found.append(made)
        return True

    def head(self) -> Iterator[str]:
        """Yield the scripts that go before the notebook: ours, and the libraries that its outputs need."""
        yield _script(_JUMP)
        needed = (self._plotly if self._has_plotly else []) + (self._bokeh if self._has_bokeh else [])
        for path in needed:
            yield _script(path.read_text(encoding="utf-8"))

    def _made(self, data: Mapping[str, Any]) -> str | None:
        code, text = str(data.get(_JAVASCRIPT, "")), str(data.get(HTML, ""))
        if any(map(LOADER.fullmatch, data)):
            # Bokeh's loader has the library in it only if the notebook asked for that.
            self._has_loader = self._has_loader or not _is_elsewhere(code)
            return _script(code) if self._has_loader and not self._bokeh else None
        if any(map(_BOKEH.fullmatch, data)):
            self._has_bokeh = bool(self._bokeh)
            return _script(code) if self._has_bokeh or self._has_loader else None
        if isinstance(data.get(PLOTLY), dict) and data[PLOTLY] and self._plotly:
            self._has_plotly = True
            return self._element(
                f"Plotly.newPlot(element, Object.assign({{config: {{}}}}, {_json(data[PLOTLY])}))"
            )
        if text and not _is_elsewhere(text) and not LOADER_LOGO.search(text):
            needs_scripts = _SCRIPTED.search(text) or is_blank(sanitize_html(text))
            return text if needs_scripts else None
        if code and HTML not in data and not _is_elsewhere(code):
            return self._element(code)
        return None

    def _element(self, code: str) -> str:
        """Return an element for an output, and a script that finds it as `element`."""
        name = f"nbr-output-{len(self.found)}"
        return f'<div id="{name}"></div>' + _script(
            f"(function (element) {{\n{code}\n}})(document.getElementById({json.dumps(name)}));"
        )


_BOKEH_PARTS = ("", "-gl", "-widgets", "-tables", "-mathjax")


def _is_elsewhere(text: str) -> bool:
    """Return whether an output loads its scripts."""
    return len(text) < _LIBRARY and _ELSEWHERE.search(text) is not None


def _files(package: str, *names: str) -> list[Path]:
    """Return files of a package that is installed beside the server; empty: it is not, or has others."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return []
    folder = Path(found.submodule_search_locations[0])
    paths = [folder / name for name in names]
    return paths if all(path.is_file() for path in paths) else []


def _script(code: str) -> str:
    # Neither an end of the element nor a comment may be in its text.
    safe = re.sub(r"<(?=/script|!--)", r"\\x3c", code, flags=re.IGNORECASE)
    return f"<script>\n{safe}\n</script>"


def _json(value: Any) -> str:
    return json.dumps(value).replace("<", "\\u003c")
