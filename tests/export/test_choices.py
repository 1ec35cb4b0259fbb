"""What a notebook has no say in: which exporter runs, and the type and the names of what comes of it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from notebook_runner_server.export.formats import convert, export
from notebook_runner_server.run_in_subprocess import run_in_subprocess

pytestmark = pytest.mark.integration

CALLED = "import sys\nsys.modules[__name__].calls = 0\n\n\ndef made(**_):\n    global calls\n    calls += 1\n"


def document(*outputs: Any, cell: Any = None, **metadata: Any) -> dict[str, Any]:
    """A notebook as JSON, in which nothing is checked: a cell with outputs and metadata."""
    code: dict[str, Any] = {"cell_type": "code", "id": "a", "execution_count": 1, "source": "one = 1"}
    cells = [{**code, "metadata": cell or {}, "outputs": outputs}]
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells}


def exported(folder: Path, node: dict[str, Any], to: str) -> tuple[str, str]:
    """The media type and the text of a notebook in another format."""
    source, target = folder / "source.ipynb", folder / "target"
    source.write_text(json.dumps(node))
    media_type = convert(to, source, target)
    assert sorted(path.name for path in folder.iterdir()) == ["source.ipynb", "target"]
    return media_type, target.read_text()


def script(folder: Path, **language: Any) -> tuple[str, str]:
    """The media type and the text of the script of a notebook in some language."""
    return exported(folder, document(language_info=language), "script")


@pytest.mark.parametrize("exporter", ["html", "notebook", "latex", "nbconvert.exporters.HTMLExporter", "no"])
@pytest.mark.parametrize("language", ["python", "cobol"])
def test_no_exporter_of_the_notebooks_choice(tmp_path: Path, language: str, exporter: str) -> None:
    """A script is the code alone, whatever exporter the notebook names."""
    _, text = script(tmp_path, name=language, nbconvert_exporter=exporter)
    assert "one = 1" in text
    assert "<" not in text
    assert "\\documentclass" not in text
    assert "cells" not in text


def test_no_function_of_the_notebooks_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is imported, and no function called, because a notebook names it."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "choice.py").write_text(CALLED)
    (tmp_path / "work").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    _, text = script(tmp_path / "work", name="python", nbconvert_exporter="choice.made")
    assert "one = 1" in text
    assert "choice" not in sys.modules


@pytest.mark.parametrize(
    "mimetype", ["text/html", "text/plain\r\nX-Evil: 1", "", 5, ["text/html"], "text/plain; charset=utf-8\n"]
)
@pytest.mark.parametrize("language", ["cobol", "python", "r", "a\r\nb", 5, "html"])
def test_no_media_type_of_the_notebooks_choice(tmp_path: Path, language: Any, mimetype: Any) -> None:
    """It is the language's, from a list of ours, and plain text for all others."""
    expected = {"python": "text/x-python", "r": "text/x-r-source"}.get(str(language), "text/plain")
    media_type, text = script(tmp_path, name=language, mimetype=mimetype, file_extension="/../../x.html")
    assert media_type == expected
    assert "one = 1" in text


@pytest.mark.parametrize("to", ["markdown", "html", "slides"])
@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "image/svg+xml"])
def test_no_file_of_the_notebooks_choice(tmp_path: Path, to: str, kind: str) -> None:
    """A picture is what the output has, and not a file that its metadata names."""
    names = {"filenames": {kind: "/etc/passwd"}, "filename": "../../etc/passwd"}
    output = {
        "output_type": "display_data",
        "data": {kind: "<svg/>" if "svg" in kind else "QUJDRA=="},
        "metadata": {**names, kind: names},
        "svg_filename": "/etc/passwd",
    }
    assert "passwd" not in exported(tmp_path, document(output), to)[1]


@pytest.mark.parametrize("to", ["html", "slides", "markdown", "script", "python", "rst", "asciidoc", "latex"])
def test_metadata_of_other_types(tmp_path: Path, to: str) -> None:
    """Whatever stands where a text is expected, the rest of the notebook is exported."""
    values: list[Any] = [5, None, ["a"], {"a": {"b": "c"}}, "a\r\nb: c", "\ud800"]
    for value in values:
        names = ("tags", "slideshow", "transient", "raw_mimetype", "magics_language", "slide_type", "alt")
        metadata = dict.fromkeys(("title", "authors", "date", "language", "kernelspec", "widgets"), value)
        language = {"name": value, "pygments_lexer": value}
        node = document(cell=dict.fromkeys(names, value), **metadata, language_info=language)
        folder = tmp_path / str(values.index(value))
        folder.mkdir()
        text = exported(folder, node, to)[1]
        assert "one" in text
        if to in {"markdown", "rst", "asciidoc"}:
            assert "b: c" not in text


@pytest.mark.parametrize("to", ["html", "slides", "markdown", "script", "python"])
def test_json_that_is_nested_deep(tmp_path: Path, to: str) -> None:
    """However deep the JSON of an output or of metadata is, as far as Python reads it at all."""
    deep: Any = "unseen"
    for _ in range(450):
        deep = {"a": [deep]}
    output = {
        "output_type": "display_data",
        "data": {"application/json": deep, "text/plain": "words"},
        "metadata": deep,
    }
    node = document(output, cell={"deep": deep, "tags": ["a"]}, widgets=deep, deep=deep)
    text = exported(tmp_path, node, to)[1]
    assert "one" in text
    assert "unseen" not in text
    assert ("words" in text) is (to in {"html", "slides", "markdown"})


def test_json_that_is_nested_as_deep_as_a_worker_reads(tmp_path: Path) -> None:
    """A converter reads what a worker has read, which is deeper than Python's own bound."""
    source, target = tmp_path / "source.ipynb", tmp_path / "target"
    text = json.dumps(
        document({"output_type": "display_data", "data": {"text/plain": "words"}}, cell={"x": "D"})
    )
    source.write_text(text.replace('"D"', "[" * 9000 + "]" * 9000))
    assert run_in_subprocess(export, "html", source, target) == "text/html"
    assert "words" in target.read_text()


def test_a_browser_of_ours_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter webpdf, whose browser runs scripts, is ours, which says what it needs."""
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    source = tmp_path / "source.ipynb"
    source.write_text(json.dumps(document()))
    with pytest.raises(RuntimeError, match="the package chromium"):
        convert("webpdf", source, tmp_path / "target")
