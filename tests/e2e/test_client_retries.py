"""Both clients and the command with runs that the server repeats."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from nbformat import NotebookNode

from notebook_runner import AsyncClient, Client, Retry, RunFailed, RunState, StateChanged
from notebook_runner.cli import main
from tests.support.notebooks import notebook, parsed, written
from tests.support.server import Server

AT_ONCE = Retry(2, backoff=0)


def crashing(folder: Path, times: int) -> NotebookNode:
    """A notebook whose first attempts crash."""
    count = f"""
with open({str(folder / "attempts")!r}, "a+") as file:
    file.write(".")
    file.seek(0)
    attempt = len(file.read())
print("attempt", attempt, flush=True)
"""
    return notebook(count, f"import os\nif attempt <= {times}:\n    os.kill(os.getpid(), 9)")


def run(kind: str, target: str, *arguments: Any, **options: Any) -> Any:
    """`run` of one of the two clients."""
    if kind == "sync":
        with Client(target) as client:
            return client.run(*arguments, **options)

    async def awaited() -> Any:
        async with AsyncClient(target) as client:
            return await client.run(*arguments, **options)

    return asyncio.run(awaited())


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_run_returns_the_attempt_that_succeeds(server: Server, tmp_path: Path, kind: str) -> None:
    """With the one before it, which can be read on its own."""
    last = run(kind, server.target, crashing(tmp_path, 1), retry=AT_ONCE)
    assert (last.state, last.attempt, last.retried_by) == (RunState.SUCCEEDED, 2, "")
    assert last.retry.max_retries == 2
    with Client(server.target) as client:
        first = client.get(last.retry_of)
        assert (first.state, first.attempt) == (RunState.CRASHED, 1)
        assert (first.retry_of, first.retried_by) == ("", last.id)
        assert first.wait().id == client.wait(first.id, timeout=0).id == last.id
        assert first.wait(retries=False).id == first.id
        *_, end = first.progress()
        assert isinstance(end, StateChanged)
        assert end.run.retried_by == last.id


def test_run_raises_for_the_last_attempt(server: Server, tmp_path: Path) -> None:
    """If the policy allows no more."""
    with pytest.raises(RunFailed) as caught:
        run("async", server.target, crashing(tmp_path, 9), retry=1)
    assert (caught.value.run.state, caught.value.run.attempt) == (RunState.CRASHED, 2)
    assert (tmp_path / "attempts").read_text() == ".."


def test_run_of_the_command_follows_attempts(server: Server, tmp_path: Path) -> None:
    """Its exit code, its result and its lines are those of all attempts, and rerun repeats the policy."""
    path = tmp_path / "in.ipynb"
    path.write_bytes(written(crashing(tmp_path, 1)))
    result = tmp_path / "out.ipynb"
    options = ["--retries", "1", "--retry-backoff", "10ms", "--retry-on", "crashed"]
    arguments = ["--target", server.target, "run", str(path), *options, "-o", str(result)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    first, second = (line.split()[1] for line in lines if line.endswith(" running"))
    assert any(line.startswith(f"run {first} crashed in cell 2 of 2 after") for line in lines)
    assert f"repeating it as run {second} (attempt 2 of 2)" in lines
    assert [line for line in lines if line.startswith("attempt ")] == ["attempt 1", "attempt 2"]
    assert parsed(result.read_bytes()).cells[0].outputs[0].text == "attempt 2\n"
    shown = CliRunner().invoke(main, ["--target", server.target, "show", first])
    assert f"1 of 2, repeated by run {second}" in shown.stdout
    again = CliRunner().invoke(main, ["--target", server.target, "rerun", first, "--json"])
    assert again.exit_code == 0
    last = json.loads(again.stdout.splitlines()[-1])["run_changed"]
    assert last["retry"] == {"max_retries": 1, "states": ["crashed"], "backoff": 0.01, **_longest(last)}


def _longest(run_: dict[str, Any]) -> dict[str, Any]:
    """The longest time before a repetition, which a server may fill in."""
    return {name: value for name, value in run_["retry"].items() if name == "max_backoff"}


def test_a_repetition_that_waits_can_be_killed(server: Server, tmp_path: Path) -> None:
    """`kill` ends the chain, and the wait for the first attempt returns the killed one."""
    with Client(server.target) as client:
        started = client.start(crashing(tmp_path, 9), retry=Retry(3, backoff=3600, max_backoff=7200))
        first = started.wait(retries=False)
        waiting = client.get(first.retried_by)
        assert (waiting.state, waiting.attempt) == (RunState.QUEUED, 2)
        assert waiting.not_before
        assert first.ended
        assert 3590 < (waiting.not_before - first.ended).total_seconds() < 3610
        assert "not before" in str(waiting)
        with pytest.raises(TimeoutError):
            started.wait(timeout=0)
        assert client.kill(waiting.id).run.state is RunState.KILLED
        last = started.wait()
        assert (last.id, last.state, last.retried_by) == (waiting.id, RunState.KILLED, "")
