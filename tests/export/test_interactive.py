"""The page with scripts: what runs in its frame, and what the frame and the policy forbid."""

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_output, new_raw_cell

from notebook_runner_server.export.banner import Banner
from notebook_runner_server.export.formats import convert
from notebook_runner_server.export.interactive import POLICY, ScriptedOutputs
from tests.export.hostile import MARKUP, faults
from tests.export.test_formats import converted, with_outputs
from tests.support.notebooks import code, notebook

FORMAT = "html-interactive"
FIGURE = {"data": [{"type": "bar", "y": [1, 2]}], "layout": {"title": {"text": "</script><b>"}}}
FRAME = re.compile(
    r'<iframe sandbox="allow-scripts" referrerpolicy="no-referrer" title="[^"]*" srcdoc="([^"]*)">'
)


def frame(page: str) -> str:
    """Return what is in the frame of a page."""
    (found,) = FRAME.findall(page)
    return html.unescape(found)


def display(**data: Any) -> NotebookNode:
    """Return a notebook with one output, given by MIME types with `_` for `/` and `__` for `+`."""
    named = {kind.replace("__", "+").replace("_", "/", 1): value for kind, value in data.items()}
    return with_outputs(new_output("display_data", data=named))


def plotly() -> NotebookNode:
    """Return a notebook with a figure of Plotly."""
    return with_outputs(
        new_output("display_data", data={"application/vnd.plotly.v1+json": FIGURE, "text/plain": "Figure"})
    )


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install small libraries in the place of Plotly's and Bokeh's, beside the server."""
    files = ["plotly/package_data/plotly.min.js"]
    files += [
        f"bokeh/server/static/js/bokeh{part}.min.js"
        for part in ("", "-gl", "-widgets", "-tables", "-mathjax")
    ]
    for name in files:
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"library('{path.name}', '</script>')")
    for package in ("plotly", "bokeh"):
        (tmp_path / "site" / package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


@pytest.mark.integration
def test_all_of_the_notebook_is_in_the_frame(tmp_path: Path) -> None:
    """The page itself has a policy, a title and one sandboxed frame; the policy is in the frame as well."""
    node = notebook(new_markdown_cell("# A <b> title"), code("words = 1"))
    page = converted(tmp_path, node, FORMAT)
    outer = FRAME.sub("", page)
    assert f'content="{html.escape(POLICY)}"' in outer
    assert f'content="{POLICY}"' in frame(page)
    assert "<title>A &lt;b&gt; title</title>" in outer
    assert "<script" not in outer
    assert "words" not in outer
    assert "words" in frame(page)


@pytest.mark.integration
@pytest.mark.parametrize("source", ["'unsafe-inline'", "allow-same-origin", "https:", "http:", "*"])
def test_the_policy_names_no_other_place(source: str) -> None:
    """Nothing is requested from anywhere; scripts are those of the page."""
    assert "default-src 'none'" in POLICY
    assert (source in POLICY) is (source == "'unsafe-inline'")


@pytest.mark.integration
def test_scripts_of_outputs_are_there(tmp_path: Path) -> None:
    """HTML with scripts, elements that they fill, and JavaScript are in the frame as they are."""
    scripted = "<div id='plot'></div><script>draw(1 < 2)</script>"
    inner = frame(converted(tmp_path, display(text_html=scripted, text_plain="the fallback"), FORMAT))
    assert scripted in inner
    assert "the fallback" not in inner
    empty = frame(converted(tmp_path, display(text_html="<div id='empty'></div>"), FORMAT))
    assert "<div id='empty'></div>" in empty
    inner = frame(converted(tmp_path, display(application_javascript="go('</script>', element)"), FORMAT))
    assert "go('\\x3c/script>', element)" in inner
    assert '<div id="nbr-output-0"></div>' in inner


@pytest.mark.integration
@pytest.mark.parametrize("markup", MARKUP)
def test_text_runs_nothing_there_either(tmp_path: Path, markup: str) -> None:
    """Only outputs run scripts: text cells, printed text and the banner are sanitized as ever."""
    cell = code(markup)
    cell.outputs = [
        new_output("stream", name="stdout", text=markup),
        new_output("display_data", data={"text/markdown": markup, "text/plain": markup}),
    ]
    raw = new_raw_cell(markup, metadata={"raw_mimetype": "text/html"})
    source, target = tmp_path / "source.ipynb", tmp_path / "target"
    source.write_text(json.dumps(notebook(new_markdown_cell(markup), cell, raw)))
    convert(FORMAT, source, target, about=Banner(markup, markup, "bad", message=markup))
    page = target.read_text()
    # The frame's own scripts are in the head.
    assert list(faults(frame(page))) == []
    plain = FRAME.sub("", converted(tmp_path, notebook("1"), FORMAT))
    assert FRAME.sub("", page).count("<") == plain.count("<")


@pytest.mark.integration
def test_no_notebook_knows_the_place_of_a_script(tmp_path: Path) -> None:
    """A text that looks like a place of an output stays text; the result is the same each time."""
    text = new_markdown_cell('<div class="nbr-scripted--0"></div> some words')
    node = display(text_html="<script>draw()</script>")
    node.cells.insert(0, text)
    first, second = (converted(tmp_path, node, FORMAT) for _ in range(2))
    assert first == second
    assert frame(first).count("draw()") == 1


@pytest.mark.integration
def test_a_figure_of_plotly_is_drawn(tmp_path: Path, libraries: None) -> None:  # noqa: ARG001 - installs them
    """Plotly's library is in the page once, before the figure, whose text ends no script."""
    node = plotly()
    node.cells[0].outputs *= 2
    inner = frame(converted(tmp_path, node, FORMAT))
    head, _, body = inner.partition("</head>")
    assert head.count("library('plotly.min.js', '\\x3c/script>')") == 1
    assert "bokeh" not in head
    assert body.count("Plotly.newPlot(element, ") == 2
    assert "\\u003c/script>\\u003cb>" in body
    assert "Figure" not in body


@pytest.mark.integration
def test_without_its_library_a_figure_is_a_picture_or_a_box(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The box says why, and does not send a reader to the format that this is."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    inner = frame(converted(tmp_path, plotly(), FORMAT))
    assert (
        "<strong>Interactive Plotly figure</strong>: not shown, because its scripts are not in the page"
        in inner
    )
    assert "html-interactive" not in inner
    node = plotly()
    node.cells[0].outputs[0].data["image/png"] = "iVBORw0KGgo="
    assert "data:image/png;base64,iVBORw0KGgo=" in frame(converted(tmp_path, node, FORMAT))


EXEC = {"application/javascript": "embed(Bokeh)", "application/vnd.bokehjs_exec.v0+json": ""}


def load(code: str) -> dict[str, str]:
    """Return Bokeh's loader with some code."""
    return {"application/javascript": code, "application/vnd.bokehjs_load.v0+json": code}


def test_a_plot_of_bokeh_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plot is drawn if its loader has the library in it, and not if the loader would request it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    outputs = ScriptedOutputs()
    assert not outputs.add(load('js_urls = ["https://cdn.bokeh.org/bokeh/release/bokeh-3.9.2.min.js"]'))
    assert not outputs.add(EXEC)
    assert outputs.add(load("Bokeh = 1"))
    assert outputs.add(EXEC)
    assert [("embed(Bokeh)" in one) for one in outputs.found] == [False, True]
    assert len(list(outputs.head())) == 1


def test_the_library_of_bokeh_beside_the_server_is_enough(libraries: None) -> None:  # noqa: ARG001 - installs them
    """No loader is executed then: it would request the library once more."""
    outputs = ScriptedOutputs()
    assert not outputs.add(load('js_urls = ["https://cdn.bokeh.org/bokeh/release/bokeh-3.9.2.min.js"]'))
    assert outputs.add(EXEC)
    assert "library('bokeh.min.js'" in list(outputs.head())[1]


@pytest.mark.parametrize(
    "text",
    [
        # A figure of Plotly asks for MathJax, and does without.
        "<div></div><script src='https://cdnjs.cloudflare.com/ajax/libs/mathjax/3/tex.js'></script><script>1</script>",
        # A library that knows other places.
        f"<script>const map = 'https://unpkg.com/map.js';{' ' * 200_000}</script>",
    ],
)
def test_html_with_its_scripts_is_shown(text: str) -> None:
    """An output with a library in it runs, whatever else it would load."""
    outputs = ScriptedOutputs()
    assert outputs.add({"text/html": text})
    assert outputs.found == [text]


@pytest.mark.parametrize(
    "text",
    [
        "<div></div><script src='https://example.org/a.js'></script>",
        '<div></div><script async src="//example.org/a.js"></script>',
        '<iframe srcdoc="&lt;script src=&quot;https://example.org/leaflet.js&quot;&gt;"></iframe>',
        '<div></div><script>load("https://cdn.jsdelivr.net/npm/vega@6?noext")</script>',
        "<a class='bk-notebook-logo'></a><script>1</script>",
        "<b>plain</b>",
        "",
    ],
)
def test_other_html_is_as_in_the_other_page(text: str) -> None:
    """HTML whose scripts are elsewhere would draw nothing, and HTML without scripts needs none."""
    assert not ScriptedOutputs().add({"text/html": text})
