"""What the command shows of runs: names, reasons, values and displays, from a server that has all fields."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from notebook_runner.cli import main
from notebook_runner.cli._calls import CommandClient
from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.completion import PATIENT
from tests.support.fake_server import FakeServer, refusal
from tests.support.notebooks import code, content, notebook, parsed, written
from tests.support.terminal import on_a_terminal

pytestmark = pytest.mark.integration

PROGRAM = Path(sys.executable).with_name("notebook-runner")
SECONDS = 60.0
ID = "20261129-080000-0123abcd"


def at(seconds: float) -> Timestamp:
    """A time so many seconds from now."""
    moment = Timestamp()
    moment.FromNanoseconds(time.time_ns() + round(seconds * 1e9))
    return moment


FAILED = pb.Run(
    run_id=ID,
    name="report",
    state=pb.RUN_STATE_FAILED,
    cells_total=9,
    cells_completed=3,
    kernel_name="python3",
    labels={"team": "data", "env": "test"},
    parameters_json='{"region": "north", "days": 9007199254740993, "rate": NaN}',
    notebook_path="reports/report.ipynb",
    notebook_sha256="ab" * 32,
    results_json='{"total": 42, "loss": Infinity}',
    results_omitted=1,
    peak_memory_bytes=123_456_789,
    cpu_time=Duration(seconds=1, nanos=500_000_000),
    output_uri="s3://bucket/done.ipynb",
    output_error="access denied",
    failure=pb.Failure(
        cause=pb.FAILURE_CAUSE_CELL_ERROR,
        message="The cell raised KeyError: 'x'",
        cell_index=3,
        exception_name="KeyError",
        exception_message="'x'",
        traceback="Traceback (most recent call last)\nCell In[4], line 1\n----> 1 d['x']\n\nKeyError: 'x'",
    ),
)
DONE = pb.Run(
    run_id="20261129-090000-4567cdef",
    state=pb.RUN_STATE_SUCCEEDED,
    cells_total=1,
    cells_completed=1,
)
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def now() -> None:
    """Makes the runs two hours and a minute old, however long earlier tests have taken."""
    for run, age, seconds in ((FAILED, 7200.0, 2.5), (DONE, 60.0, 2.0)):
        begin = at(-age)
        run.create_time.CopyFrom(begin)
        run.start_time.FromNanoseconds(begin.ToNanoseconds() + 10**9)
        run.end_time.FromNanoseconds(run.start_time.ToNanoseconds() + round(seconds * 1e9))


@pytest.fixture
def command(fake: FakeServer, tmp_path: Path) -> Command:
    """Runs the command against the fake server, in a folder of its own."""

    def run(*arguments: str | Path, **variables: str) -> "subprocess.CompletedProcess[str]":
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("NOTEBOOK_RUNNER_")}
        return subprocess.run(
            [PROGRAM, "--target", fake.target, *arguments],
            env={**inherited, **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    return run


def display(
    sequence: int, *data: tuple[str, bytes], result: pb.ResultValue | None = None
) -> pb.ProgressResponse:
    """A display of these representations."""
    items = [pb.MimeData(mime_type=kind, size_bytes=1234, content=held) for kind, held in data]
    shown = pb.DisplayOutput(output_type="execute_result", data=items, result=result)
    return pb.ProgressResponse(sequence=sequence, cells_total=1, cell_output=pb.CellOutput(display=shown))


TABLE = b"""<style>td {}</style><table><thead><tr><th></th><th>city</th><th>total</th></tr></thead>
<tbody><tr><th>0</th><td>Bern &amp; Thun</td><td>7</td></tr><tr><th>1</th><td>Chur</td><td>12</td></tr>
</tbody></table>"""


def test_show(command: Command, fake: FakeServer) -> None:
    """A run is shown with all that is known of it, and its traceback last."""
    fake.answers("Get", pb.GetResponse(run=FAILED))
    done = command("show", "0123")
    assert (done.returncode, done.stderr) == (0, "")
    assert fake.asked == [pb.GetRequest(run_id="0123")]
    lines = done.stdout.splitlines()
    words = {line.split(None, 1)[0]: line.split(None, 1)[1] for line in lines[:25] if line[:1].strip()}
    assert (words["run"], words["name"], words["state"]) == (ID, "report", "failed in cell 4 of 9")
    assert (words["reason"], words["notebook"]) == ("KeyError: 'x'", "reports/report.ipynb")
    assert words["created"].endswith("(2h ago)")
    assert (words["took"], words["cells"], words["kernel"]) == ("2.5 s", "3/9", "python3")
    assert words["labels"] == "env=test, team=data"
    assert words["parameters"] == 'region = "north"'
    assert any(line.strip() == "days = 9007199254740993" for line in lines)
    assert words["values"] == "total = 42"
    assert any(line.strip().startswith("1 more are too large") for line in lines)
    assert (words["memory"], words["processor"]) == ("123 MB at most", "1.5 s")
    assert (words["output"], words["not"]) == ("s3://bucket/done.ipynb", "written  access denied")
    assert lines[-1] == "KeyError: 'x'"


def test_show_as_json(command: Command, fake: FakeServer) -> None:
    """States are in lower case, numbers are numbers, and what JSON has no number for is a string."""
    for _ in range(2):
        fake.answers("Get", pb.GetResponse(run=FAILED))
    run = json.loads(command("show", ID, "--json").stdout)
    assert (run["state"], run["failure"]["cause"]) == ("failed", "cell_error")
    assert run["parameters"] == {"region": "north", "days": 2**53 + 1, "rate": "NaN"}
    assert run["results"] == {"total": 42, "loss": "Infinity"}
    assert (run["peak_memory_bytes"], run["cpu_time"]) == (123456789, 1.5)
    assert not {"parameters_json", "results_json"} & set(run)
    values = json.loads(command("show", ID, "--values").stdout)
    assert values == {"total": 42, "loss": "Infinity"}


def test_list(command: Command, fake: FakeServer) -> None:
    """Names, labels and reasons are columns, where a run has them."""
    fake.answers("List", pb.ListResponse(runs=[DONE, FAILED]))
    heading, done, failed = command("list").stdout.splitlines()
    assert heading.split() == ["RUN", "STATE", "CELLS", "AGE", "TOOK", "NAME", "LABELS", "REASON"]
    assert done.split()[:2] == [DONE.run_id, "succeeded"]
    assert failed[heading.index("NAME") :] == "report    env=test, team=data  KeyError: 'x'"
    fake.answers("List", pb.ListResponse(runs=[DONE]))
    heading, _ = command("list").stdout.splitlines()
    assert heading.split() == ["RUN", "STATE", "CELLS", "AGE", "TOOK", "NAME"]


@pytest.mark.parametrize(
    ("since", "count"), [("1h", 1), ("3h", 2), ("2001-02-03", 2), ("2999-01-01T10:00", 0)]
)
def test_list_since(command: Command, fake: FakeServer, since: str, count: int) -> None:
    """Only runs that were created since a time, given as an age or as a date."""
    fake.answers("List", pb.ListResponse(runs=[DONE, FAILED]))
    done = command("list", "--since", since, "--json")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, count)
    refused = command("list", "--since", "yesterday")
    assert refused.returncode == 2
    assert "2026-11-29T08:30" in refused.stderr


@pytest.mark.parametrize("part", ["0123", "20261129-08", ID])
def test_a_server_without_get(command: Command, fake: FakeServer, part: str) -> None:
    """Servers of version 0.1 cannot find a run by a part of its id; the command then looks in the list."""
    fake.answers("List", pb.ListResponse(runs=[DONE, FAILED]))
    assert json.loads(command("show", part, "--json").stdout)["run_id"] == ID


def test_a_part_that_is_ambiguous(command: Command, fake: FakeServer) -> None:
    """The message names the runs that it may mean."""
    fake.answers("List", pb.ListResponse(runs=[DONE, FAILED]))
    done = command("watch", "20261129")
    assert (done.returncode, done.stdout) == (2, "")
    assert DONE.run_id in done.stderr
    assert ID in done.stderr


def test_delete(command: Command, fake: FakeServer) -> None:
    """Each run is found by a part of its id, deleted by its whole id, and named."""
    for run in (FAILED, DONE):
        fake.answers("Get", pb.GetResponse(run=run))
        fake.answers("Delete", pb.DeleteResponse(run=run))
    done = command("delete", "0123", "4567")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"deleted run {ID}: report, failed",
        f"deleted run {DONE.run_id}: (inline), succeeded",
    ]
    assert [one.run_id for one in fake.asked if isinstance(one, pb.DeleteRequest)] == [ID, DONE.run_id]


def test_delete_of_one_run_that_is_named_twice(command: Command, fake: FakeServer) -> None:
    """It is deleted once, and that is no error."""
    for _ in range(2):
        fake.answers("Get", pb.GetResponse(run=FAILED))
    fake.answers("Delete", pb.DeleteResponse(run=FAILED))
    done = command("delete", "0123", ID)
    assert (done.returncode, done.stderr) == (0, "")
    assert [one.run_id for one in fake.asked if isinstance(one, pb.DeleteRequest)] == [ID]


def test_delete_of_an_empty_id(command: Command, fake: FakeServer) -> None:
    """A variable that is not set does not delete the newest run."""
    done = command("delete", ID, "")
    assert (done.returncode, done.stdout) == (2, "")
    assert "RUN must not be empty" in done.stderr
    assert fake.asked == []


def test_delete_of_an_active_run(command: Command, fake: FakeServer) -> None:
    """The server's reason is shown."""
    fake.answers("Get", pb.GetResponse(run=pb.Run(run_id=ID, state=pb.RUN_STATE_RUNNING)))
    fake.answers("Delete", refusal(grpc.StatusCode.FAILED_PRECONDITION, "RUN_ACTIVE", "It is running."))
    done = command("delete", ID, "--json")
    assert json.loads(done.stderr)["error"]["reason"] == "RUN_ACTIVE"
    assert done.returncode == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "--state", "gone", "--json"], "Unknown state 'gone'"),
        (["list", "--nonsense", "--json"], "No such option"),
        (["start", "none.ipynb", "--json"], "No such local notebook"),
        (["start", "-f", "none.yaml", "--json"], "none.yaml"),
        (["output", "--json"], "--json needs --output FILE"),
    ],
)
def test_usage_errors_as_json(command: Command, arguments: list[str], message: str) -> None:
    """With --json, a wrong command line is an object as well."""
    done = command(*arguments)
    error = json.loads(done.stderr)["error"]
    assert (done.returncode, done.stdout, error["exit_code"]) == (2, "", 2)
    assert message in error["message"]


def test_logs_have_results_and_tables(command: Command, fake: FakeServer) -> None:
    """Small texts, tables and values are text; a picture is described."""
    fake.answers(
        "Progress",
        display(2, ("text/html", b"<b>42</b>"), ("text/plain", b"{'total': 42}")),
        display(3, ("text/html", TABLE)),
        display(4, ("image/png", b"\x89PNG"), ("text/plain", b"<Figure>")),
        display(5, result=pb.ResultValue(name="total", value_json="42")),
        pb.ProgressResponse(sequence=6, run_changed=DONE),
    )
    lines = command("logs", ID).stdout.splitlines()
    assert lines[0] == "{'total': 42}"
    assert [line.split() for line in lines[1:4]] == [
        ["city", "total"],
        ["0", "Bern", "&", "Thun", "7"],
        ["1", "Chur", "12"],
    ]
    assert lines[4:] == ["[image/png 1.23 kB, text/plain 1.23 kB]", "total = 42"]
    assert fake.asked[-1].display_data_max_bytes > 0


def test_logs_as_json_have_the_value(command: Command, fake: FakeServer) -> None:
    """A program gets the value itself."""
    value = pb.ResultValue(name="total", value_json="[1, NaN]")
    fake.answers("Progress", display(2, result=value), pb.ProgressResponse(sequence=6, run_changed=DONE))
    (line,) = command("logs", ID, "--json").stdout.splitlines()
    assert json.loads(line)["result"] == {"name": "total", "value_json": "[1, NaN]"}


def test_run_with_values(command: Command, fake: FakeServer) -> None:
    """Standard output has the values and nothing else."""
    ended = pb.Run(run_id=ID, state=pb.RUN_STATE_SUCCEEDED, results_json='{"a": [1, 2.5, NaN]}')
    fake.answers("Start", pb.StartResponse(run=pb.Run(run_id=ID)))
    fake.answers("Progress", pb.ProgressResponse(sequence=1, run_changed=ended))
    done = command("run", "--values")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"a": [1, 2.5, "NaN"]})
    assert f"run {ID} succeeded" in done.stderr
    assert command("run", "--values", "--json").returncode == 2


def test_a_start_has_a_name(command: Command, fake: FakeServer, tmp_path: Path) -> None:
    """That of the file, unless another is given."""
    (tmp_path / "my report.ipynb").write_bytes(content("1"))
    for arguments, name in (((), "my report"), (("--name", "weekly"), "weekly")):
        fake.answers("Start", pb.StartResponse(run=DONE))
        assert command("start", "my report.ipynb", *arguments).returncode == 0
        assert fake.asked[-1].name == name


def test_rerun(command: Command, fake: FakeServer) -> None:
    """The notebook without the injected cell, with the parameters of before and those that are changed."""
    inline = pb.Run()
    inline.CopyFrom(FAILED)
    inline.notebook_path = ""
    executed = written(
        notebook(code("region = ''\ndays = 0", "parameters"), code("days = 1", "injected-parameters"), "1/0")
    )
    page = pb.OutputResponse(content=executed, total_bytes=len(executed), next_offset=len(executed))
    fake.answers("Get", pb.GetResponse(run=inline))
    fake.answers("Output", page)
    fake.answers("Start", pb.StartResponse(run=DONE))
    fake.answers("Progress", pb.ProgressResponse(sequence=1, run_changed=DONE))
    done = command("rerun", "0123", "-p", "region", "south", "-l", "try=2")
    assert done.returncode == 0, done.stderr
    (start,) = [one for one in fake.asked if isinstance(one, pb.StartRequest)]
    assert [cell.source for cell in parsed(start.notebook_content).cells] == ["region = ''\ndays = 0", "1/0"]
    assert start.parameters_json == '{"region": "south", "days": 9007199254740993, "rate": NaN}'
    assert (start.name, start.kernel_name) == ("report", "python3")
    assert start.labels == {"env": "test", "team": "data", "try": "2"}
    assert not start.output_uri


def test_rerun_by_path(command: Command, fake: FakeServer) -> None:
    """A run by path is repeated by the same path."""
    fake.answers("Get", pb.GetResponse(run=FAILED))
    fake.answers("Start", pb.StartResponse(run=DONE))
    fake.answers("Progress", pb.ProgressResponse(sequence=1, run_changed=DONE))
    assert command("rerun", ID).returncode == 0
    (start,) = [one for one in fake.asked if isinstance(one, pb.StartRequest)]
    assert (start.notebook_path, start.notebook_content) == ("reports/report.ipynb", b"")


def test_waits_for_a_busy_server(command: Command, fake: FakeServer) -> None:
    """With --wait the command says what it waits for, and starts one run when there is room."""
    fake.answers("Start", refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "RUNNER_BUSY", "busy", run_id=ID))
    fake.answers("Get", pb.GetResponse(run=pb.Run(run_id=ID, name="long", state=pb.RUN_STATE_RUNNING)))
    fake.answers("Info", pb.InfoResponse(runs_queued=2, queue_size=2))
    fake.answers("Start", pb.StartResponse(run=DONE))
    done = command("start", "--wait")
    assert (done.returncode, done.stdout) == (0, f"{DONE.run_id}\n")
    assert done.stderr == f"waiting: run {ID} (long) is running, 2 of 2 places in the queue are taken\n"
    first, second = (one for one in fake.asked if isinstance(one, pb.StartRequest))
    assert first.request_id == second.request_id != ""


def test_a_lost_connection_is_shown(command: Command, fake: FakeServer) -> None:
    """What the command does is said when the connection is lost, and when it is back."""
    running = pb.Run(run_id=ID, state=pb.RUN_STATE_RUNNING)
    fake.answers(
        "Progress", pb.ProgressResponse(sequence=1, run_changed=running), grpc.StatusCode.UNAVAILABLE
    )
    fake.answers("Progress", pb.ProgressResponse(sequence=2, run_changed=DONE))
    done = command("watch", ID)
    lines = done.stdout.splitlines()
    assert lines[:2] == [f"run {ID} running", "connection lost, reconnecting …"]
    assert lines[2].startswith("connected again after ")
    assert done.returncode == 0


def test_a_file_that_was_not_written(command: Command, fake: FakeServer, tmp_path: Path) -> None:
    """The command that gets it later is named, whether the output or the whole server is away."""
    fake.answers("Start", pb.StartResponse(run=pb.Run(run_id=ID)))
    fake.answers("Progress", pb.ProgressResponse(sequence=1, run_changed=DONE))
    fake.answers("Output", grpc.StatusCode.DATA_LOSS)
    done = command("run", "-o", "my done.ipynb")
    again = f"notebook-runner --target {fake.target} output {DONE.run_id} -o 'my done.ipynb'"
    assert done.stderr.splitlines()[-1] == f"get it:     {again}"
    assert not (tmp_path / "my done.ipynb").exists()


@pytest.mark.parametrize("artefact", ["notebook", "html", "slides", "pdf", "files"])
def test_a_terminal_is_not_flooded(fake: FakeServer, artefact: str) -> None:
    """What only programs read is not written to a terminal unless that is asked for."""
    code_, screen = on_a_terminal(PROGRAM, "--target", fake.target, "output", ID, "-f", artefact)
    assert code_ == 2
    assert "Use --output" in " ".join(screen.split())
    assert fake.asked == []


def test_a_long_text_on_a_terminal_is_paged(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long text goes to the pager, a short one does not."""
    monkeypatch.setenv("PAGER", "head -n 2")
    for lines in (5, 500):
        text = "".join(f"line {n}\n" for n in range(lines)).encode()
        fake.answers("Output", pb.OutputResponse(content=text, total_bytes=len(text), next_offset=len(text)))
        _, screen = on_a_terminal(PROGRAM, "--target", fake.target, "output", ID, "-f", "script")
        assert screen.count("line ") == (5 if lines == 5 else 2)


def completed(fake: FakeServer, folder: Path, line: str) -> list[str]:
    """What bash is offered at the end of a line."""
    words = ["notebook-runner", "--target", fake.target, *line.split(" ")]
    settings: dict[str, Any] = {
        "_NOTEBOOK_RUNNER_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
        "PATH": "",
    }
    done = subprocess.run(PATIENT, check=True, capture_output=True, text=True, env=settings, cwd=folder)
    return done.stdout.splitlines()


def test_completion_of_notebooks(fake: FakeServer, tmp_path: Path) -> None:
    """Notebooks, and the folders on the way to them; other files are not offered."""
    for name in ("a.ipynb", "b.txt", "folder/c.ipynb", ".hidden.ipynb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert completed(fake, tmp_path, "run ") == ["plain,a.ipynb", "plain,folder/"]
    assert completed(fake, tmp_path, "run folder/") == ["plain,folder/c.ipynb"]
    assert completed(fake, tmp_path, "run fol") == ["dir,fol"]
    (tmp_path / "with space.ipynb").touch()
    assert completed(fake, tmp_path, "run w") == ["file,w"]


def test_completion_of_labels_and_ids(fake: FakeServer, tmp_path: Path) -> None:
    """Those of the newest runs."""
    for _ in range(3):
        fake.answers("List", pb.ListResponse(runs=[DONE, FAILED]))
    assert completed(fake, tmp_path, "list -l ") == ["plain,env=test", "plain,team=data"]
    assert completed(fake, tmp_path, "run -l te") == ["plain,team=data"]
    assert completed(fake, tmp_path, "delete ") == [f"plain,{DONE.run_id}", f"plain,{ID}"]


@pytest.mark.parametrize("columns", [80, 140])
def test_a_list_fits_a_terminal(fake: FakeServer, columns: int) -> None:
    """Names, labels and reasons are cut as far as needed, and ids have a short form that commands take."""
    long = pb.Run()
    long.CopyFrom(FAILED)
    long.failure.exception_message = "x" * 300
    fake.answers("List", pb.ListResponse(runs=[DONE, long]))
    _, screen = on_a_terminal(PROGRAM, "--target", fake.target, "list", columns=columns)
    heading, done, failed = screen.splitlines()
    assert heading.split() == ["RUN", "STATE", "CELLS", "AGE", "TOOK", "NAME", "LABELS", "REASON"]
    assert done.startswith("4567cdef  succeeded")
    assert len(failed) == columns
    assert "report" in failed
    assert "KeyError: x" in failed
    assert failed.endswith("x…")


def test_files_go_to_the_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and folders are handed on as they are given; one that does not exist is refused."""
    given: dict[str, Any] = {}

    def start_run(_: object, __: object, **options: Any) -> pb.Run:
        given.update(options)
        return DONE

    monkeypatch.setattr(CommandClient, "start_run", start_run)
    (tmp_path / "data.csv").touch()
    arguments = [
        "--target",
        "127.0.0.1:1",
        "start",
        "--files",
        str(tmp_path / "data.csv"),
        "--files",
        str(tmp_path),
    ]
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, done.output) == (0, f"{DONE.run_id}\n")
    assert given["files"] == [tmp_path / "data.csv", tmp_path]
    refused = CliRunner().invoke(main, ["start", "--files", str(tmp_path / "none")])
    assert refused.exit_code == 2
    assert "does not exist" in refused.output
