"""What the page's modules compute, in a browser, against what Python computes of the same."""

import ast
import hashlib
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from notebook_runner._parameters_cell import python_parameters
from tests.page.reader import ServerPage, reader
from tests.support.server import Server

MODULES = files("notebook_runner_server.http_api") / "page"
# Of `preact/standalone.module.js` in the package of npm that the page's README names.
LIBRARY = "72284e8e9079c87817145df1110f74e8a2aa040b2fc384922e18dfcb46fc1fd7"
# Of `axe.min.js` in axe-core 4.14.1 of npm, which only these tests use.
AXE = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
RED, BOLD, PLAIN = "\x1b[31m", "\x1b[1m", "\x1b[0m"
names = st.sampled_from(["alpha", "beta_2", "_c", "größe"])
literals = st.one_of(
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.text("abc #\"'=ä😀", max_size=8),
    st.none(),
    st.lists(st.integers(), max_size=3),
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerPage]:
    """A browser that can load the modules."""
    options = ["--http-listen", "127.0.0.1:0"]
    with (
        Server(tmp_path_factory.mktemp("state"), *options) as server,
        reader(tmp_path_factory.mktemp("profile"), server.http) as found,
    ):
        found.open("/start")
        yield found


def computed(page: ServerPage, module: str, script: str, *values: Any) -> Any:
    """What a function body computes with a module `m` and some values."""
    body = f"""
      const done = arguments[arguments.length - 1], values = [...arguments].slice(0, -1);
      import('/page/{module}.js').then((m) => {{ {script} }}).then((found) => done({{found}}),
        (error) => done({{error: String(error)}}));"""
    answer = page.browser.driver.execute_async_script(body, *values)
    assert "error" not in answer, answer["error"]
    return answer.get("found")


def lines(page: ServerPage, *chunks: str) -> Any:
    """The lines of printed chunks, each as a list of texts and styles."""
    script = """const terminal = new m.Terminal(); for (const one of values[0]) terminal.write(one);
      const shown = terminal.lines.slice(0, terminal.length);
      return shown.map((line) => line.map(({text, style}) => [text, style]));"""
    return computed(page, "terminal", script, list(chunks))


@pytest.mark.unit
def test_the_libraries_are_those_of_npm() -> None:
    """They are unchanged, and no module of the page names another host."""
    assert hashlib.sha256((MODULES / "preact.js").read_bytes()).hexdigest() == LIBRARY
    assert hashlib.sha256(Path(__file__).with_name("axe.min.js").read_bytes()).hexdigest() == AXE
    own = [one for one in MODULES.iterdir() if one.name.endswith((".js", ".css", ".html"))]
    for one in own:
        if one.name != "preact.js":
            assert "http://" not in one.read_text()
            assert "https://" not in one.read_text()
    named = {
        line.split("`")[1] for line in (MODULES / "README.md").read_text().splitlines() if ".js`" in line
    }
    assert named <= {one.name for one in own}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb", ["a", "b"]),
        ("a\n", ["a"]),
        ("a\n\nb\n", ["a", "", "b"]),
        ("10 %\r20 %", ["20 %"]),
        ("10 %\r", ["10 %"]),
        ("long\rab", ["abng"]),
        ("long\r\x1b[Kab", ["ab"]),
        ("long\x1b[2K\rab", ["ab"]),
        ("abc\b\bX", ["aXc"]),
        ("a\r\nb", ["a", "b"]),
        ("\x1b]8;;http://x\x07link\x1b]8;;\x07", ["link"]),
        ("\x1b[2A\x1b[?25lx", ["x"]),
        ("", []),
    ],
)
def test_printed_text_is_what_a_terminal_shows(page: ServerPage, text: str, expected: list[str]) -> None:
    """Carriage returns and backspaces move, other sequences leave no trace."""
    assert ["".join(piece for piece, _ in line) for line in lines(page, text)] == expected


def test_colours(page: ServerPage) -> None:
    """Of the 16, of 256, and any; they last until they are reset, also over lines."""
    assert lines(page, f"{RED}a{BOLD}b\nc{PLAIN}d") == [
        [["a", {"color": 1}], ["b", {"color": 1, "bold": True}]],
        [["c", {"color": 1, "bold": True}], ["d", {}]],
    ]
    assert lines(page, "\x1b[38;5;196mx\x1b[48;2;1;2;3my\x1b[mz\x1b[92m!") == [
        [
            ["x", {"color": "rgb(255,0,0)"}],
            ["y", {"color": "rgb(255,0,0)", "background": "rgb(1,2,3)"}],
            ["z", {}],
            ["!", {"color": 10}],
        ]
    ]


def test_chunks_do_not_matter(page: ServerPage) -> None:
    """However a text is cut on its way, it looks the same."""
    text = f"a{RED}b\r\x1b[38;5;196mxyz{PLAIN}\n\x1b]8;;u\x1b\\l\bk\x1b[Kend\r1\x1b[7m2"
    whole = lines(page, text)
    for place in range(len(text) + 1):
        assert flat(lines(page, text[:place], text[place:])) == flat(whole), place
    assert flat(lines(page, *text)) == flat(whole)


def flat(found: Any) -> Any:
    """Lines as characters, each with its style."""
    return [[(one, style) for text, style in line for one in text] for line in found]


@settings(max_examples=60)
@given(st.lists(st.tuples(names, literals, st.sampled_from(["", ": object", "  # help = 1"])), max_size=5))
def test_parameters_are_those_that_python_reads(
    page: ServerPage, assigned: list[tuple[str, Any, str]]
) -> None:
    """Each field has the name, and if it has a kind, the value that the notebook would have without it."""
    source = "\n".join(
        f"{name}{more if more.startswith(':') else ''} = {value!r}{more if '#' in more else ''}"
        for name, value, more in assigned
    )
    found = computed(page, "parameters", "return m.sourceFields(values[0])", source)
    known = {one.name: ast.literal_eval(one.default) for one in python_parameters(source)}
    assert {one["name"] for one in found} == set(known)
    for one in found:
        value = known[one["name"]]
        match one["kind"]:
            case "text":
                assert one["value"] == value
            case "boolean":
                assert (one["value"] == "true") is value
            case "number":
                assert json.loads(one["value"]) == value
            case _:
                assert one["value"] == ""


@settings(max_examples=60)
@example({"a": 1.0, "b": 10**30, "c": {"d": [-0.0, float("-inf")]}, "e": "1\n2"})
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=6),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
            lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=3), one, max_size=3),
            max_leaves=8,
        ),
        max_size=4,
    )
)
def test_parameters_of_a_run_come_back_exactly(page: ServerPage, parameters: dict[str, Any]) -> None:
    """Large integers, floats without a fraction, infinities and nested values are sent as they were given."""
    text = json.dumps(parameters)
    script = "return m.parametersJson(m.runFields(values[0]))"
    found = computed(page, "parameters", script, text)
    sent = json.loads(found or "{}")
    assert sent == parameters
    assert json.dumps(sent) == text


def test_what_the_reader_does_not_change_is_not_sent(page: ServerPage) -> None:
    """The notebook's own default stays, also one that the form cannot show."""
    script = """const fields = m.sourceFields("a = 1\\nb = [1, 2]\\nc = True\\nd = 'x'");
      const unchanged = m.parametersJson(fields);
      fields[2].value = "false";
      fields[3].value = "y";
      return [unchanged, m.parametersJson(fields)];"""
    assert computed(page, "parameters", script) == ["", '{"c": false, "d": "y"}']


def test_examples_have_fields(page: ServerPage) -> None:
    """The fields of a notebook in the examples are the parameters that the command shows."""
    notebook = json.loads((Path(__file__).parents[2] / "examples" / "quickstart.ipynb").read_text())
    cell = next(one for one in notebook["cells"] if "parameters" in one["metadata"].get("tags", []))
    expected = [one.name for one in python_parameters("".join(cell["source"]))]
    found = computed(page, "parameters", "return m.notebookFields(values[0])", notebook)
    assert [one["name"] for one in found] == expected
