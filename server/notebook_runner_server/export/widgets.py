"""Shows widgets as the notebook has saved them: progress bars, texts and captured outputs, without scripts.

The state of all widgets is in the notebook's metadata, by the id of a model that outputs refer to. The text
beside a widget is the one of its creation, so a bar of `tqdm.notebook` would stay at 0 %.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

STATE = "application/vnd.jupyter.widget-state+json"
VIEW = "application/vnd.jupyter.widget-view+json"

_REFERENCE = "IPY_MODEL_"
_MAX_DEPTH = 20
_MAX_MODELS = 2000
"""Maximum depth and number of models in one output."""
_BAR = 20
"""Length of a progress bar as text, in characters."""
_TAG = re.compile(r"<[^>]*>")
_BASE64 = re.compile(r"[A-Za-z0-9+/=\s]*")
_PICTURE = re.compile(r"[a-z0-9.+-]{1,20}")


@dataclass(frozen=True, slots=True)
class StaticWidget:
    """A widget as it was saved.

    Attributes:
        html: It as HTML, which is not sanitized yet.
        text: It as text.
        is_interactive: Whether it has controls, which do nothing in a page.
    """

    html: str
    text: str
    is_interactive: bool = False


def static_widget(state: Mapping[str, Any], model_id: object) -> StaticWidget | None:
    """Return a widget as it was saved; None: it is unknown, or not saved, or not of a known kind.

    Args:
        state: The models by id, as in the notebook's metadata.
        model_id: The id that an output refers to.
    """
    return _Renderer(state).model(model_id, 0)


class _Renderer:
    """Renders the widgets of one output; their number is limited, because models may contain each other."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        self._state = state
        self._left = _MAX_MODELS

    def model(self, model_id: object, depth: int) -> StaticWidget | None:
        """Return a model as it was saved."""
        model = self._state.get(model_id) if isinstance(model_id, str) else None
        self._left -= 1
        if not isinstance(model, dict) or depth > _MAX_DEPTH or self._left < 0:
            return None
        values = model.get("state")
        if not isinstance(values, dict):
            return None
        name = str(model.get("model_name", ""))
        if name in _BOXES:
            return self._box(name, values, depth)
        if name == "OutputModel":
            return self._output(values, depth)
        if name == "ImageModel":
            return _image(model, values)
        shown = _SHOWN.get(name)
        return shown(values) if shown else _control(values)

    def _box(self, name: str, values: Mapping[str, Any], depth: int) -> StaticWidget | None:
        children = values.get("children")
        found = [one for one in self._children(children, depth) if one is not None]
        if not found:
            return None
        style = "display:flex;gap:0.4em;flex-wrap:wrap" if name == "HBoxModel" else "display:grid;gap:0.2em"
        return StaticWidget(
            f'<div style="{style}">{"".join(f"<div>{one.html}</div>" for one in found)}</div>',
            ("" if name == "HBoxModel" else "\n").join(one.text for one in found),
            any(one.is_interactive for one in found),
        )

    def _output(self, values: Mapping[str, Any], depth: int) -> StaticWidget:
        outputs = values.get("outputs")
        found = [
            self._captured(one, depth)
            for one in (outputs if isinstance(outputs, list) else ())
            if isinstance(one, dict)
        ]
        return StaticWidget(
            "".join(f"<div>{one.html}</div>" for one in found),
            "\n".join(one.text for one in found).rstrip("\n"),
            any(one.is_interactive for one in found),
        )

    def _captured(self, output: Mapping[str, Any], depth: int) -> StaticWidget:
        """Return an output that a widget has captured."""
        data = output.get("data")
        data = data if isinstance(data, dict) else {}
        view = data.get(VIEW)
        if isinstance(view, dict) and (shown := self.model(view.get("model_id"), depth + 1)):
            return shown
        text = _joined(output.get("text")) or _joined(data.get("text/plain"))
        if output.get("output_type") == "error":
            text = f"{output.get('ename')}: {output.get('evalue')}"
        png = _joined(data.get("image/png"))
        if png and _BASE64.fullmatch(png):
            return StaticWidget(f'<img src="data:image/png;base64,{png}">', text)
        return StaticWidget(_joined(data.get("text/html")) or f"<pre>{html.escape(text)}</pre>", text)

    def _children(self, children: object, depth: int) -> Iterator[StaticWidget | None]:
        for child in children if isinstance(children, list) else ():
            yield self.model(str(child).removeprefix(_REFERENCE), depth + 1)


def _html(values: Mapping[str, Any]) -> StaticWidget:
    value = _text(values, "value")
    described = _described(values, html.unescape(_TAG.sub("", value)).replace("\u2007", " "))
    return StaticWidget(_described(values, value, html.escape), described)


def _label(values: Mapping[str, Any]) -> StaticWidget:
    value = _text(values, "value")
    return StaticWidget(_described(values, html.escape(value), html.escape), _described(values, value))


def _progress(values: Mapping[str, Any]) -> StaticWidget:
    low, high, value = (_number(values.get(name), default) for name, default in _RANGE.items())
    share = min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 0.0
    filled = round(share * _BAR)
    bar = f"|{'█' * filled}{' ' * (_BAR - filled)}|"
    element = f'<progress value="{share:.6f}" max="1"></progress>'
    return StaticWidget(_described(values, element, html.escape), _described(values, bar))


def _image(model: Mapping[str, Any], values: Mapping[str, Any]) -> StaticWidget | None:
    """Return a picture, whose bytes are beside the other values."""
    kind = _text(values, "format") or "png"
    buffers = model.get("buffers")
    for buffer in buffers if isinstance(buffers, list) else ():
        if (
            isinstance(buffer, dict)
            and buffer.get("path") == ["value"]
            and buffer.get("encoding") == "base64"
        ):
            data = str(buffer.get("data"))
            if _BASE64.fullmatch(data) and _PICTURE.fullmatch(kind):
                return StaticWidget(f'<img src="data:image/{kind};base64,{data}">', "[picture]")
    return None


def _control(values: Mapping[str, Any]) -> StaticWidget | None:
    """Return a control as its description and value; of another kind of widget, these are unknown."""
    value = values.get("value")
    labels, index = values.get("_options_labels"), values.get("index")
    if isinstance(labels, list) and isinstance(index, int) and 0 <= index < len(labels):
        value = labels[index]
    if isinstance(value, list) and all(isinstance(one, int | float) for one in value):
        value = " to ".join(map(str, value))
    if isinstance(value, bool):
        value = "yes" if value else "no"
    if value is None:
        # A button.
        value = f"[{_text(values, 'description')}]" if "button_style" in values else None
    elif isinstance(value, str | int | float):
        value = _described(values, str(value))
    else:
        return None
    return None if value is None else StaticWidget(html.escape(value), value, is_interactive=True)


def _described(values: Mapping[str, Any], value: str, escape: Callable[[str], str] = str) -> str:
    description = escape(_text(values, "description"))
    return f"{description} {value}" if description else value


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    return value if isinstance(value, str) else ""


def _joined(value: object) -> str:
    return "".join(map(str, value)) if isinstance(value, list) else value if isinstance(value, str) else ""


def _number(value: object, default: float) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default


_RANGE = {"min": 0.0, "max": 100.0, "value": 0.0}
_BOXES = {
    "BoxModel",
    "HBoxModel",
    "VBoxModel",
    "GridBoxModel",
    "AccordionModel",
    "TabModel",
    "StackModel",
}
_SHOWN: dict[str, Callable[[Mapping[str, Any]], StaticWidget]] = {
    "HTMLModel": _html,
    "HTMLMathModel": _html,
    "LabelModel": _label,
    "FloatProgressModel": _progress,
    "IntProgressModel": _progress,
}
