"""What of an output a page shows: a picture or text beside what needs scripts, or a box that names it."""

import html

import pytest

from notebook_runner_server.export.representation import chosen

PNG = "iVBORw0KGgo="
SVG = '<svg width="4"><circle r="1"></circle></svg>'
SCRIPT = '<div id="a"></div><script>draw(plotly)</script>'
PLOTLY: dict[str, object] = {"application/vnd.plotly.v1+json": {"data": []}}


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ({"text/html": "<b>a</b>", "text/plain": "t"}, {"text/html": "<b>a</b>"}),
        ({"text/html": SVG, "image/svg+xml": SVG, "text/plain": "t"}, {"text/html": SVG}),
        (
            {"text/html": f"<?xml version='1.0'?>{SVG}<script>1</script>", "image/svg+xml": "x"},
            {"text/html": SVG},
        ),
        ({"text/html": SCRIPT, "image/png": PNG, "text/plain": "t"}, {"image/png": PNG}),
        ({"text/html": SCRIPT, "text/latex": "$x$"}, {"text/latex": "$x$"}),
        ({**PLOTLY, "image/png": PNG}, {"image/png": PNG}),
        ({**PLOTLY, "text/markdown": "*a*", "text/plain": "t"}, {"text/markdown": "*a*"}),
        ({"application/javascript": "1", "text/html": "<p>a</p>"}, {"text/html": "<p>a</p>"}),
        ({"text/latex": "x", "text/html": "<i>a</i>"}, {"text/html": "<i>a</i>"}),
        ({"image/gif": PNG}, {"text/html": f'<img src="data:image/gif;base64,{PNG}">'}),
        ({"image/webp": PNG, "text/plain": "t"}, {"text/plain": "t"}),
        (
            {"application/javascript": "load()", "application/vnd.bokehjs_load.v0+json": "load()"},
            {},
        ),
        ({"text/html": "<div><a class='bk-notebook-logo'></a><span>Loading BokehJS</span></div>"}, {}),
        ({"text/html": "<style>p { color: red }</style>", "text/plain": "<HTML object>"}, {}),
        ({"text/html": " ", "text/plain": "<HTML object>"}, {}),
        ({"application/vnd.bokehjs_load.v0+json": "", "application/vnd.holoviews_load.v0+json": ""}, {}),
        ({"text/plain": "t"}, {"text/plain": "t"}),
        (
            {"application/scrapbook.scrap.json+json": {"name": "total", "data": {"a": [1, None]}}},
            {"text/plain": 'total = {"a": [1, null]}'},
        ),
        ({"application/scrapbook.scrap.text+json": {"name": "a", "data": "b"}}, {"text/plain": 'a = "b"'}),
        (
            {"application/scrapbook.scrap.json+json": {"name": "total", "data": 1}, "text/plain": "t"},
            {"text/plain": "t"},
        ),
        ({}, {}),
    ],
)
def test_what_is_shown(data: dict[str, object], shown: dict[str, object]) -> None:
    """The richest representation that a page can show, and nothing where a notebook shows nothing."""
    found = chosen(data)
    assert {kind: str(content).strip() for kind, content in found.items()} == shown


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (PLOTLY, "Interactive Plotly figure"),
        ({**PLOTLY, "text/html": "<script>1</script>"}, "JavaScript output"),
        ({"text/html": SCRIPT}, "Interactive Plotly figure"),
        ({"application/vnd.vegalite.v5+json": {}}, "Interactive Vega chart"),
        ({"application/vnd.vega.v5+json": {}}, "Interactive Vega chart"),
        (
            {"application/vnd.bokehjs_exec.v0+json": "", "text/html": "<div id=x></div>"},
            "Interactive Bokeh plot",
        ),
        ({"application/vnd.jupyter.widget-view+json": {"model_id": "x"}}, "Widget"),
        ({"application/geo+json": {}}, "Map (GeoJSON)"),
        (
            {"application/javascript": "draw()", "application/vnd.bokehjs_exec.v0+json": ""},
            "Interactive Bokeh plot",
        ),
        ({"application/javascript": "alert(1)"}, "JavaScript output"),
        ({"application/vnd.<b>"[:19]: 1}, "Output of type application/vnd.&lt;b&gt;"),
        ({"text/html": "<iframe src='https://example.org'></iframe>"}, "Embedded page"),
        ({"text/html": "<img src='https://example.org/x.png'>"}, "Image or sound from another location"),
        ({"text/html": "<form><input name=a></form>"}, "Form"),
    ],
)
@pytest.mark.parametrize("text", ["", "the <text>"])
def test_a_box_names_what_is_missing(data: dict[str, object], name: str, text: str) -> None:
    """Where nothing else is there a clear box says what it is, with the text beside it."""
    found = chosen({**data, **({"text/plain": text} if text else {})})
    assert list(found) == ["text/html"]
    assert f"<p><strong>{name}</strong>: not shown, because this page runs no scripts" in found["text/html"]
    assert ("<pre>the &lt;text&gt;</pre>" in found["text/html"]) is bool(text)


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("application/vnd.plotly.v1+json", 'fig.show("png")'),
        ("application/vnd.vegalite.v6+json", 'altair.renderers.enable("png")'),
        ("application/vnd.bokehjs_exec.v0+json", "get_screenshot_as_png(plot)"),
        ("application/pdf", "open the notebook"),
    ],
)
def test_a_box_says_what_to_do(kind: str, advice: str) -> None:
    """A reader learns of the format that shows a plot, and of the call that makes a picture of it."""
    box = chosen({kind: ""})["text/html"]
    assert advice in html.unescape(box)
    assert ("html-interactive" in box) is ("plotly" in kind or "bokeh" in kind)
