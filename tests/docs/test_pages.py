"""What pages tell readers to write is right: code compiles, flags exist, requests are of the contract."""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from google.protobuf.json_format import ParseDict

from notebook_runner.cli import main
from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.config import ENVIRONMENT_PREFIX, Settings
from notebook_runner_server.config.flags import NEW_TOKEN, actions, options
from tests.support.pages import REPOSITORY, Block, blocks

PAGES = sorted(
    [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("examples/*.md")]
)
BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELLS = {"console", "sh", "bash", "shell"}
SERVICE = pb.DESCRIPTOR.services_by_name["NotebookRunner"]


def of(*languages: str) -> list[Block]:
    """The blocks of all pages in these languages."""
    return [block for block in BLOCKS if block.language in languages]


def words(block: Block) -> Iterator[list[str]]:
    """Each simple command of a block of shell, as the shell splits it."""
    text = block.text.replace("\\\n", " ")
    if block.language == "console":
        text = "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))
    begun = ""
    for line in text.splitlines():
        begun += line
        lexer = shlex.shlex(begun, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            tokens = list(lexer)
        except ValueError:  # a quotation goes on in the next line
            begun += "\n"
            continue
        begun, command = "", list[str]()
        for word in tokens:
            if set(word) <= set("();<>|&"):
                yield command
                command = []
            else:
                command.append(word)
        yield command
    assert not begun, f"{block}: {begun!r} has no end"


def manifest_commands(value: Any) -> Iterator[list[str]]:
    """Each list in a YAML document that is a command of ours."""
    if isinstance(value, list) and value and Path(str(value[0])).name in PROGRAMS:
        yield [str(item) for item in value]
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from manifest_commands(item)


def called(program: str) -> list[tuple[str, list[str]]]:
    """All calls of a program in all pages, with where they are."""
    found = [(str(block), command) for block in of(*SHELLS) for command in words(block)]
    for block in of("yaml"):
        found += [
            (str(block), command) for command in manifest_commands(list(yaml.safe_load_all(block.text)))
        ]
    calls = []
    for where, command in found:
        if command and command[0] in OTHERS:
            continue
        places = [place for place, word in enumerate(command) if Path(word).name == program]
        # What stands before it is an assignment, or a word of the shell's such as `until`.
        calls += [(where, command[place + 1 :]) for place in places[:1]]
    return calls


PROGRAMS = {"notebook-runner", "notebook-runner-server"}
# What these name so is a namespace, a resource, an image, a folder, or an engine.
OTHERS = {"docker", "install", "jcache", "k3d", "kubectl", "papermill", "python3"}


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_python_compiles(block: Block) -> None:
    """It is Python, at the top of a file or in a notebook's cell."""
    compile(block.text, str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("block", of("json", "yaml"), ids=str)
def test_data_can_be_read(block: Block) -> None:
    """JSON is JSON, and YAML is YAML."""
    assert json.loads(block.text) if block.language == "json" else list(yaml.safe_load_all(block.text))


def test_calls_of_the_client_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line has a command of `notebook-runner` with options that it has."""
    monkeypatch.setattr(main, "callback", lambda **_: None)
    for command in main.commands.values():
        monkeypatch.setattr(command, "callback", lambda *_, **__: None)
    for param in (param for command in (main, *main.commands.values()) for param in command.params):
        # A reader's files are not here.
        if isinstance(param.type, click.Path):
            monkeypatch.setattr(param.type, "exists", False)
    calls = called("notebook-runner")
    assert len(calls) > 10
    for where, arguments in calls:
        parse(main, where, arguments)


def test_calls_of_the_server_parse() -> None:
    """Every line has options that `notebook-runner-server` has, with values that they can have."""
    params: list[click.Parameter] = [*options(), *(one for one in actions() if one.name == NEW_TOKEN)]

    def settings(**told: Any) -> None:
        del told[NEW_TOKEN]  # no setting
        Settings(**told)

    command = click.Command("notebook-runner-server", callback=settings, params=params)
    calls = called("notebook-runner-server")
    assert calls
    for where, arguments in calls:
        parse(command, where, arguments)


def parse(command: click.Command, where: str, arguments: list[str]) -> None:
    """Parses a command line as the program does."""
    try:
        command.main(arguments, prog_name="program", standalone_mode=False)
    except (click.ClickException, ValueError) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        pytest.fail(f"{where}: {' '.join(arguments)}: {message}")


def test_requests_of_grpcurl_are_of_the_contract() -> None:
    """Every line with grpcurl calls a method that there is, with a request of its own; none is missing."""
    shown = set()
    for where, arguments in called("grpcurl"):
        name = re.search(r"NotebookRunner/(\w+)$", arguments[-1])
        if not name:
            continue
        assert name[1] in SERVICE.methods_by_name, where
        data = arguments[arguments.index("-d") + 1] if "-d" in arguments else "{}"
        if data != "@":
            kind = getattr(pb, SERVICE.methods_by_name[name[1]].input_type.name)
            ParseDict(json.loads(data), kind())
        shown.add(name[1])
    assert shown >= {"Start", "Progress", "Output", "Kill", "List"}


def test_variables_are_of_settings() -> None:
    """Every variable that a page names is a setting of the server's, or one that the sources name."""
    known = {f"{ENVIRONMENT_PREFIX}_{name.upper()}" for name in Settings.__dataclass_fields__}
    for source in [*REPOSITORY.glob("client/**/*.py"), *REPOSITORY.glob("server/**/*.py")]:
        known |= variables(source)
    for page in PAGES:
        assert variables(page) <= known, page.name


def variables(file: Path) -> set[str]:
    """The project's variables that a file names."""
    return set(re.findall(rf"\b{ENVIRONMENT_PREFIX}_[A-Z_]*[A-Z]\b", file.read_text(encoding="utf-8")))


def test_names_in_the_glossary_are_of_the_server() -> None:
    """Each class, package and flag that the glossary names is one of the server's."""
    server = REPOSITORY / "server"
    known = {path.parent.name for path in server.rglob("__init__.py")}
    known |= {opt for option in options() for opt in [*option.opts, *option.secondary_opts]}
    for module in server.rglob("*.py"):
        known |= set(re.findall(r"^class (\w+)", module.read_text(encoding="utf-8"), re.MULTILINE))
    # Not the log lines `run` and `rpc`.
    name = re.compile(r"\(`(--[a-z-]+|[A-Z][A-Za-z]+|[a-z]{4,})`\) \|$", re.MULTILINE)
    named = name.findall((REPOSITORY / "docs/glossary.md").read_text())
    assert len(named) > 20
    assert set(named) - known == set()


def test_log_events_are_listed() -> None:
    """The page on the log lists each event that the server logs, and no other."""
    levels = {"debug", "info", "warning", "error", "critical", "exception", "log", "_log"}
    # Chosen by a condition, and written by the log's own thread.
    logged = {"sandbox_active", "sandbox_off", "log_lines_dropped"}
    for module in (REPOSITORY / "server").rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in levels:
                texts = [one.value for one in node.args if isinstance(one, ast.Constant)]
                logged |= {text for text in texts if isinstance(text, str) and re.fullmatch(r"\w+_\w+", text)}
    page = (REPOSITORY / "docs/how-to/observe.md").read_text()
    tables = re.findall(r"^\| event \|.*\n((?:\|.*\n)+)", page, re.MULTILINE)
    cells = [row.split("|")[1] for table in tables for row in table.splitlines()[1:]]
    listed = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(listed) == sorted(logged)
