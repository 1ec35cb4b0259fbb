"""The command on a terminal of a real emulator: what a person sees, and what keys do."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from notebook_runner import Client
from tests.support.gate import Gate
from tests.support.notebooks import notebook, written
from tests.support.server import Server
from tests.support.tmux import Screen, needs_tmux

pytestmark = [pytest.mark.e2e, needs_tmux]

PROGRAM = Path(sys.executable).with_name("notebook-runner")
Show = Callable[..., Screen]
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a notebook of these cells to the disk."""

    def written_to_disk(*cells: str) -> Path:
        path = tmp_path / "in.ipynb"
        path.write_bytes(written(notebook(*cells)))
        return path

    return written_to_disk


@pytest.fixture
def show(server: Server, tmp_path: Path) -> Iterator[Show]:
    """Opens a terminal in which the command runs with these arguments; no run outlives the test."""

    def opened(*arguments: str | Path, **more: object) -> Screen:
        return Screen(tmp_path, PROGRAM, "--target", server.target, *arguments, **more)  # type: ignore[arg-type]

    yield opened
    with Client(server.target) as client:
        for run in client.list(states=["queued", "starting", "running"]):
            run.kill()


@pytest.mark.parametrize("columns", [80, 40])
def test_a_run_from_its_start_to_its_end(show: Show, write: Write, gate: Gate, columns: int) -> None:
    """Text stands above the bar, a bar of the notebook's own moves in place, and the end tells the times."""
    bar = "for n in 25, 50: print(f'\\r{n}%', end='', flush=True)"
    cells = [
        "print('begin')",
        f"import time; time.sleep(0.3)\n{bar}\n{gate.source}\nprint('\\rall read')",
        gate.source,
    ]
    with show("run", write(*cells), columns=columns) as screen:
        # A terminal can be seen while it draws.
        lines = screen.until(lambda lines: lines[:2] == ["begin", "50%"] and "1/3" in "".join(lines[2:]))
        assert "import" in lines[2]
        assert all(len(line) <= columns for line in lines)
        gate.open()
        lines = screen.until(lambda lines: lines[:2] == ["begin", "all read"] and "2/3" in "".join(lines[2:]))
        assert not any("%" in line for line in lines)
        gate.open()
        assert screen.exit_code() == 0
        lines = screen.until("run 20")
    assert lines[2].startswith("✓")
    assert "3/3" in lines[2]
    assert lines[3].startswith("slowest")
    assert "cell 2: import time" in "\n".join(lines[3:5])


def test_an_estimate_when_there_is_room(show: Show, write: Write, gate: Gate) -> None:
    """After some cells the bar tells how long the rest may take."""
    cells = ["import time; time.sleep(1)", *["1"] * 2, gate.source, *["1"] * 12]
    with show("run", write(*cells)) as screen:
        (line,) = [line for line in screen.until("3/16") if "left" in line]
        assert "~0:0" in line
        gate.open()
        assert screen.exit_code() == 0


def test_a_failed_run(show: Show, write: Write) -> None:
    """A cell that raises leaves the bar where it was, with the traceback and the reason below."""
    with show("run", write("print('so far')", "def f(x):\n    return 1 / x\nf(0)", "1")) as screen:
        assert screen.exit_code() == 1
        lines = screen.lines()
    assert lines[0] == "so far"
    (bar,) = [line for line in lines if line.startswith("✗")]
    assert "1/3" in bar
    assert "failed" in bar
    assert "Traceback (most recent call last)" in "\n".join(lines)
    assert "failed in cell 2 of 3 after" in lines[-2]
    assert lines[-1] == "ZeroDivisionError: division by zero"


def test_ctrl_c_asks_and_goes_on(show: Show, write: Write, gate: Gate) -> None:
    """Ctrl-C asks; `c` goes on where it was, and shows nothing twice."""
    with show("run", write("print('one')", f"{gate.source}\nprint('two')")) as screen:
        screen.until("1/2")
        screen.press("C-c")
        lines = screen.until("[k]ill, [l]eave or [c]ontinue?")
        # What the terminal itself writes for Ctrl-C has not moved the bar.
        assert len([line for line in lines if "1/2" in line]) == 1
        gate.open()
        screen.press("x", "c")
        assert screen.exit_code() == 0
        lines = screen.until("succeeded after")
    assert [line for line in lines if line in {"one", "two"}] == ["one", "two"]
    assert any(line.endswith("[c]ontinue? continue") for line in lines)


def test_ctrl_c_kills(show: Show, write: Write, gate: Gate) -> None:
    """Ctrl-C and `k` kill the run, and the command ends as it did."""
    with show("run", write(gate.source)) as screen:
        screen.until("0/1")
        screen.press("C-c")
        screen.until("[k]ill")
        screen.press("k")
        assert screen.exit_code() == 4
        assert any("killed in cell 1 of 1" in line for line in screen.lines())


@pytest.mark.parametrize("key", ["l", "C-c"])
def test_ctrl_c_leaves(show: Show, write: Write, gate: Gate, server: Server, key: str) -> None:
    """Ctrl-C and `l`, or Ctrl-C again, leave the run running and say how to get back to it."""
    with show("run", write(gate.source)) as screen:
        screen.until("0/1")
        screen.press("C-c")
        screen.until("[l]eave")
        screen.press(key)
        assert screen.exit_code() == 130
        lines = screen.until("kill it:")
    assert any(
        line.startswith("follow it:  notebook-runner --target") and " watch " in line for line in lines
    )
    with Client(server.target) as client:
        assert client.kill().run.id in "".join(lines[-2:])


def test_a_terminal_that_changes_its_width(show: Show, write: Write, gate: Gate) -> None:
    """A narrower or wider terminal gets a bar that fits, and keeps what was printed."""
    with show("run", write("print('hello')", f"{gate.source}; " + "1; " * 40)) as screen:
        screen.until("1/2")
        screen.resize(40)
        screen.until(lambda lines: "1/2" in lines[-1] and len(lines[-1]) <= 40)
        assert "hello" in screen.all_lines()
        screen.resize(100)
        screen.until(lambda lines: len(lines[-1]) > 60)
        assert "hello" in screen.all_lines()
        gate.open()
        assert screen.exit_code() == 0


def test_lists_and_doctor_fit(show: Show, write: Write, server: Server) -> None:
    """On 80 columns the list of runs is one line for each, and the doctor's lines are whole."""
    with Client(server.target) as client:
        client.run(write("1"), labels={"test": "screen"})
    with show("list", "--label", "test=screen") as screen:
        assert screen.exit_code() == 0
        heading, row = screen.lines()
    assert heading.split() == ["RUN", "STATE", "CELLS", "AGE", "TOOK", "NOTEBOOK"]
    assert row.endswith("(inline)")
    with show("doctor") as screen:
        assert screen.exit_code() == 0
        lines = screen.lines()
    assert lines[-1] == "all checks passed"
    assert all(line.startswith("✓ ") for line in lines[:-1])


def test_colours_can_be_turned_off(show: Show, write: Write) -> None:
    """With NO_COLOR nothing is coloured."""
    with show("run", write("print('\\x1b[31mred\\x1b[0m')"), environment={"NO_COLOR": "1"}) as screen:
        assert screen.exit_code() == 0
        assert "\x1b[31m" not in screen._tmux("capture-pane", "-p", "-e")
    with show("run", write("print('\\x1b[31mred\\x1b[0m')")) as screen:
        assert screen.exit_code() == 0
        assert "\x1b[31m" in screen._tmux("capture-pane", "-p", "-e")
