"""What an export has in it: everything of the notebook that can be seen, and nothing that runs."""

import base64
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_output, new_raw_cell
from typing_extensions import override

from notebook_runner_server.export.formats import ConversionError, convert, export
from notebook_runner_server.run_in_subprocess import run_in_subprocess
from tests.support.notebooks import code, notebook
from tests.support.public_notebooks import folder

FOLDER = folder("nbclient")
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(range(100))).decode()
# What would run, when a browser saw it as HTML: every way in has a word of its own.
EVIL = (
    "<script>evil('{0}')</script><img src=x onerror=\"evil('{0}')\"><a href=\"javascript:evil('{0}')\">x</a>"
)
# Outputs that a page cannot show, and languages that it cannot colour, are left out with a remark.
pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings(
        "ignore:Your element with mimetype:UserWarning", "ignore:No lexer found:UserWarning"
    ),
]


class Found(HTMLParser):
    """Collects what in a page runs or loads."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self._in: list[str] = []

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes an element and its attributes."""
        self._in.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    @override
    def handle_endtag(self, tag: str) -> None:
        """Leaves an element."""
        while self._in and self._in.pop() != tag:
            pass

    @override
    def handle_data(self, data: str) -> None:
        """Notes text, and apart from it the text of scripts."""
        (self.scripts if self._in[-1:] == ["script"] else self.words).append(data)


def converted(folder: Path, node: NotebookNode | bytes, to: str, *, omit_input: bool = False) -> str:
    """A notebook in another format."""
    source, target = folder / "source.ipynb", folder / "target"
    source.write_bytes(node if isinstance(node, bytes) else json.dumps(node).encode())
    assert convert(to, source, target, omit_input=omit_input)
    return target.read_text()


def page(folder: Path, node: NotebookNode, to: str = "html") -> Found:
    """A notebook as a page, parsed."""
    found = Found()
    found.feed(converted(folder, node, to))
    return found


def with_outputs(*outputs: NotebookNode, **metadata: Any) -> NotebookNode:
    """A notebook with one cell that has these outputs."""
    cell = code("1")
    cell.outputs = list(outputs)
    return notebook(cell, **metadata)


def shown(**data: Any) -> NotebookNode:
    """An output with data by MIME type; `_` stands for `/`, `__` for `+`."""
    named = {kind.replace("__", "+").replace("_", "/"): value for kind, value in data.items()}
    output: NotebookNode = new_output("display_data", data=named)
    return output


def evil(way: str) -> str:
    """Markup that would run."""
    return EVIL.format(way)


WAYS: dict[str, NotebookNode] = {
    "markdown": notebook(new_markdown_cell(evil("markdown"))),
    "markdown link": notebook(new_markdown_cell("[x](javascript:evil('link')) <svg onload=\"evil('svg')\">")),
    "raw cell": notebook(new_raw_cell(evil("raw"), metadata={"raw_mimetype": "text/html"})),
    "html": with_outputs(shown(text_html=evil("html"))),
    "javascript": with_outputs(shown(application_javascript="evil('javascript')")),
    "svg": with_outputs(shown(image_svg__xml=f"<svg xmlns='http://www.w3.org/2000/svg'>{evil('svg')}</svg>")),
    "formula": notebook(new_markdown_cell("$\\text{" + evil("formula").replace("$", "") + "}$")),
    "formula of an output": with_outputs(
        shown(text_html="$\\text{" + html.escape(evil("text")) + "}$ $\\href{javascript:evil('href')}{x}$")
    ),
    "mermaid": with_outputs(shown(**{"text_vnd.mermaid": "</pre>" + evil("mermaid")})),
    "style": with_outputs(
        shown(text_html=f"<style></style>{evil('style')}<style>a {{ color: red }}</style>")
    ),
    "latex": with_outputs(shown(text_latex=evil("latex"))),
    "markdown output": with_outputs(shown(text_markdown=evil("output"))),
    "plain text": with_outputs(shown(text_plain=evil("plain"))),
    "stream": with_outputs(
        new_output("stream", name="stdout", text=evil("stream") + "\x1b[1m" + evil("ansi"))
    ),
    "error": with_outputs(new_output("error", ename=evil("n"), evalue=evil("v"), traceback=[evil("t")])),
    "png": with_outputs(shown(image_png="\"><script>evil('png')</script>")),
    "jpeg": with_outputs(shown(image_jpeg="\"><script>evil('jpeg')</script>")),
    "pdf": with_outputs(shown(application_pdf="\"><script>evil('pdf')</script>")),
    "widget": with_outputs(
        NotebookNode(
            output_type="display_data",
            metadata={},
            data={"application/vnd.jupyter.widget-view+json": {"model_id": "</script>" + evil("view")}},
        )
    ),
    "widget state": notebook(
        "1",
        widgets={
            "application/vnd.jupyter.widget-state+json": {
                "version_major": 2,
                "version_minor": 0,
                "state": {"a": {"model_name": "</script>" + evil("state")}},
            }
        },
    ),
    "title": notebook("1", title="</title>" + evil("title")),
    "language": notebook(
        "1",
        language_info={"name": '">' + evil("name"), "pygments_lexer": '">' + evil("lexer")},
        kernelspec={"name": "x", "display_name": evil("kernel"), "language": '">' + evil("language")},
    ),
    "source": notebook(evil("source")),
    "tags": notebook(code("1", '">' + evil("tag").replace(",", ""))),
}


@pytest.mark.parametrize("to", ["html", "slides"])
@pytest.mark.parametrize("way", list(WAYS))
def test_nothing_of_the_notebook_runs_in_a_page(tmp_path: Path, way: str, to: str) -> None:
    """Whoever looks at a result runs none of the notebook's scripts, whichever way they try to get in."""
    found = page(tmp_path, WAYS[way], to)
    assert [script for script in found.scripts if "evil(" in script and not is_json(script)] == []
    for _, name, value in found.attributes:
        assert not (name.startswith("on") and "evil" in value)
        assert not re.match(r"\s*javascript:", value, re.IGNORECASE)


def is_json(script: str) -> bool:
    """Whether a script element only holds data."""
    try:
        json.loads(script)
    except ValueError:
        return False
    return True


def test_what_is_harmless_stays(tmp_path: Path) -> None:
    """Tables, emphasis, links and pictures of an output are shown as they are."""
    table = "<table><tr><td>cell</td></tr></table><b>bold</b><a href='https://example.com'>x</a>"
    found = page(tmp_path, with_outputs(shown(text_html=table)))
    tags = {tag for tag, _, _ in found.attributes}
    assert ("a", "href", "https://example.com") in found.attributes
    assert "cell" in found.words
    assert tags


def test_a_page_without_code_has_no_prompts(tmp_path: Path) -> None:
    """Text and outputs stay where the code is left out, in each format that shows both."""
    node = notebook(new_markdown_cell("some words"), "secret = 1")
    node.cells[1].outputs = [
        new_output("execute_result", data={"text/plain": "forty-two"}, execution_count=7)
    ]
    for to in ("html", "slides", "markdown"):
        text = converted(tmp_path, node, to, omit_input=True)
        assert "some words" in text
        assert "forty-two" in text
        assert "secret" not in text
        assert "[7]" not in text


def test_what_was_printed_in_pieces_is_one_text(tmp_path: Path) -> None:
    """Flushes leave no mark, and a bar that was drawn again and again is there once."""
    pieces = [
        new_output("stream", name="stdout", text=text) for text in ("10%", "\r50%", "\r100%\n", "done\n")
    ]
    text = converted(tmp_path, with_outputs(*pieces), "markdown")
    assert "100%\n    done" in text
    assert "50%" not in text


@pytest.mark.parametrize(
    ("node", "title"),
    [
        (notebook(new_markdown_cell("intro"), new_markdown_cell("# The <b> & π\nmore")), "The <b> & π"),
        (notebook(new_markdown_cell("```\n# code\n```")), "Notebook"),
        (notebook("1", title="Its own"), "Its own"),
    ],
)
def test_a_page_has_a_title(tmp_path: Path, node: NotebookNode, title: str) -> None:
    """The notebook's own, else its first heading."""
    text = converted(tmp_path, node, "html")
    assert html.unescape(text[text.index("<title>") + 7 : text.index("</title>")]) == title


def test_what_needs_scripts_is_shown_as_text(tmp_path: Path) -> None:
    """A widget, JavaScript, or HTML that only scripts would fill: what stands beside it is shown."""
    for kind, value in (
        ("text_html", "<div id='plot'></div><script>draw()</script>"),
        ("application_javascript", "draw()"),
        ("application_vnd.jupyter.widget-view__json", {"model_id": "x"}),
    ):
        assert "words beside" in converted(
            tmp_path, with_outputs(shown(**{kind: value}, text_plain="words beside")), "html"
        )


def images(text: str) -> list[bytes]:
    """The pictures that are in a text itself."""
    return [base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)", text)]


@pytest.mark.parametrize("to", ["html", "slides", "markdown"])
def test_pictures_stay_in_the_file(tmp_path: Path, to: str) -> None:
    """One artefact is one file: a plot is in it, byte for byte, and no file beside it is named."""
    text = converted(tmp_path, with_outputs(shown(image_png=PNG, text_plain="<Figure>")), to)
    assert base64.b64decode(PNG) in images(text)
    assert "output_0_0" not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.ipynb", "target"]


@pytest.mark.parametrize("to", ["html", "markdown"])
def test_attachments_stay_in_the_file(tmp_path: Path, to: str) -> None:
    """A picture that was pasted into a text cell is in the artefact as well."""
    cell = new_markdown_cell("![x](attachment:a.png)", attachments={"a.png": {"image/png": PNG}})
    assert base64.b64decode(PNG) in images(converted(tmp_path, notebook(cell), to))


def test_a_real_picture_arrives(tmp_path: Path) -> None:
    """The notebook that shows one has it in its page."""
    node = nbformat.read(FOLDER / "Inline Image.ipynb", as_version=4)
    (picture,) = [
        output.data["image/png"]
        for cell in node.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert base64.b64decode(picture) in images(converted(tmp_path, node, "html"))


@pytest.mark.parametrize(
    ("to", "media_type"),
    [
        *(("html", "text/html"), ("slides", "text/html"), ("markdown", "text/markdown")),
        *(("script", "text/x-python"), ("python", "text/x-python")),
    ],
)
def test_each_format_has_its_media_type(tmp_path: Path, to: str, media_type: str) -> None:
    """What a browser or a program needs to know of the artefact."""
    path = tmp_path / "source.ipynb"
    nbformat.write(notebook("print(1)", language_info={"name": "python", "mimetype": "text/x-python"}), path)
    assert convert(to, path, tmp_path / "target") == media_type
    assert "print" in (tmp_path / "target").read_text()


@pytest.mark.parametrize("to", ["html", "markdown", "script"])
def test_text_that_is_no_unicode_is_no_reason_to_fail(tmp_path: Path, to: str) -> None:
    """A kernel may print lone surrogates; the artefact has a mark in their place."""
    node = with_outputs(new_output("stream", name="stdout", text="a\ud800b"))
    assert "evil" not in converted(tmp_path, node, to)


@pytest.mark.parametrize("name", ["Inline Image", "JupyterWidgets", "SVG", "Unicode", "update-display-id"])
@pytest.mark.parametrize("to", ["html", "markdown", "script"])
def test_real_notebooks_can_be_exported(tmp_path: Path, name: str, to: str) -> None:
    """Notebooks that others wrote, with all kinds of outputs."""
    data = (FOLDER / f"{name}.ipynb").read_bytes()
    assert converted(tmp_path, data, to).strip()


@pytest.mark.parametrize(
    ("to", "why"),
    [("cobol", 'Unknown exporter "cobol"'), ("html", "FileNotFoundError"), ("", "Unknown exporter")],
)
def test_a_conversion_that_fails_says_why(tmp_path: Path, to: str, why: str) -> None:
    """A format that does not exist, or a notebook that is not there: an error of a bounded length."""
    source = tmp_path / "missing.ipynb"
    if to != "html":
        nbformat.write(notebook("1"), source)
    with pytest.raises(ConversionError) as caught:
        run_in_subprocess(export, to, source, tmp_path / "target")
    assert why in str(caught.value)
    assert len(str(caught.value)) <= 1000


METADATA = {
    "width": {"width": '1" onload="evil(1)'},
    "no quotes": {"width": "1 onload=evil(1)"},
    "height": {"height": "1 onerror=evil(1) x="},
    "file": {"filenames": {"image/png": 'x" onerror="evil(1)'}},
}


@pytest.mark.parametrize("to", ["html", "slides"])
@pytest.mark.parametrize("name", METADATA)
def test_metadata_of_a_picture_is_no_attribute(tmp_path: Path, to: str, name: str) -> None:
    """What a template puts into an element is sanitized with it."""
    output = new_output("display_data", data={"image/png": PNG}, metadata=METADATA[name])
    output.metadata["image/png"] = METADATA[name]
    attributes = page(tmp_path, with_outputs(output), to).attributes
    assert not [each for each in attributes if "evil" in each[1] + each[2] or each[1].startswith("on")]


@pytest.mark.parametrize("key", ["background-iframe", "x onload=evil(1) y", "state"])
def test_metadata_of_a_slide_is_no_attribute(tmp_path: Path, key: str) -> None:
    """The attributes of a slide are the template's own."""
    cell = new_markdown_cell("a", metadata={"slideshow": {"slide_type": "slide", "data": {key: "evil(2)"}}})
    attributes = page(tmp_path, notebook(cell), "slides").attributes
    assert not [each for each in attributes if "evil" in each[1] + each[2]]


@pytest.mark.parametrize("to", ["html", "slides"])
def test_drawings_boxes_and_formulas_of_text(tmp_path: Path, to: str) -> None:
    """Text cells show inline SVG, task lists and labelled formulas; styles alone print nothing."""
    text = new_markdown_cell(
        "- [x] done\n- [ ] open\n\n<svg width='9'><circle r='4'/></svg>\n\n"
        "$$\\begin{aligned}a&=b\\end{aligned}\\label{e}$$"
    )
    styles = new_output(
        "execute_result", data={"text/html": "<style>*{margin:0}</style>", "text/plain": "<IPython>"}
    )
    missing = new_output("display_data", data={"application/vnd.plotly.v1+json": {}})
    cell = code("1")
    cell.outputs = [styles, missing]
    found = converted(tmp_path, notebook(text, cell), to)
    assert "☑ </span>done" in found
    assert "☐ </span>open" in found
    assert '<svg width="9"><circle r="4"></circle></svg>' in found
    assert re.search(r'<mtd columnalign="right" style="text-align:right[^"]*"><mi>a</mi></mtd>', found)
    assert "&lt;IPython" not in found
    assert "Interactive Plotly figure</strong>: not shown" in found
    assert ".nbr-missing {" in found


@pytest.mark.parametrize("to", ["html", "slides", "markdown", "script"])
def test_what_is_made_again_has_the_same_bytes(tmp_path: Path, to: str) -> None:
    """Whoever has read half of one that was removed meanwhile goes on in the one that is made again."""
    path, first, second = tmp_path / "a.ipynb", tmp_path / "first", tmp_path / "second"
    nbformat.write(notebook(new_markdown_cell("# a"), code("1")), path)
    for target in (first, second):
        convert(to, path, target)
    assert first.read_bytes() == second.read_bytes()
