"""Both clients against a real server, from a start to its last artefact."""

import asyncio
import base64
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from notebook_runner import (
    AsyncClient,
    CellFinished,
    CellOutcome,
    CellRaised,
    CellStarted,
    Client,
    Displayed,
    FailureCause,
    InvalidRequest,
    Printed,
    RunFailed,
    RunnerBusy,
    RunNotFound,
    RunState,
    StateChanged,
)
from tests.support.gate import Gate
from tests.support.notebooks import notebook, parsed, printed, written
from tests.support.server import Server

pytestmark = pytest.mark.e2e

HELLO = notebook("print('hello')")
PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
FIGURE = f"from IPython.display import Image, display; display(Image({PICTURE!r}))"
FRAME = "import pandas; pandas.DataFrame({'a': [1, 2], 'b': ['x', 'y']})"


@pytest.fixture
def client(server: Server) -> Any:
    """A client of the shared server."""
    with Client(server.target) as connected:
        yield connected


def test_run_answers_a_result(client: Client, tmp_path: Path) -> None:
    """A run that succeeds gives its artefacts, to memory and to a file."""
    run = client.run(HELLO, labels={"test": "result"})
    assert (run.ok, run.state, run.state == "succeeded") == (True, RunState.SUCCEEDED, True)
    content = run.output()
    assert printed(parsed(content), 0) == run.text == "hello\n"
    run.save(tmp_path / "out.ipynb")
    assert (tmp_path / "out.ipynb").read_bytes() == content
    assert "hello" in run.html()
    assert run.notebook() == parsed(content)


def test_run_with_parameters_from_a_file(client: Client, tmp_path: Path) -> None:
    """A notebook of the client's disk runs with a dict of parameters, typed as they were."""
    path = tmp_path / "a.ipynb"
    path.write_bytes(written(notebook("print(repr(a), repr(b), repr(c))")))
    result = client.run(path, parameters={"a": 1, "b": [0.5, None], "c": {"d": True}})
    assert printed(parsed(result.output()), 1) == "1 [0.5, None] {'d': True}\n"


def test_run_raises_for_a_cell_that_raises(client: Client) -> None:
    """A cell's exception is in the fields of RunFailed, and the output is there all the same."""
    with pytest.raises(RunFailed, match="ValueError: no") as caught:
        client.run(notebook("x = 1", "raise ValueError('no')"))
    error = caught.value
    assert (error.cell_index, error.exception_name, error.exception_message) == (1, "ValueError", "no")
    assert "ValueError: no" in error.traceback
    assert (error.run.state, error.run.cause) == (RunState.FAILED, FailureCause.CELL_ERROR)
    assert b"ValueError" in client.output(error.run.id, format="error")


def test_progress_without_heartbeats(make_server: Callable[..., Server], gate: Gate) -> None:
    """A silent run's heartbeats stay inside, and the events have no gap."""
    server = make_server("--heartbeat-interval", "0.05")
    with Client(server.target) as client:
        run = client.start(notebook("print('before')", gate.source, "print('after')"))
        events = []
        for event in run.progress():
            events.append(event)
            match event:
                case CellStarted(1):
                    gate.open()
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert not any(event.pb.HasField("heartbeat") for event in events)
    assert isinstance(events[-1], StateChanged)
    assert events[-1].run.ok


def test_start_is_one_run_for_one_id(client: Client) -> None:
    """The same id answers the same run, and refuses another notebook."""
    first = client.start(HELLO, request_id="calls-1")
    assert client.start(HELLO, request_id="calls-1").id == first.id
    with pytest.raises(InvalidRequest) as caught:
        client.start(notebook("1"), request_id="calls-1")
    assert caught.value.reason == "REQUEST_ID_REUSED"
    first.wait()


def test_newest_run_needs_no_id(client: Client) -> None:
    """Without an id the calls are about the newest run."""
    run = client.start(HELLO)
    assert client.wait().id == client.get().id == run.id
    assert client.kill().run.id == run.id
    assert printed(parsed(client.output()), 0) == "hello\n"
    assert next(client.progress(snapshot_only=True)).sequence == 1


def test_kill_and_list(client: Client, gate: Gate) -> None:
    """A killed run is listed as such, by state, by label and by time."""
    client.run(HELLO)
    run = client.start(notebook(gate.source), labels={"test": "kill"})
    label = {"test": "kill"}
    assert list(client.runs(label=label, state="killed")) == []
    killed = run.kill()
    assert (killed.run.state, killed.already_ended) == (RunState.KILLED, False)
    assert run.kill().already_ended
    for state in ("killed", RunState.KILLED, ["failed", "killed"]):
        assert [found.id for found in client.runs(label=label, state=state)] == [run.id]
    assert [found.id for found in client.list(labels=label, states=["killed"])] == [run.id]
    assert len(list(client.runs(page_size=1))) == len(list(client.runs())) > 1
    assert client.runs(label=label, since=timedelta(hours=1)).__next__().id == run.id
    assert [found.id for found in client.runs(since=run.created)] == [run.id]
    assert list(client.runs(since=run.created + timedelta(seconds=1), page_size=1)) == []


def test_busy_server_names_the_run_in_the_way(make_server: Callable[..., Server], gate: Gate) -> None:
    """A server without room raises RunnerBusy with the active run and when to come again."""
    with Client(make_server().target) as client:
        run = client.start(notebook(gate.source))
        with pytest.raises(RunnerBusy) as caught:
            client.start(HELLO)
        run.kill()
    assert caught.value.run_id == run.id
    assert caught.value.retry_after is not None


def test_refusals_have_their_reasons(client: Client) -> None:
    """Bad requests come as InvalidRequest with the server's reason."""
    with pytest.raises(InvalidRequest) as caught:
        client.start(b"{")
    assert caught.value.reason == "INVALID_NOTEBOOK"
    with pytest.raises(InvalidRequest) as caught:
        client.start(server_path="../secret.ipynb")
    assert caught.value.reason == "PATH_OUTSIDE_ROOT"
    with pytest.raises(InvalidRequest) as caught:
        client.start(HELLO, run_timeout=-1)
    assert caught.value.violations[0].field == "run_timeout"
    with pytest.raises(RunNotFound):
        list(client.progress("none"))


def test_output_larger_than_a_page(client: Client) -> None:
    """An artefact of many pages arrives whole."""
    size = 9_000_000
    run = client.run(notebook(f"print('x' * {size})"))
    stream = io.BytesIO()
    run.save(stream)
    assert stream.getbuffer().nbytes > size
    assert stream.getvalue() == run.output()


def test_times_and_parameters_of_a_run(client: Client) -> None:
    """Times are aware and in order, a run has its duration, and values are those that were given."""
    given = {"whole": 1.0, "large": 2**70, "nothing": None}
    run = client.run(notebook("1"), parameters=given, labels={"a": "b"})
    assert run.started
    assert run.ended
    assert run.created <= run.started <= run.ended <= datetime.now(UTC)
    assert run.duration == run.ended - run.started
    assert (repr(run.parameters), run.labels) == (repr(given), {"a": "b"})
    assert run.cells_completed == run.cells_total == 2
    assert (run.fraction_completed, run.failure, run.cause) == (1.0, None, None)
    assert run.kernel_name == "python3"


def test_a_snapshot_does_not_change(client: Client, gate: Gate) -> None:
    """What `start` returned stays as it was; `refresh` and `wait` return what came after."""
    run = client.start(notebook(gate.source, "print('end')"))
    with pytest.raises(TimeoutError, match=rf"Run {run.id} has not ended within 0\.2 s"):
        run.wait(timeout=0.2)
    assert run.refresh().is_terminal is run.is_terminal is False
    gate.open()
    ended = run.wait(timeout=60)
    assert (ended.ok, run.is_terminal) == (True, False)
    assert ended.wait() is ended.raise_for_state() is ended
    assert ended == run.refresh() == client.get(run.id)
    assert ended.text == "end\n"


def test_wait_returns_a_run_that_failed(client: Client) -> None:
    """Only `raise_for_state` makes an exception of it."""
    run = client.start(notebook("print('before')", "1 / 0")).wait()
    assert run.failure
    assert (run.failure.cell_index, run.failure.exception_name) == (1, "ZeroDivisionError")
    assert "1 / 0" in run.failure.traceback
    assert str(run.failure) == "ZeroDivisionError: division by zero"
    with pytest.raises(RunFailed) as caught:
        run.raise_for_state()
    assert caught.value.run is run
    assert run.text == "before\n"
    assert [output.kind for output in run.outputs] == ["stream", "error"]
    assert "ZeroDivisionError" in run.outputs[1].text


def test_what_a_notebook_displayed(client: Client) -> None:
    """Pictures come as bytes, tables as DataFrames, and each with its cell."""
    run = client.run(notebook(FIGURE, FRAME, "print('done')"))
    (image,) = run.images
    assert (image.cell_index, image.mime_type, image.content) == (0, "image/png", PICTURE)
    (table,) = run.tables
    assert table.to_dict("list") == {"a": [1, 2], "b": ["x", "y"]}
    assert table.a.sum() == 3
    assert [output.cell_index for output in run.outputs] == [0, 1, 2]
    assert run.text == "done\n"


def test_save_by_suffix(client: Client, tmp_path: Path) -> None:
    """The suffix of the file chooses the format, and the files of the run folder are an archive."""
    run = client.run(notebook("open('left.txt', 'w').write('here'); print('hello')"))
    for name in ("a.ipynb", "a.html", "a.md", "a.py", "a.zip"):
        run.save(tmp_path / name)
    assert (tmp_path / "a.html").read_text().startswith("<!DOCTYPE html>")
    assert "hello" in (tmp_path / "a.md").read_text()
    assert "print('hello')" in (tmp_path / "a.py").read_text()
    run.save(tmp_path / "a.txt", format="error")
    with run.files() as archive, ZipFile(tmp_path / "a.zip") as saved:
        assert archive.read("left.txt") == saved.read("left.txt") == b"here"
    with pytest.raises(ValueError, match=r"suffix of .*a\.docx"):
        run.save(tmp_path / "a.docx")


def test_events_of_a_run(client: Client) -> None:
    """Each event has its type, to be matched."""
    # Texts in one piece each: `print` may send the end of the line on its own.
    prints = "import sys; _ = sys.stdout.write('out')", "_ = sys.stderr.write('err')"
    run = client.start(notebook(*prints, "1", "raise E"))
    seen = []
    for event in run.progress():
        match event:
            case Printed(text, stream):
                seen.append(f"{stream} {text}")
            case Displayed(sizes=sizes, kind=kind):
                seen.append(f"{kind} {', '.join(sizes)}")
            case CellRaised(name, message):
                seen.append(f"{name} {message}")
            case CellFinished(outcome=CellOutcome.FAILED, cell_index=index):
                seen.append(f"failed {index}")
            case StateChanged(RunState.FAILED, failed):
                seen.append(f"end {failed.cause}")
    assert seen == [
        "stdout out",
        "stderr err",
        "execute_result text/plain",
        "NameError name 'E' is not defined",
        "failed 3",
        "end cell_error",
    ]


def test_async_client_does_the_same(server: Server, tmp_path: Path, gate: Gate) -> None:
    """The client of asyncio runs, follows, lists, reads and kills like the other one."""

    async def scenario() -> None:
        async with AsyncClient(server.target) as client:
            run = await client.run(HELLO, labels={"test": "async"})
            assert printed(parsed(await run.output()), 0) == await run.text() == "hello\n"
            assert printed(await run.notebook(), 0) == "hello\n"
            await run.save(tmp_path / "out.ipynb")
            assert "hello" in await run.html()
            with await run.files() as archive:
                assert archive.namelist() == []
            assert [found.id async for found in client.runs(label={"test": "async"})] == [run.id]
            assert [found.id async for found in client.list(labels={"test": "async"})] == [run.id]
            events = [event async for event in run.progress()]
            assert [event.sequence for event in events] == list(range(1, len(events) + 1))
            killed = await run.kill()
            assert (killed.run.ok, killed.already_ended) == (True, True)
            assert await client.get(run.id) == await run.refresh() == run
            with pytest.raises(RunFailed):
                await client.run(notebook("1/0"))
            shown = await client.run(notebook(FIGURE, FRAME))
            assert [image.content for image in await shown.images()] == [PICTURE]
            assert len(await shown.tables()) == 1
            assert [output.cell_index for output in await shown.outputs()] == [0, 1]
            waiting = await client.start(notebook(gate.source))
            with pytest.raises(TimeoutError, match="It continues"):
                await waiting.wait(timeout=0.2)
            gate.open()
            assert (await waiting.wait(timeout=60)).raise_for_state().ok

    asyncio.run(scenario())
    assert json.loads((tmp_path / "out.ipynb").read_bytes())["cells"]
