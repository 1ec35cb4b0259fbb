"""Parameters on the command line are what papermill's command makes of them, and are read from a notebook."""

import base64
import json
from pathlib import Path
from typing import Any

import click
import nbformat
import papermill
import pytest
from click.testing import CliRunner
from papermill import cli as papermill_cli

from notebook_runner._parameters_cell import python_parameters
from notebook_runner.cli import _help_notebook, _parameters, main
from notebook_runner.cli._papermill import PapermillCommand
from tests.support.notebooks import code, notebook, written

YAML = "{a: 1, b: [1, x, null], when: 2020-01-02, deep: {on: true, f: .5}}"


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives the parameters that papermill's command makes of its arguments."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(papermill_cli, "execute_notebook", lambda **options: given.update(options))

    def parse(*arguments: str) -> dict[str, Any]:
        given.clear()
        done = CliRunner().invoke(papermill_cli.papermill, ["in.ipynb", "out.ipynb", *arguments])
        assert done.exit_code == 0, done.output
        parameters: dict[str, Any] = given["parameters"]
        return parameters

    return parse


def ours(*arguments: str) -> dict[str, Any]:
    """Gives the parameters that this command makes of them."""
    given: dict[str, Any] = {}

    def keep(**options: Any) -> None:
        given.update(_parameters.parameters_of(options))

    command = click.command(cls=PapermillCommand)(_parameters.parameter_options(keep))
    command.main(list(arguments), standalone_mode=False)
    return given


@pytest.mark.parametrize(
    "arguments",
    [
        ["-p", "n", "1", "-p", "x", "1.5", "-p", "yes", "True", "-p", "none", "None", "-p", "s", "text"],
        ["-r", "n", "1", "--parameters_raw", "s", "True"],
        ["--parameters", "n", "-1"],
        ["-p", "n", "a=b"],
        ["-p", "n", "1", "-p", "n", "2", "-r", "n", "3", "-y", "n: 4"],
        ["-y", "n: 4", "-p", "n", "5"],
        ["-y", YAML, "--parameters_yaml", "a: 2"],
        ["-y", ""],
        ["-f", "FILE", "-y", "a: yaml"],
        ["--parameters_file", "FILE", "-b", base64.b64encode(b"a: base64\nc: 1").decode()],
    ],
    ids=str,
)
def test_the_same_as_papermills(theirs: Any, tmp_path: Path, arguments: list[str]) -> None:
    """Names, values, their types and which of two wins are papermill's."""
    (tmp_path / "values.yaml").write_text(f"a: file\nmore: {YAML}\n")
    arguments = [str(tmp_path / "values.yaml") if word == "FILE" else word for word in arguments]
    assert repr(sorted(ours(*arguments).items())) == repr(sorted(theirs(*arguments).items()))


def test_name_and_value_in_one_word(tmp_path: Path) -> None:
    """`-p NAME=VALUE` and `-p NAME VALUE` are the same, in all forms; a file may be JSON."""
    (tmp_path / "values.json").write_text('{"j": [1, 2.5, null]}')
    found = ours(
        *["-p", "a=1", "-p", "b", "2", "-pc=3", "--parameters=d=4", "-p", "e=x=y", "-p", "f=", "-r", "g=5"],
        *["--parameters-raw=h=6", "-f", str(tmp_path / "values.json")],
    )
    assert found == {
        "a": 1,
        "b": 2,
        "c": 3,
        "d": 4,
        "e": "x=y",
        "f": "",
        "g": "5",
        "h": "6",
        "j": [1, 2.5, None],
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-p", "name"], "'name' has no value"),
        (["-p", "=1"], "'=1' has no name"),
        (["-p"], "-p"),
        (["-y", "[1]"], "-y must be a mapping of names to values (got list)."),
        (["-y", "just text"], "-y must be a mapping of names to values (got str)."),
        (["-y", "{a: "], "-y is not valid YAML"),
        (["-y", "1: x"], "the name 1, which is not a string. Quote it."),
        (["-y", "!!python/object/apply:os.system [date]"], "-y is not valid YAML"),
        (["-f", "none.yaml"], "none.yaml"),
        (["-b", "%"], "-b is not Base64-encoded text"),
    ],
)
def test_what_cannot_be_read(arguments: list[str], said: str) -> None:
    """What is no parameter is refused, and said what it is."""
    with pytest.raises(click.UsageError) as caught:
        ours(*arguments)
    assert said in caught.value.format_message()


SOURCE = """\
%matplotlib inline
# What this notebook wants.
region: str = "north"  # which region
days = 30  # how many days
ratio = 0.5
on = True
names = [
    "a",  # the first
    "b",
]  # whom
limits = {"low": 1}
old = None  # type: int the old comment
quoted: "float" = 1
"""


def test_parameters_of_a_notebook_are_those_that_papermill_finds(tmp_path: Path) -> None:
    """Names, defaults, comments and declared types are what papermill's inspection tells."""
    file = tmp_path / "in.ipynb"
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python", "language": "python"}}
    nbformat.write(notebook(code(SOURCE, "parameters"), "1", **kernel), file)
    theirs = papermill.inspect_notebook(str(file))
    cell = _help_notebook.inspect(file)
    assert cell
    found = {one.name: one for one in cell.parameters}
    assert list(found) == list(theirs)
    for name, one in found.items():
        assert one.help == theirs[name]["help"].strip(), name
        if theirs[name]["inferred_type_name"] != "None":
            assert one.type == theirs[name]["inferred_type_name"], name
        if name != "names":  # papermill leaves out the blanks of several lines
            assert one.default == theirs[name]["default"], name
    assert (found["days"].type, found["ratio"].type, found["on"].type) == ("int", "float", "bool")
    assert (found["names"].type, found["limits"].type) == ("list", "dict")


def test_parameters_that_papermill_does_not_find() -> None:
    """Python is read as Python is: signs in strings are no code."""
    found = python_parameters("url = 'http://x/?a=b#c'  # where\nx = y = 1\nif x:\n    z = 2  # so\nz: int\n")
    assert [(one.name, one.type, one.default, one.help) for one in found] == [
        ("url", "str", "'http://x/?a=b#c'", "where"),
        ("x", "int", "1", ""),
        ("y", "int", "1", ""),
        ("z", "int", "2", "so"),
    ]


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("a, b = 1, 2", "a b"),
        ("[a, *b], (c, (d,)) = f()", "a b c d"),
        ("a = b, c = 1, 2", "a b c"),
        ("if (a := 1): pass\nprint([b := 2 for c in x])", "a b"),
        ("for a, (b, *c) in x:\n    d = 1\nelse:\n    e = 1", "a b c d e"),
        ("with f() as a, g() as (b, c), h(): d = 1", "a b c d"),
        ("async for a in x: pass\nasync with x as b: pass\nc = await d", "a b c"),
        ("try:\n    a = 1\nexcept E as e:\n    b = 1\nelse:\n    c = 1\nfinally:\n    d = 1", "a b c d"),
        ("while x: a = 1", "a"),
        ("match x:\n    case [a, *b] | {'k': a, **b}: pass\n    case C(d) as e: pass", "a b e d"),
        ("a: int\nb: 'str' = 1\n(c): int = 1", "a b c"),
        ("global a\ndef f():\n    global b\n    b = c = 1\nclass D:\n    e = 1", "a b"),
        ("import a\nfrom b import c\ndef d(e=1): f = 1\nclass G: pass\nh = lambda i: (j := 1)", "h"),
        ("x.a = 1\nx[0] = 2\nx.b, y[1] = 1, 2\nx.c: int = 1\ndel d", ""),
        ("a += 1\na = 2", "a"),
        ("%matplotlib inline\na = 1\n%time b\n  \nc = 2", "a c"),
        ("!pip install 'x\na = 1\n!echo ( \\\n [ { \nb = 2", "a b"),
        ("a = !ls *.csv\nb, c = %magic x'\nd = 1", "a b c d"),
        ("if x:\n    !ls '\nelse:\n    %cd (\na = 1", "a"),
        ("a = 1\nprint?\n?print\nprint??\na.b*?\n", "a"),
        ("%%time\na = 1", "a"),
        ("%%capture out\na = 1", "a"),
        ("% pylab\na = (1\n % 2)", None),
        ("!ls\na = (1\n != 2)", "a"),
        ("a = '''\n%x\n!y\n'''\n!z '\nb = 1", "a b"),
        (",f a b\n/g 1\na = 1", "a"),
        ("ä = !ls\nb = 'é' # ü", "ä b"),
        ("a = 1\r\n%x\r\nb = 2\r\n", "a b"),
        ("", ""),
        ("# a = 1", ""),
        ("a = " + "+".join("x" * 500), "a"),
    ],
)
def test_all_names_that_python_assigns(source: str, names: str | None) -> None:
    """Each kind of target and statement, beside all that IPython adds to Python; None: it is not read."""
    if names is None:
        with pytest.raises(SyntaxError):
            python_parameters(source)
    else:
        assert [one.name for one in python_parameters(source)] == names.split()


def test_defaults_are_shown_where_they_stand() -> None:
    """Of a tuple each name has its own part, of a magic its line, of an annotation alone nothing."""
    found = python_parameters("ä, b = 'é', [1, 2]\nfiles = !ls -l\nregion: str\nc, *d = x\n%magic (")
    assert [(one.name, one.type, one.default, one.help) for one in found] == [
        ("ä", "str", "'é'", ""),
        ("b", "list", "[1, 2]", ""),
        ("files", "", "!ls -l", ""),
        ("region", "str", "", ""),
        ("c", "", "", ""),
        ("d", "", "", ""),
    ]


@pytest.mark.parametrize(
    "source",
    [
        *("def f(", "a = = 1", "a = '''", "%%bash\na=1", "a\0b = 1", "a = '\ud800'", "(" * 10_000),
        "!x\ndef f(",
    ],
    ids=range(8),
)
def test_what_is_not_python_is_a_syntax_error(source: str) -> None:
    """Whatever is wrong with it, callers get one kind of error."""
    with pytest.raises(SyntaxError):
        python_parameters(source)


def shown(*arguments: str | Path) -> tuple[int, str]:
    """The exit code of the command without a server, and what it printed."""
    done = CliRunner().invoke(main, ["--target", "127.0.0.1:1", *map(str, arguments)])
    return done.exit_code, done.output


def test_help_notebook(tmp_path: Path) -> None:
    """--help-notebook shows the table, or JSON, and asks no server."""
    file = tmp_path / "in.ipynb"
    file.write_bytes(written(notebook(code("n = 1  # how many\nwho = 'me'", "parameters"))))
    code_, text = shown("run", file, "--help-notebook")
    assert code_ == 0
    rows = [line.split() for line in text.splitlines()[1:]]
    assert rows == [["NAME", "TYPE", "DEFAULT"], ["n", "int", "1", "how", "many"], ["who", "str", "'me'"]]
    code_, text = shown("run", file, "--help-notebook", "--json")
    assert json.loads(text)[0] == {"name": "n", "type": "int", "default": "1", "help": "how many"}


def test_help_notebook_of_others(tmp_path: Path) -> None:
    """A notebook without the cell, in another language, or that is none: each is said."""
    file = tmp_path / "in.ipynb"
    file.write_bytes(written(notebook("1")))
    assert "no cell tagged" in shown("run", file, "--help-notebook")[1]
    file.write_bytes(written(notebook(code("n <- 1", "parameters"), language_info={"name": "R"})))
    assert (
        "is written in r. Its cell tagged `parameters`:\n\nn <- 1\n"
        in shown("run", file, "--help-notebook")[1]
    )
    for content, said in (
        (b"{", "is not a notebook"),
        (b"[]", "is not a notebook"),
        (written(notebook(code("n = = 1", "parameters"))), "is not valid Python"),
        (written(notebook(code("n = (1", "parameters"))), "is not valid Python"),
    ):
        file.write_bytes(content)
        code_, text = shown("run", file, "--help-notebook")
        assert code_ == 2
        assert said in text
    assert shown("run", tmp_path / "none.ipynb", "--help-notebook")[0] == 2
    assert shown("run", "--help-notebook")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["run", "in.ipynb", "out.ipynb"],
            "Unexpected argument 'out.ipynb'. To write the result to a file, use --output FILE.",
        ),
        (
            ["run", "in.ipynb", "--cwd", "x"],
            "--cwd is an option of papermill: omit it; a notebook runs in a private folder",
        ),
        (["run", "in.ipynb", "--start_timeout", "3"], "--start-timeout is an option of papermill"),
        (["run", "in.ipynb"], "No such local notebook: in.ipynb. "),
        (["run", "."], ". is a folder. Name a notebook in it."),
        (
            ["run", __file__, "--server-path", "in.ipynb"],
            "Set only one of NOTEBOOK, --server-path and --notebook-uri.",
        ),
        (["output", "-o", "none/out.ipynb"], "Cannot write none/out.ipynb: folder none does not exist."),
        (["kill", "--grace-period", "-1"], "The value must not be negative (got '-1')."),
        (["run", "in.ipynb", "--no-input"], "--no-input needs --html FILE or --open."),
        (
            ["run", "in.ipynb", "-o", "-", "--json"],
            "Cannot write the notebook to standard output: --json uses it. Use --output FILE.",
        ),
        (["run", "in.ipynb", "-p", "n"], "'n' has no value"),
        (
            ["in.ipynb", "-p", "a b=1"],
            "Unknown command 'in.ipynb'. To run it: notebook-runner run in.ipynb -p 'a b=1'",
        ),
        (["--target", "localhost", "list"], "'localhost' has no port"),
        (["--target", "http://localhost:1", "list"], "is a URL. Use HOST:PORT."),
        (["output", "--json"], "--json needs --output FILE"),
        (["list", "-s", "gone"], "Unknown state 'gone'. Available: queued"),
        (["completion", "tcsh"], "tcsh"),
    ],
)
def test_what_people_mistype(arguments: list[str], said: str) -> None:
    """Each mistake is answered with what to write instead, and with 2."""
    code_, text = shown(*arguments)
    assert code_ == 2
    assert said in text
