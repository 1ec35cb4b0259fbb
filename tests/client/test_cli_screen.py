"""The command on a terminal of a real emulator: what a person sees, and what keys do."""

import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from notebook_runner import Client
from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import inline, perform
from tests.support.fake_server import ENDED, RUNNING, WAIT_SECONDS, FakeServer, changed, printed
from tests.support.gate import Gate
from tests.support.notebooks import notebook, written
from tests.support.server import Server
from tests.support.tmux import Screen, dense, needs_tmux
from tests.support.warm import settled

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
    # Others may have taken longer.
    assert "cell 2: import time" in "\n".join(lines[3:6])


def test_an_estimate_when_there_is_room(show: Show, write: Write, gate: Gate) -> None:
    """After some cells, and some seconds, the bar tells how long the rest may take; not before."""
    cells = [gate.source, f"import time; time.sleep(3)\n{gate.source}", "1", gate.source, *["1"] * 12]
    with show("run", write(*cells)) as screen:
        screen.until("0/16")
        gate.open()
        assert "left" not in "".join(screen.until("1/16"))
        gate.open()
        # How long depends on the test, which has kept the cells waiting.
        (line,) = [line for line in screen.until("3/16") if "left" in line]
        assert re.search(r"~\d+:\d\d", line)
        gate.open()
        assert screen.exit_code() == 0


def test_a_failed_run(show: Show, write: Write) -> None:
    """A cell that raises leaves the bar where it was, with the reason below, and the traceback last, once."""
    with show("run", write("print('so far')", "def f(x):\n    return 1 / x\nf(0)", "1")) as screen:
        assert screen.exit_code() == 1
        lines = screen.lines()
    assert lines[0] == "so far"
    (bar,) = [line for line in lines if line.startswith("✗")]
    assert "1/3" in bar
    assert "failed" in bar
    text = "\n".join(lines)
    assert text.index("failed in cell 2 of 3 after") < text.index("Traceback (most recent call last)")
    assert text.count("division by zero") == 1
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
        # The cell has begun when its first line is there.
        screen.until("import os")
        screen.press("C-c")
        screen.until("[k]ill")
        screen.press("k")
        assert screen.exit_code() == 4
        assert any("killed in cell 1 of 1" in line for line in screen.lines())


@pytest.mark.parametrize("key", ["l", "C-c"])
def test_ctrl_c_leaves(show: Show, write: Write, gate: Gate, server: Server, key: str) -> None:
    """Ctrl-C and `l`, or Ctrl-C again, leave the run running and say how to get back to it and its result."""
    with show("run", write(gate.source), "-o", "done.ipynb") as screen:
        screen.until("0/1")
        screen.press("C-c")
        screen.until("[l]eave")
        screen.press(key)
        assert screen.exit_code() == 130
        lines = screen.until("get it:")
    assert any(
        line.startswith("follow it:  notebook-runner --target") and " watch " in line for line in lines
    )
    with Client(server.target) as client:
        run_id = client.kill().run.id
    assert f"kill{run_id}" in dense(lines)
    assert dense(lines).endswith(f"output{run_id}-odone.ipynb")


def test_a_terminal_that_changes_its_width(show: Show, write: Write, gate: Gate) -> None:
    """A narrower or wider terminal gets a bar that fits, and keeps what was printed."""
    with show("run", write("print('hello')", f"{gate.source}; " + "1; " * 40)) as screen:
        screen.until("1/2")
        screen.resize(40)
        screen.until(lambda lines: "1/2" in "".join(lines[-1:]) and len(lines[-1]) <= 40)
        assert "hello" in screen.all_lines()
        screen.resize(100)
        screen.until(lambda lines: len("".join(lines[-1:])) > 60)
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
    assert heading.split() == ["RUN", "STATE", "CELLS", "AGE", "TOOK", "NAME", "LABELS"]
    assert row.split()[-1] == "test=screen"
    settled(server)
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


@pytest.mark.parametrize(("key", "exit_code"), [("n", 1), ("y", 0), ("C-c", 130)])
def test_kill_asks_which_run(
    show: Show, write: Write, gate: Gate, server: Server, key: str, exit_code: int
) -> None:
    """Without an id the command asks first, and names the run."""
    with Client(server.target) as client:
        run_id = client.start(write(gate.source), name="hold").id
    with show("kill") as screen:
        screen.until(f"Kill run {run_id}: ")
        screen.press(key, "Enter")
        assert screen.exit_code() == exit_code
        if key == "y":
            screen.until("killed by force")
    with show("kill", run_id) as screen:
        assert screen.exit_code() == 0
        ended = [line for line in screen.lines() if "had already ended: killed" in line]
        assert len(ended) == (key == "y")


@pytest.fixture(scope="module")
def recursion(server: Server) -> str:
    """The id of a run that ended by a recursion, whose traceback takes the kernel more than a second."""
    cells = ["def a(n): return b(n)", "def b(n): return a(n + 1)\na(0)"]
    return perform(server.stub, inline(*cells)).run.run_id


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}], ids=["colour", "plain"])
@pytest.mark.parametrize("columns", [80, 140])
def test_a_recursion_is_folded(show: Show, recursion: str, columns: int, environment: dict[str, str]) -> None:
    """Frames that repeat are there once, and the exception is the last line, in colour where there is any."""
    with show("watch", recursion, columns=columns, environment=environment) as screen:
        assert screen.exit_code() == 1
        lines = [line for line in screen.all_lines() if line]
        colours = screen._tmux("capture-pane", "-p", "-e")
    assert len(lines) < 40
    assert any("the last 2 frames are repeated" in line for line in lines)
    assert lines[-1] == "RecursionError: maximum recursion depth exceeded"
    is_coloured = re.search(r"\x1b\[(?:\d+;)*3[0-7]m", colours) is not None
    assert is_coloured is not bool(environment)


def test_the_place_in_the_queue_moves(show: Show, write: Write, gate: Gate, server: Server) -> None:
    """A queued run shows how many are ahead of it, also when that changes."""
    with Client(server.target) as client:
        first = client.start(write(gate.source)).id
        second = client.start(write(gate.source)).id
        with show("run", write("1")) as screen:
            screen.until("queued, 1 run ahead")
            client.kill(second)
            screen.until("queued, next to start")
            client.kill(first)
            assert screen.exit_code() == 0


def test_waiting_for_a_busy_server(
    make_server: Callable[..., Server], tmp_path: Path, write: Write, gate: Gate
) -> None:
    """With --wait one line says what the run waits for, and for how long; then the run begins."""
    target = make_server().target
    with Client(target) as client:
        busy = client.start(notebook(gate.source)).id
        with Screen(tmp_path, PROGRAM, "--target", target, "run", write("1"), "--wait") as waiting:
            waiting.until(f"waiting: run {busy}")
            # A second may pass unseen.
            waiting.until(lambda lines: re.search(r"… ([2-9]|\d\d+)s", "".join(lines)) is not None)
            gate.open()
            assert waiting.exit_code() == 0
            lines = waiting.lines()
    assert not any("waiting:" in line for line in lines)
    assert "succeeded" in lines[-1]


def test_a_server_that_goes_and_comes(tmp_path: Path) -> None:
    """The bar says that the connection is lost, and the time goes on."""
    fake = FakeServer()
    over = threading.Event()

    def hold() -> pb.ProgressResponse:
        over.wait(WAIT_SECONDS)
        return printed(3)

    fake.answers("Progress", changed(1, RUNNING), hold)
    run_id = "20261129-080000-0123abcd"
    with Screen(tmp_path, PROGRAM, "--target", fake.target, "watch", run_id) as screen:
        screen.until("running")
        # Not before the connection is cut, because the stream would end in order then.
        fake.stop()
        over.set()
        # A second may pass unseen.
        lost = re.compile(r"connection lost, reconnecting … ([2-9]|\d\d+) s")
        screen.until(lambda lines: any(map(lost.search, lines)))
        fake.answers("Progress", changed(2, ENDED))
        fake.serve()
        assert screen.exit_code() == 0
        assert not any("reconnecting" in line for line in screen.lines())
    fake.stop()


@pytest.mark.parametrize("columns", [80, 140])
def test_tables_and_values_on_the_screen(tmp_path: Path, columns: int) -> None:
    """What a cell displays is shown as a table or as text, no wider than the terminal."""
    fake = FakeServer()
    heading = "".join(f"<th>column {n}</th>" for n in range(8))
    row = "".join(f"<td>{n * 1000}</td>" for n in range(8))
    table = f"<table><tr><th></th>{heading}</tr>" + f"<tr><th>7</th>{row}</tr></table>"
    data = [
        [pb.MimeData(mime_type="text/html", content=table.encode())],
        [pb.MimeData(mime_type="text/plain", content=b"{'total': 42}")],
        [pb.MimeData(mime_type="image/png", size_bytes=12345)],
    ]
    outputs = [pb.DisplayOutput(data=one) for one in data]
    outputs.append(pb.DisplayOutput(result=pb.ResultValue(name="loss", value_json="0.25")))
    events = [
        pb.ProgressResponse(sequence=n, cells_total=1, cell_output=pb.CellOutput(display=one))
        for n, one in enumerate(outputs, 2)
    ]
    fake.answers("Progress", changed(1, RUNNING), *events, changed(9, ENDED))
    with Screen(
        tmp_path, PROGRAM, "--target", fake.target, "watch", "20261129-080000-0123abcd", columns=columns
    ) as screen:
        assert screen.exit_code() == 0
        lines = screen.lines()
    fake.stop()
    assert all(len(line) <= columns for line in lines)
    assert "7000" in "".join(lines)
    for text in ("{'total': 42}", "[image/png 12.3 kB]", "loss = 0.25"):
        assert text in lines


def test_grpcs_own_lines_stay_out_of_the_screen(tmp_path: Path) -> None:
    """A connection that fails has one line of the command's, and none of gRPC's."""
    authority, other = trustme.CA(), trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    pairs = [
        (certificate.private_key_pem.bytes(), b"".join(one.bytes() for one in certificate.cert_chain_pems))
    ]
    fake = FakeServer(grpc.ssl_server_credentials(pairs))
    file = tmp_path / "ca.pem"
    other.cert_pem.write_to_path(str(file))
    with Screen(tmp_path, PROGRAM, "--target", fake.target, "--tls-ca", file, "list") as screen:
        assert screen.exit_code() == 8
        text = "\n".join(screen.lines())
    fake.stop()
    assert text.startswith("error: Cannot reach")
    assert "ssl_transport_security" not in text.replace("\n", "")


@pytest.mark.parametrize("columns", [80, 140])
def test_attempts_on_the_screen(tmp_path: Path, columns: int) -> None:
    """The bar of an attempt stays where it ended, with the reason below; that of the next one says when."""
    fake = FakeServer()
    started = threading.Event()
    first: dict[str, Any] = {"run_id": "r1", "attempt": 1, "retry": pb.RetryPolicy(max_retries=1)}
    second: dict[str, Any] = {**first, "run_id": "r2", "attempt": 2, "retry_of": "r1"}
    crashed = pb.Run(
        **first,
        state=pb.RUN_STATE_CRASHED,
        retried_by="r2",
        failure=pb.Failure(message="The kernel died."),
        cells_total=3,
    )

    def hold() -> pb.ProgressResponse:
        started.wait(WAIT_SECONDS)
        return changed(2, pb.Run(**second, state=pb.RUN_STATE_RUNNING))

    slow = pb.CellFinished(duration=Duration(seconds=5))
    fake.answers("Start", pb.StartResponse(run=pb.Run(**first)))
    fake.answers(
        "Progress",
        changed(1, pb.Run(**first, state=pb.RUN_STATE_RUNNING)),
        pb.ProgressResponse(sequence=2, cell_finished=slow),
        pb.ProgressResponse(sequence=3, cell_finished=pb.CellFinished(cell_index=1, duration=slow.duration)),
        pb.ProgressResponse(sequence=4, cells_completed=1, cells_total=3, run_changed=crashed),
    )
    later = Timestamp(seconds=4_000_000_000)
    fake.answers(
        "Progress",
        changed(1, pb.Run(**second, state=pb.RUN_STATE_QUEUED, not_before=later)),
        hold,
        changed(3, pb.Run(**second, state=pb.RUN_STATE_SUCCEEDED)),
    )
    with Screen(
        tmp_path, PROGRAM, "--target", fake.target, "run", "--retries", "1", columns=columns
    ) as screen:
        # A terminal can be seen while it draws.
        lines = screen.until(lambda lines: "0/?" in "".join(lines) and "before 2096-10-02" in "".join(lines))
        assert all(len(line) <= columns for line in lines)
        assert lines[0].startswith("✗")
        assert "1/3" in lines[0]
        assert lines[1:3] == [
            "run r1 crashed (attempt 1 of 2): The kernel died.",
            "repeating it as run r2 (attempt 2 of 2)",
        ]
        assert "0/?" in lines[3]
        started.set()
        assert screen.exit_code() == 0
        lines = screen.lines()
    fake.stop()
    assert lines[-1] == "run r2 succeeded (attempt 2 of 2)"
    # The times of the first attempt's cells are not those of the second one.
    assert lines[-2].startswith("✓")


def test_a_kill_after_the_end_of_an_attempt(tmp_path: Path) -> None:
    """If the run has crashed before the key was pressed, the run that repeats it is killed."""
    fake = FakeServer()
    over = threading.Event()
    crashed = pb.Run(run_id="r1", state=pb.RUN_STATE_CRASHED, retried_by="r2")
    killed = pb.Run(run_id="r2", state=pb.RUN_STATE_KILLED, attempt=2)

    def hold() -> pb.ProgressResponse:
        over.wait(WAIT_SECONDS)
        return printed(2)

    fake.answers("Start", pb.StartResponse(run=pb.Run(run_id="r1")))
    fake.answers("Progress", changed(1, pb.Run(run_id="r1", state=pb.RUN_STATE_RUNNING)), hold)
    fake.answers("Kill", pb.KillResponse(run=crashed, already_ended=True))
    fake.answers("Kill", pb.KillResponse(run=killed))
    fake.answers("Progress", changed(2, crashed))
    fake.answers("Progress", changed(1, killed))
    with Screen(tmp_path, PROGRAM, "--target", fake.target, "run", "--retries", "1") as screen:
        screen.until("running")
        screen.press("C-c")
        screen.until("[k]ill, [l]eave or [c]ontinue?")
        screen.press("k")
        assert screen.exit_code() == 4
    over.set()
    fake.stop()
    assert [one.run_id for one in fake.asked if isinstance(one, pb.KillRequest)] == ["r1", "r2"]


@pytest.mark.parametrize("columns", [80, 140])
def test_a_list_of_a_team_on_the_screen(tmp_path: Path, columns: int) -> None:
    """Owners and reasons are there however narrow it is; attempts and labels where there is room."""
    fake = FakeServer()
    failed: dict[str, Any] = {
        "state": pb.RUN_STATE_FAILED,
        "failure": pb.Failure(message="A reason that takes some room."),
    }
    runs = [
        pb.Run(run_id="20261129-080000-0123abcd", owner="ada", attempt=2, name="nightly report", **failed),
        pb.Run(run_id="20261129-070000-4567cdef", owner="bob", labels={"team": "data, mostly"}, **failed),
    ]
    for run in runs:
        run.create_time.GetCurrentTime()
    fake.answers("List", pb.ListResponse(runs=runs))
    with Screen(tmp_path, PROGRAM, "--target", fake.target, "list", columns=columns) as screen:
        assert screen.exit_code() == 0
        heading, *lines = screen.lines()
    fake.stop()
    wide = ["ATTEMPT", "OWNER", "LABELS", "REASON"] if columns == 140 else ["OWNER", "REASON"]
    assert heading.split()[6:] == wide
    assert len(lines) == 2
    assert all("A reason" in line for line in lines)


def test_a_list_that_follows_the_runs(show: Show, server: Server, gate: Gate) -> None:
    """A table has each run in its state, until Ctrl-C; a deleted run leaves it."""
    source = notebook(gate.source)
    label = {"listed": gate.path.parent.name}
    screen = show("list", "--watch", "--label", f"listed={label['listed']}")
    with Client(server.target) as client, screen:
        screen.until("RUN")
        run = client.start(source, name="followed", labels=label)
        screen.until(lambda lines: any("running" in line and "followed" in line for line in lines))
        gate.open()
        screen.until(lambda lines: any("succeeded" in line and "followed" in line for line in lines))
        run.wait().delete()
        screen.until(lambda lines: not any("followed" in line for line in lines))
        screen.press("C-c")
        assert screen.exit_code() == 130
