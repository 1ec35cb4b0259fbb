"""The contract from a second language: a client in Node.js, for which no code is generated."""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import nbformat
import pytest
from google import rpc

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import artefact, inline, perform, reach, started
from tests.support.fake_server import ENDED, RUNNING, FakeServer, beat, changed, printed
from tests.support.gate import Gate
from tests.support.notebooks import code, notebook, parsed
from tests.support.notebooks import printed as printed_text
from tests.support.pages import ADDRESS, blocks
from tests.support.server import Server
from tests.support.tools import needs

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
NPM = [HERE / name for name in ("package.json", "package-lock.json", ".npmrc")]
INSTALL_SECONDS = 300
SECONDS = 60
NODE = shutil.which("node") or "node"
pytestmark = [pytest.mark.long, needs("node", "npm")]

Told = list[dict[str, Any]]


@pytest.fixture(scope="module")
def modules() -> Path:
    """What the client imports, installed from its lock, once for each content of that."""
    sums = hashlib.sha256(b"".join(file.read_bytes() for file in NPM)).hexdigest()
    folder = Path(sys.prefix) / "interop" / sums[:16]
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as place:
            install(Path(place))
            # Whole or not at all; somebody else may have been faster.
            with contextlib.suppress(OSError):
                (Path(place) / "node_modules").rename(folder)
    return folder


def install(folder: Path) -> None:
    """Installs what the lock says, and executes nothing of it."""
    for file in NPM:
        shutil.copy(file, folder)
    command = ["npm", "ci", "--ignore-scripts"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr


class Program:
    """The client at work."""

    def __init__(self, modules: Path, target: str, folder: Path, cells: list[Any], **parameters: Any) -> None:
        nbformat.write(notebook(*cells), folder / "sent.ipynb")
        self.executed = folder / "executed.ipynb"
        google = Path(rpc.__path__[0]).parents[1]
        paths = {"NODE_PATH": str(modules), "PROTO_PATH": f"{REPOSITORY / 'proto'}:{google}"}
        arguments = [target, str(folder / "sent.ipynb"), str(self.executed), json.dumps(parameters)]
        self.process = subprocess.Popen(
            [NODE, str(HERE / "client.js"), *arguments],
            env={**os.environ, **paths},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def lines(self) -> Iterator[dict[str, Any]]:
        """What it tells, as it comes."""
        assert self.process.stdout
        for line in self.process.stdout:
            yield json.loads(line)

    def rest(self) -> Told:
        """What it tells until it ends, which it does well."""
        told = list(self.lines())
        assert self.process.stderr
        errors = self.process.stderr.read()
        assert self.process.wait(SECONDS) == 0, errors
        return told


@pytest.fixture
def node(modules: Path, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Starts the client: `node(target, cells, **parameters)`."""
    with contextlib.ExitStack() as programs:

        def run(target: str, cells: list[Any], **parameters: Any) -> Program:
            program = Program(modules, target, tmp_path, cells, **parameters)
            programs.enter_context(program.process)
            programs.callback(program.process.kill)
            return program

        yield run


def field(told: Told, name: str) -> list[Any]:
    """What all lines that have this field say in it."""
    return [line[name] for line in told if name in line]


def test_it_starts_follows_and_reads(server: Server, node: Callable[..., Program]) -> None:
    """Parameters arrive, every event comes once and in order, and the pages are the executed notebook."""
    cells = [code("who = ''\nnumbers = []", "parameters"), "print(who, numbers)", "print('x' * 10_000)"]
    program = node(server.target, cells, who="Node", numbers=[1, 2.5, None, {"a": True}])
    told = program.rest()
    sequences = field(told, "sequence")
    assert sequences == list(range(1, len(sequences) + 1))
    kinds = {"run_changed", "cell_started", "cell_output", "cell_finished"}
    assert set(field(told, "event")) == kinds
    said = "Node [1, 2.5, None, {'a': True}]\n"
    # A kernel may send a line in two pieces.
    assert "".join(field(told, "printed")).startswith(said)
    assert field(told, "pages")[0] > 2
    run_id = field(told, "started")[0]
    assert program.executed.read_bytes() == artefact(server.stub, run_id)
    assert printed_text(parsed(program.executed.read_bytes()), 2) == said
    assert told[-1] == {"ended": "RUN_STATE_SUCCEEDED", "exception": ""}


def test_a_run_that_fails_is_data(server: Server, node: Callable[..., Program]) -> None:
    """The exception is in the run, and the notebook is there."""
    program = node(server.target, ["1 / 0"])
    assert program.rest()[-1] == {"ended": "RUN_STATE_FAILED", "exception": "ZeroDivisionError"}
    assert b"ZeroDivisionError" in program.executed.read_bytes()


def test_it_waits_its_turn(
    make_server: Callable[..., Server], node: Callable[..., Program], gate: Gate
) -> None:
    """RUNNER_BUSY is told by its ErrorInfo, with the run in the way and when to try again."""
    server = make_server()
    with started(server.stub, inline(gate.source)) as busy:
        reach(server.stub, busy.run_id, "cell_started")
        program = node(server.target, ["print('at last')"])
        assert next(program.lines()) == {"busy": busy.run_id, "retry_after": 1}
        gate.open()
        told = program.rest()
    assert "".join(field(told, "printed")) == "at last\n"
    assert told[-1]["ended"] == "RUN_STATE_SUCCEEDED"


def test_it_goes_on_where_its_connection_broke(node: Callable[..., Program]) -> None:
    """It asks again for what comes after the last event that it saw; heartbeats are none."""
    fake = FakeServer()
    fake.answers("Start", pb.StartResponse(run=RUNNING))
    fake.answers("Progress", changed(1, RUNNING), printed(2), beat(2), grpc.StatusCode.UNAVAILABLE)
    fake.answers("Progress", printed(3), changed(4, ENDED))
    checksum = hashlib.sha256(b"{}").hexdigest()
    fake.answers("Output", pb.OutputResponse(content=b"{}", next_offset=2, total_bytes=2, sha256=checksum))
    try:
        assert field(node(fake.target, []).rest(), "sequence") == [1, 2, 3, 4]
    finally:
        fake.stop()
    followed = [request for request in fake.asked if isinstance(request, pb.ProgressRequest)]
    assert [(request.run_id, request.after_sequence) for request in followed] == [("r", 0), ("r", 2)]


def test_what_the_page_shows_works(server: Server, modules: Path) -> None:
    """The program in docs/ follows the newest run to its end."""
    perform(server.stub, inline("1 + 1"))
    page = REPOSITORY / "docs" / "how-to" / "other-languages.md"
    (program,) = [block.text for block in blocks(page) if block.language == "js"]
    done = subprocess.run(
        [NODE, "-e", program.replace(ADDRESS, server.target)],
        cwd=REPOSITORY,
        env={**os.environ, "NODE_PATH": str(modules)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "1 run_changed"
    assert lines[-1] == f"{len(lines)} run_changed"


def test_the_lock_names_no_registry() -> None:
    """Whoever installs takes the packages from where their own npm takes them."""
    lock = (HERE / "package-lock.json").read_text()
    assert "resolved" not in lock
    assert "://" not in lock.replace('"url": "https://', "")
