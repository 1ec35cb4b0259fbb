"""What a person sees who starts the server on a terminal."""

import re
from pathlib import Path

import pytest

from notebook_runner import Client
from tests.support.gate import Gate
from tests.support.notebooks import content
from tests.support.server import PROGRAM, Server
from tests.support.tmux import Screen, dense, needs_tmux

# Without spaces, as one of them may be where the line is wrapped.
READY = re.compile(r"Readyon(127\.0\.0\.1:\d+)\.Try:(\S+?)--target\1runNOTEBOOK\.ipynb")


def command(folder: Path) -> list[str | Path]:
    """A server on a free port."""
    return [PROGRAM, "--listen", "127.0.0.1:0", "--state-dir", folder / "state", "--queue", "2"]


@needs_tmux
@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}], ids=["colour", "plain"])
@pytest.mark.parametrize("columns", [80, 140])
def test_the_server_says_that_it_is_ready_and_what_it_waits_for(
    tmp_path: Path, gate: Gate, columns: int, environment: dict[str, str]
) -> None:
    """One line says what to try; Ctrl-C names the run that the server waits for, and again ends it."""
    options = [*command(tmp_path), "--drain-timeout", "3600"]
    with Screen(tmp_path, *options, columns=columns, environment=environment) as screen:
        lines = screen.until(lambda lines: READY.search(dense(lines)) is not None)
        found = READY.search(dense(lines))
        assert found
        assert Path(found[2]) == PROGRAM.with_name("notebook-runner")
        assert not any(line.startswith("{") for line in lines)
        coloured = "\x1b[3" in screen._tmux("capture-pane", "-p", "-e")
        assert coloured is not bool(environment)
        with Client(found[1]) as client:
            run_id = client.start(content(gate.source)).id
            for event in client.progress(run_id):
                if event.pb.HasField("cell_started"):
                    break
            screen.press("C-c")
            stopping = (
                f"Stopping: waiting up to 3600 s for run {run_id} to end. Press Ctrl-C again to end it now."
            )
            screen.until(lambda lines: dense([stopping]) in dense(lines))
        screen.press("C-c")
        assert screen.exit_code() == 0
        # The terminal itself writes ^C.
        assert any(line.endswith(f"Ending run {run_id}.") for line in screen.all_lines())
        assert "Stopped." in screen.all_lines()


@needs_tmux
def test_a_server_without_runs_stops(tmp_path: Path) -> None:
    """With nothing to wait for, nothing is said of it."""
    with Screen(tmp_path, *command(tmp_path)) as screen:
        screen.until("Ready on")
        screen.press("C-c")
        assert screen.exit_code() == 0
        lines = screen.all_lines()
    assert "Stopping." in lines
    assert "Stopped." in lines


@needs_tmux
@pytest.mark.parametrize(("page", "path"), [("on", ""), ("off", "docs")])
def test_the_server_says_what_a_browser_can_open(tmp_path: Path, page: str, path: str) -> None:
    """With HTTP, the address of the page; without the page, that of the HTTP API's documentation."""
    options = ["--http-listen", "0.0.0.0:0", "--insecure", "--http-page", page]
    with Screen(tmp_path, *command(tmp_path), *options, columns=140) as screen:
        screen.until("Ready on")
        lines = screen.all_lines()
        screen.press("C-c")
        assert screen.exit_code() == 0
    assert any(re.fullmatch(rf"In a browser: http://127\.0\.0\.1:\d+/{path}", line) for line in lines)


def test_without_a_terminal_the_log_is_json(tmp_path: Path) -> None:
    """By default, and without the sentences for people."""
    with Server(tmp_path, "--log-format", "auto") as server:
        assert server.log
    assert server.noise == []
    assert [one["event"] for one in server.log][-1] == "server_stopped"
