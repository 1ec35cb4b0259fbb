"""Widgets are shown as the notebook has saved them."""

import re
from pathlib import Path
from typing import Any

import pytest
from nbformat import NotebookNode

from notebook_runner_server.export.widgets import STATE, VIEW, static_widget
from tests.export.hostile import MARKUP, faults
from tests.export.test_formats import converted
from tests.support.notebooks import code, notebook

PNG = "iVBORw0KGgo="


def models(**found: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """Return models by id, each given by its name and its values."""
    return {name: {"model_name": f"{kind}Model", "state": values} for name, (kind, values) in found.items()}


BAR = models(
    bar=("HBox", {"children": ["IPY_MODEL_left", "IPY_MODEL_mid", "IPY_MODEL_right"]}),
    left=("HTML", {"value": "done:\u2007100%"}),
    mid=("FloatProgress", {"value": 5.0, "max": 5.0}),
    right=("HTML", {"value": " 5/5 [00:00&lt;00:00]"}),
)


def showing(state: dict[str, Any], model_id: str, text: str = "  0%|   |") -> NotebookNode:
    """Return a notebook that shows a widget, with the text of its creation."""
    cell = code("1")
    cell.outputs = [
        NotebookNode(
            output_type="display_data",
            metadata={},
            data={VIEW: {"model_id": model_id, "version_major": 2}, "text/plain": text},
        )
    ]
    return notebook(cell, widgets={STATE: {"version_major": 2, "version_minor": 0, "state": state}})


@pytest.mark.integration
def test_a_bar_of_tqdm_is_finished(tmp_path: Path) -> None:
    """A finished bar is full in a page and as text, although the text beside it is the first one."""
    node = showing(BAR, "bar")
    html = converted(tmp_path, node, "html")
    assert re.search(r'<progress (?=[^>]*max="1")[^>]*value="1.000000"', html)
    assert "5/5 [00:00&lt;00:00]" in html
    text = converted(tmp_path, node, "markdown")
    assert f"done: 100%|{'█' * 20}| 5/5 [00:00<00:00]" in text
    for found in (html, text):
        assert "  0%|" not in found


@pytest.mark.integration
@pytest.mark.parametrize("state", [{}, {"bar": {}}, {"bar": []}, {"bar": {"state": 1}}])
def test_a_widget_that_was_not_saved_is_a_box(tmp_path: Path, state: dict[str, Any]) -> None:
    """Without a state, a box names the widget, with the text beside it."""
    html = converted(tmp_path, showing(state, "bar", "IntSlider(value=3)"), "html")
    assert "<strong>Widget</strong>: not shown" in html
    assert "IntSlider(value=3)" in html


@pytest.mark.integration
def test_a_control_says_that_it_is_one(tmp_path: Path) -> None:
    """A slider is its description and value, in a box that says that it does nothing."""
    state = models(slider=("IntSlider", {"description": "size", "value": 3}))
    html = converted(tmp_path, showing(state, "slider"), "html")
    assert "shown as it was saved: its controls need a kernel.</p>size 3" in html


@pytest.mark.integration
@pytest.mark.parametrize("markup", MARKUP)
def test_a_saved_widget_is_sanitized(tmp_path: Path, markup: str) -> None:
    """What a widget has saved runs no more than any other output."""
    state = models(
        box=("VBox", {"children": ["IPY_MODEL_a", "IPY_MODEL_b", "IPY_MODEL_c"]}),
        a=("HTML", {"value": markup, "description": markup}),
        b=("Output", {"outputs": [{"output_type": "display_data", "data": {"text/html": markup}}]}),
        c=("Label", {"value": markup}),
    )
    assert list(faults(converted(tmp_path, showing(state, "box"), "html"))) == []


@pytest.mark.parametrize(
    ("kind", "values", "text"),
    [
        ("IntProgress", {"value": 1, "min": 0, "max": 4, "description": "a"}, f"a |{'█' * 5}{' ' * 15}|"),
        ("FloatProgress", {"value": 9, "min": 3, "max": 3}, f"|{' ' * 20}|"),
        ("Label", {"value": "<b>"}, "<b>"),
        ("HTML", {"value": "<b>x</b> &amp; y", "description": "d"}, "d x & y"),
        ("Dropdown", {"_options_labels": ["one", "two"], "index": 1, "description": "d"}, "d two"),
        ("IntRangeSlider", {"value": [1, 5]}, "1 to 5"),
        ("Checkbox", {"value": True, "description": "on"}, "on yes"),
        ("Button", {"button_style": "", "description": "Go"}, "[Go]"),
        ("Output", {"outputs": [{"output_type": "stream", "text": "a\n"}, 3]}, "a"),
        ("Output", {"outputs": [{"output_type": "error", "ename": "E", "evalue": "v"}]}, "E: v"),
        ("Output", {"outputs": [{"output_type": "display_data", "data": {"text/plain": ["a", "b"]}}]}, "ab"),
    ],
)
def test_each_kind_has_a_text(kind: str, values: dict[str, Any], text: str) -> None:
    """The widgets that many notebooks use are readable without a picture."""
    found = static_widget(models(x=(kind, values)), "x")
    assert found is not None
    assert found.text == text


def test_a_captured_widget_is_one() -> None:
    """A widget that is displayed within an output widget is shown as well."""
    view = {"data": {VIEW: {"model_id": "b"}, "text/plain": "HTML(...)"}, "output_type": "display_data"}
    found = static_widget(models(a=("Output", {"outputs": [view]}), b=("HTML", {"value": "<b>x</b>"})), "a")
    assert found is not None
    assert found.html == "<div><b>x</b></div>"
    assert found.text == "x"


def test_pictures_are_pictures() -> None:
    """Images of a widget and of a captured output are in the page."""
    state = models(
        image=("Image", {"format": "png"}), out=("Output", {"outputs": [{"data": {"image/png": PNG}}]})
    )
    state["image"]["buffers"] = [{"encoding": "base64", "path": ["value"], "data": PNG}]
    for name in ("image", "out"):
        found = static_widget(state, name)
        assert found is not None
        assert f'<img src="data:image/png;base64,{PNG}">' in found.html


@pytest.mark.parametrize(
    "state",
    [
        models(x=("HBox", {"children": ["IPY_MODEL_x", "IPY_MODEL_x"]})),
        models(x=("Figure", {"value": {"a": 1}})),
        models(x=("HBox", {"children": "none"})),
        models(x=("Image", {})),
    ],
)
def test_what_cannot_be_shown_is_nothing(state: dict[str, Any]) -> None:
    """Models that contain themselves, and unknown ones, have no static form."""
    assert static_widget(state, "x") is None
    assert static_widget(state, ["x"]) is None
