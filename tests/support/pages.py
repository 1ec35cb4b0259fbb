"""The code in Markdown pages, and a reader who does what a page says, line by line, against a real server.

Comments directly above a block say what is particular about it; nobody who reads the page sees them:

- `<!-- not run: WHY -->`: readers do this, a test does not.
- `<!-- exit code: N -->`: the block's last command ends with N.
- `<!-- prints: TEXT -->`: the block prints this, besides what it shows.

In a `console` block each line with `$ ` is a command, and the lines below it are printed by it, in this
order; `…` stands for anything. A block in `sh` is one script, one in `python` a program. All else is not run.
"""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from markdown_it import MarkdownIt
from typing_extensions import override

from tests.support.ports import free_port
from tests.support.server import PROGRAM, Server

REPOSITORY = Path(__file__).resolve().parents[2]
ADDRESS = "127.0.0.1:50051"
NAMED_ADDRESS = "runner.example.com:50051"
DASK_PORT = "8786"
RUN = ("console", "sh", "python")
SECONDS = 300.0

# What a fresh checkout does not have.
_NOT_OF_THE_REPOSITORY = {".git", ".venv", "demo-output", "bench-output", "image-output", "site"}
_NOTE = re.compile(r"<!-- (not run|exit code|prints): (.+?) -->")
_INSTALLED = ".venv/.installed"


@dataclass(frozen=True)
class Block:
    """A block of code in a page."""

    page: Path
    line: int
    language: str
    text: str
    notes: Mapping[str, str]

    @override
    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether a test does what the block says."""
        return self.language in RUN and "not run" not in self.notes


def blocks(page: Path) -> list[Block]:
    """All blocks of code of a page, in their order."""
    found: list[Block] = []
    notes: dict[str, str] = {}
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block":
            notes.update(_NOTE.findall(token.content))
        elif token.type == "fence":
            line = token.map[0] + 1 if token.map else 0
            language = token.info.split()[0] if token.info.strip() else ""
            found.append(Block(page, line, language, token.content, notes))
            notes = {}
        else:
            assert not notes, f"{page.name}: {notes} stands above no block"
    return found


def commands(block: Block) -> Iterator[tuple[str, list[str]]]:
    """The commands of a `console` block, each with the lines that it is shown to print."""
    command, shown = "", list[str]()
    for line in block.text.splitlines():
        if line.startswith("$ "):
            if command:
                yield command, shown
            command, shown = line[2:], []
        elif command.endswith("\\") and not shown:
            command += "\n" + line
        else:
            assert command, f"{block}: {line!r} follows no command"
            shown.append(line)
    if command:
        yield command, shown


class Reader:
    """Does what pages say in a shell, in a folder that looks like a fresh checkout.

    Where a page says 127.0.0.1:50051, the reader uses the address of the server that it started last, and for
    runner.example.com:50051 the same by the name localhost. From the beginning there is one as `make serve`
    starts it. For Dask's port 8786 the reader takes a free one.
    """

    def __init__(self, folder: Path, make_server: Callable[..., Server]) -> None:
        self._folder = folder
        self._make_server = make_server
        self._target = ""
        for each in REPOSITORY.iterdir():
            if each.name not in _NOT_OF_THE_REPOSITORY:
                (folder / each.name).symlink_to(each)
        (folder / ".venv").symlink_to(sys.prefix)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("NOTEBOOK_RUNNER_")}
        path = f"{PROGRAM.parent}{os.pathsep}{environment['PATH']}"
        self._shell = subprocess.Popen(
            ["bash"],  # noqa: S607 - the reader's own
            cwd=folder,
            env={**environment, "PATH": path, "COLUMNS": "80"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that all that it started can be ended
        )
        self._dask_port = free_port()
        # What is installed is what is tested, whatever the times of the files say.
        self.say(f'make() {{ command make --no-print-directory -o {_INSTALLED} "$@"; }}')
        self._serve("make serve")

    def close(self) -> None:
        """Ends the shell, and what it has started and not ended."""
        self._end()
        with self._shell:
            pass

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._shell.pid, signal.SIGKILL)

    def follow(self, block: Block) -> None:
        """Does what the block says, and checks that what happens is what it shows."""
        steps = [(block.text, list[str]())]
        if block.language == "console":
            steps = list(commands(block))
        elif block.language == "python":
            steps = [(f"python -c {shlex.quote(block.text)}", [])]
        printed = ""
        for place, (command, shown) in enumerate(steps, 1):
            if self._serve(self._here(command)):
                continue
            code, text = self.say(self._here(command))
            expected = int(block.notes.get("exit code", 0)) if place == len(steps) else 0
            assert code == expected, f"{block}: exit code {code}\n{command}\n{text}"
            _compare(f"{block}: {command}", shown, text)
            printed += text
        assert block.notes.get("prints", "") in printed, f"{block} printed\n{printed}"

    def _here(self, command: str) -> str:
        """A command with the address of the server that was started last."""
        by_name = self._target.replace("127.0.0.1", "localhost")
        here = command.replace(ADDRESS, self._target).replace(NAMED_ADDRESS, by_name)
        return here.replace(DASK_PORT, str(self._dask_port))

    def say(self, command: str) -> tuple[int, str]:
        """Says one command to the shell; answers its exit code and what it printed."""
        mark = uuid4().hex
        assert self._shell.stdin
        assert self._shell.stdout
        # It runs in this very shell, so that variables and folder are there for the next one.
        self._shell.stdin.write(f"eval {shlex.quote(command)} < /dev/null\necho {mark} $?\n")
        self._shell.stdin.flush()
        lines: list[str] = []
        watch = threading.Timer(SECONDS, self._end)
        watch.start()
        try:
            for line in self._shell.stdout:
                before, found, code = line.partition(mark)
                lines.append(before if found else line)
                if found:
                    return int(code), "".join(lines)
        finally:
            watch.cancel()
        raise AssertionError(f"{command}: the shell has ended\n{''.join(lines)}")

    def _serve(self, command: str) -> bool:
        """Starts the server that a command starts; answers whether it is such a command."""
        words = shlex.split(command.replace("\\\n", " "), comments=True)
        if words == ["make", "serve"]:
            recipe = ["make", "--no-print-directory", "-n", "-o", _INSTALLED, "serve"]
            said = subprocess.run(recipe, cwd=self._folder, capture_output=True, text=True, check=True)
            words = shlex.split(said.stdout)
        others = {"--help", "--version", "--new-token"}
        if not words or Path(words[0]).name != PROGRAM.name or others & set(words):
            return False
        # Of two options that are the same the last one counts.
        options = [
            *(word for word in words[1:] if word != "&"),
            "--listen",
            "127.0.0.1:0",
            "--log-format",
            "json",
        ]
        exported = (line.partition("=") for line in self.say("env")[1].splitlines())
        dask = {name: value for name, _, value in exported if name.startswith("DASK_")}
        self._target = self._make_server(*options, folder=self._folder, environment=dask).target
        self.say(f"export NOTEBOOK_RUNNER_TARGET={self._target}")
        return True


def _compare(what: str, shown: list[str], printed: str) -> None:
    """Checks that the lines were printed, in their order, with `…` for anything."""
    place = 0
    lines = printed.splitlines()
    for line in shown:
        pattern = re.compile(".*".join(map(re.escape, line.strip().split("…"))))
        matching = (at for at in range(place, len(lines)) if pattern.fullmatch(lines[at].strip()))
        found = next(matching, None)
        assert found is not None, f"{what}: {line!r} was not printed; that was\n{printed}"
        place = found + 1
