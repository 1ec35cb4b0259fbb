"""Both clients against a real server, from a start to its last artefact."""

import asyncio
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from notebook_runner import AsyncClient, Client, InvalidRequest, RunFailed, RunnerBusy, RunNotFound
from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.gate import Gate
from tests.support.notebooks import notebook, parsed, printed, written
from tests.support.server import Server

pytestmark = pytest.mark.e2e

HELLO = notebook("print('hello')")


@pytest.fixture
def client(server: Server) -> Any:
    """A client of the shared server."""
    with Client(server.target) as connected:
        yield connected


def test_run_answers_a_result(client: Client, tmp_path: Path) -> None:
    """A run that succeeds gives its artefacts, to memory and to a file."""
    result = client.run(HELLO, labels={"test": "result"})
    assert result.run.state == pb.RUN_STATE_SUCCEEDED
    content = result.output()
    assert printed(parsed(content), 0) == "hello\n"
    result.save_output(tmp_path / "out.ipynb")
    assert (tmp_path / "out.ipynb").read_bytes() == content
    assert b"hello" in result.output(format="html")
    assert result.notebook() == parsed(content)


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
    assert b"ValueError" in client.output(error.run.run_id, format="error")


def test_progress_without_heartbeats(make_server: Callable[..., Server], gate: Gate) -> None:
    """A silent run's heartbeats stay inside, and the events have no gap."""
    server = make_server("--heartbeat-interval", "0.05")
    with Client(server.target) as client:
        run = client.start(notebook("print('before')", gate.source, "print('after')"))
        events = []
        for event in client.progress(run.run_id):
            events.append(event)
            if event.HasField("cell_started") and event.cell_started.cell_index == 1:
                gate.open()
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert not any(event.HasField("heartbeat") for event in events)
    assert events[-1].run_changed.state == pb.RUN_STATE_SUCCEEDED


def test_start_is_one_run_for_one_id(client: Client) -> None:
    """The same id answers the same run, and refuses another notebook."""
    first = client.start(HELLO, request_id="calls-1")
    assert client.start(HELLO, request_id="calls-1").run_id == first.run_id
    with pytest.raises(InvalidRequest) as caught:
        client.start(notebook("1"), request_id="calls-1")
    assert caught.value.reason == "REQUEST_ID_REUSED"
    client.wait(first.run_id)


def test_newest_run_needs_no_id(client: Client) -> None:
    """Without an id the calls are about the newest run."""
    run = client.start(HELLO)
    assert client.wait().run_id == run.run_id
    assert client.kill().run.run_id == run.run_id
    assert printed(parsed(client.output()), 0) == "hello\n"
    assert next(client.progress(snapshot_only=True)).sequence == 1


def test_kill_and_list(client: Client, gate: Gate) -> None:
    """A killed run is listed as such, by state and by label."""
    run = client.start(notebook(gate.source), labels={"test": "kill"})
    assert [found.run_id for found in client.list(labels={"test": "kill"}, states=["killed"])] == []
    answer = client.kill(run.run_id)
    assert answer.run.state == pb.RUN_STATE_KILLED
    assert [found.run_id for found in client.list(labels={"test": "kill"}, states=["killed"])] == [run.run_id]
    assert len(list(client.list(page_size=1))) == len(list(client.list())) > 1


def test_busy_server_names_the_run_in_the_way(make_server: Callable[..., Server], gate: Gate) -> None:
    """A server without room raises RunnerBusy with the active run and when to come again."""
    with Client(make_server().target) as client:
        run = client.start(notebook(gate.source))
        with pytest.raises(RunnerBusy) as caught:
            client.start(HELLO)
        client.kill(run.run_id)
    assert caught.value.run_id == run.run_id
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
    result = client.run(notebook(f"print('x' * {size})"))
    stream = io.BytesIO()
    result.save_output(stream)
    assert stream.getbuffer().nbytes > size
    assert stream.getvalue() == result.output()


def test_async_client_does_the_same(server: Server, tmp_path: Path) -> None:
    """The client of asyncio runs, follows, lists, reads and kills like the other one."""

    async def scenario() -> None:
        async with AsyncClient(server.target) as client:
            result = await client.run(HELLO, labels={"test": "async"})
            assert printed(parsed(await result.output()), 0) == "hello\n"
            assert printed(await result.notebook(), 0) == "hello\n"
            await result.save_output(tmp_path / "out.ipynb")
            found = [run.run_id async for run in client.list(labels={"test": "async"})]
            assert found == [result.run.run_id]
            events = [event async for event in client.progress(found[0])]
            assert [event.sequence for event in events] == list(range(1, len(events) + 1))
            assert (await client.kill(found[0])).run.state == pb.RUN_STATE_SUCCEEDED
            with pytest.raises(RunFailed):
                await client.run(notebook("1/0"))

    asyncio.run(scenario())
    assert json.loads((tmp_path / "out.ipynb").read_bytes())["cells"]
