"""The command on a real terminal, with a notebook and a server that try to steer it, and in a pipe."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from notebook_runner import _printable
from notebook_runner.cli import _terminal
from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.completion import PATIENT
from tests.support.fake_server import FakeServer
from tests.support.terminal import on_a_terminal

pytestmark = pytest.mark.integration

PROGRAM = Path(sys.executable).with_name("notebook-runner")
# It clears the screen, sets the title, answers for the user, colours by one character, goes back, and turns
# letters round; then comes a line that could be another one's.
EVIL = (
    "\x1b[2J\x1b]0;owned\x07\x1b[6n\x1bPq\x1b\\\x9b31m\x9d0;owned\x9c\x85\x08\x7f"
    "\u202egpj\u2066\u061c\u200e\u200f word\r\nrun fake succeeded"
)
COLOURS = re.compile(r"\x1b\[[0-9;:]*m")
STEERING = re.compile(r"[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f]")
TURNING = re.compile(r"[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# What the live view draws with.
DRAWN = re.compile(r"\x1b\[(?:\?25[lh]|[0-9]*[AK]|2K)|\r")

FAILURE = pb.Failure(
    cause=pb.FAILURE_CAUSE_CELL_ERROR,
    message=EVIL,
    cell_index=0,
    cell_id=EVIL,
    exception_name=EVIL,
    exception_message=EVIL,
    traceback=f"\x1b[31m{EVIL}\x1b[0m",
)
FAILED = pb.Run(
    run_id=EVIL,
    state=pb.RUN_STATE_FAILED,
    cells_total=1,
    notebook_path=EVIL,
    labels={EVIL: EVIL},
    failure=FAILURE,
    notebook_repairs=[EVIL],
    kernel_name=EVIL,
)
UNWRITTEN = pb.Run(run_id=EVIL, state=pb.RUN_STATE_SUCCEEDED, output_uri=EVIL, output_error=EVIL)
RUNNING = pb.Run(run_id=EVIL, state=pb.RUN_STATE_RUNNING, notebook_path=EVIL, notebook_repairs=[EVIL])
STREAM = pb.CellOutput(stream=pb.StreamOutput(name=EVIL, text=EVIL))
DISPLAY = pb.CellOutput(display=pb.DisplayOutput(data=[pb.MimeData(mime_type=EVIL)], omitted=3))
PLAIN = pb.MimeData(mime_type="text/plain", content=EVIL.encode())
TABLE = pb.MimeData(mime_type="text/html", content=f"<table><tr><td>{EVIL}</td></tr></table>".encode())
TEXT = pb.CellOutput(display=pb.DisplayOutput(data=[PLAIN]))
ROWS = pb.CellOutput(display=pb.DisplayOutput(data=[TABLE]))
VALUE = pb.CellOutput(display=pb.DisplayOutput(result=pb.ResultValue(name=EVIL, value_json=json.dumps(EVIL))))
ERROR = pb.CellOutput(error=pb.ErrorOutput(exception_name=EVIL, exception_message=EVIL))
STARTED = pb.CellStarted(cell_id=EVIL, first_line=EVIL)
INFO = pb.InfoResponse(
    version=f"9.9.9{EVIL}",
    kernels=[pb.KernelInfo(name=EVIL, language=EVIL, is_default=True)],
    formats=[EVIL, "html"],
    problem=EVIL,
    workers=1,
)


def story(last: pb.Run) -> list[pb.ProgressResponse]:
    """The events of a run in which all texts are evil."""
    texts = enumerate([STREAM, DISPLAY, TEXT, ROWS, VALUE, ERROR], 3)
    outputs = [pb.ProgressResponse(sequence=number, cell_output=output) for number, output in texts]
    return [
        pb.ProgressResponse(sequence=1, run_changed=RUNNING, cells_total=1),
        pb.ProgressResponse(sequence=2, cell_started=STARTED, cells_total=1),
        *outputs,
        pb.ProgressResponse(sequence=9, run_changed=last, cells_total=1),
    ]


def served(fake: FakeServer, last: pb.Run = FAILED) -> None:
    """Has the server answer each of the commands."""
    content = f"{EVIL}\x1b[31mred\x1b[0m\n".encode()
    page = pb.OutputResponse(content=content, total_bytes=len(content), next_offset=len(content))
    fake.answers("Progress", *story(last))
    fake.answers("Output", page)
    fake.answers("List", pb.ListResponse(runs=[last]))
    fake.answers("List", pb.ListResponse(runs=[last]))
    fake.answers("Get", pb.GetResponse(run=last))
    fake.answers("Kill", pb.KillResponse(run=last))
    fake.answers("Delete", pb.DeleteResponse(run=last))
    fake.answers("Info", INFO)
    fake.answers("Start", pb.StartResponse(run=last))


COMMANDS = [
    ("watch", "x"),
    ("watch", "x", "-q"),
    ("watch", "x", "--json"),
    ("logs", "x"),
    ("logs", "x", "--json"),
    ("output", "x"),
    ("output", "x", "-f", "error"),
    ("output", "x", "-f", "script"),
    ("show", "x"),
    ("show", "x", "--json"),
    ("list",),
    ("list", "--json"),
    ("delete", "x", "--yes"),
    ("delete", "x", "--json"),
    ("kill", "--yes"),
    ("kill", "x", "--json"),
    ("start",),
    ("start", "--json"),
    ("doctor",),
    ("doctor", "--json"),
]


# Terminals differ in colours only, and runs in texts only, so a fourth pair would show nothing else.
@pytest.mark.parametrize(
    ("kind", "last"),
    [("dumb", FAILED), ("xterm-256color", FAILED), ("xterm-256color", UNWRITTEN)],
    ids=["dumb", "failed", "unwritten"],
)
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_nothing_steers_a_terminal(
    fake: FakeServer, command: tuple[str, ...], kind: str, last: pb.Run
) -> None:
    """Of all that a notebook and a server say only colours pass, where there are any."""
    served(fake, last)
    _, screen = on_a_terminal(PROGRAM, "--target", fake.target, *command, columns=200, kind=kind)
    assert "Traceback" not in screen
    is_live = command == ("watch", "x") and kind != "dumb"
    text = COLOURS.sub("" if kind != "dumb" else "\\\\g<0>", screen)
    text = DRAWN.sub("", text) if is_live else text.replace("\r\n", "\n")
    assert STEERING.search(text) is None, repr(screen)
    assert TURNING.search(text) is None, repr(screen)
    # What a notebook prints may have several lines.
    names = text if command[0] in {"list", "kill", "delete", "start", "doctor"} or "--json" in command else ""
    assert "\nrun fake" not in names


@pytest.mark.parametrize("command", [one for one in COMMANDS if "--json" in one], ids=" ".join)
def test_json_has_all_of_it(fake: FakeServer, command: tuple[str, ...]) -> None:
    """As escapes: what a program reads is what the server said."""
    served(fake)
    whole = [str(PROGRAM), "--target", fake.target, *command]
    done = subprocess.run(whole, check=False, capture_output=True, text=True)
    assert STEERING.search(done.stdout) is None
    assert TURNING.search(done.stdout) is None
    texts = [text for line in done.stdout.splitlines() for text in _texts(json.loads(line))]
    assert [text for text in texts if EVIL in text]


def _texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for part in value.items() for text in _texts(list(part))]
    if isinstance(value, list):
        return [text for part in value for text in _texts(part)]
    return [value] if isinstance(value, str) else []


def test_a_pipe_gets_what_there_is(fake: FakeServer) -> None:
    """What goes to a pipe or to a file is as it was, byte for byte."""
    served(fake)
    command = [str(PROGRAM), "--target", fake.target, "output", "x", "-f", "error"]
    done = subprocess.run(command, check=True, capture_output=True)
    assert done.stdout == f"{EVIL}\x1b[31mred\x1b[0m\n".encode()
    served(fake)
    command = [str(PROGRAM), "--target", fake.target, "logs", "x", "--no-display"]
    assert subprocess.run(command, check=True, capture_output=True).stdout == EVIL.encode()


def test_a_bar_of_the_notebooks_moves_in_place(fake: FakeServer) -> None:
    """A terminal begins a line anew where a notebook does, in what it printed and nowhere else."""
    bar = pb.CellOutput(stream=pb.StreamOutput(name="stdout", text="10%\r20%"))
    fake.answers("Get", pb.GetResponse(run=pb.Run(run_id="x")))
    fake.answers("Progress", pb.ProgressResponse(sequence=1, cell_output=bar))
    _, screen = on_a_terminal(PROGRAM, "--target", fake.target, "logs", "x")
    assert screen.startswith("10%\r20%")


def test_colours_end_with_what_has_them(fake: FakeServer) -> None:
    """What the command says after it, and the shell's next line, can be seen."""
    hidden = pb.CellOutput(stream=pb.StreamOutput(name="stdout", text="\x1b[31mred\x1b[8m"))
    ended = pb.Run(
        run_id="r", state=pb.RUN_STATE_FAILED, failure=pb.Failure(message="no", traceback="\x1b[8mT")
    )
    events = [
        pb.ProgressResponse(sequence=1, cell_output=hidden),
        pb.ProgressResponse(sequence=2, run_changed=ended),
    ]
    for command, end in (
        (("logs", "x"), "\x1b[31mred\x1b[8m\x1b[0m"),
        (("watch", "x", "-q"), "run r failed: no\r\n\x1b[31m\x1b[1mT\x1b[0m\r\n"),
    ):
        fake.answers("Get", pb.GetResponse(run=ended))
        fake.answers("Progress", *events)
        _, screen = on_a_terminal(PROGRAM, "--target", fake.target, *command)
        assert screen.startswith(end), repr(screen)


def test_a_shell_completes_only_what_can_be_typed(fake: FakeServer) -> None:
    """Names with spaces, line feeds and controls are not offered."""
    served(fake)
    environment = {
        "_NOTEBOOK_RUNNER_COMPLETE": "bash_complete",
        "COMP_WORDS": f"notebook-runner --target {fake.target} output -f ",
        "COMP_CWORD": "5",
        "PATH": "",
    }
    done = subprocess.run(PATIENT, check=True, capture_output=True, text=True, env=environment)
    assert done.stdout == "plain,html\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (EVIL, "q31m0;owned gpj word run fake succeeded"),
        ("a\x85b\u2028c\x1cd", "a b c d"),
        ("\u202eab", "ab"),
    ],
)
def test_names_are_one_line(text: str, line: str) -> None:
    """Without colours, and with their letters in order."""
    assert _printable.one_line(text) == line


def test_there_are_streams_afterwards() -> None:
    """The standard streams are what they were when the command has ended."""
    before = sys.stdout, sys.stderr
    with _terminal.clean_terminals():
        pass
    assert (sys.stdout, sys.stderr) == before
