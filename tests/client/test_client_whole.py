"""What a run takes along and leaves, from both clients and the command through a real server."""

import asyncio
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from notebook_runner import AsyncClient, Client, Displayed, InvalidRequest, RpcFailed, RunFailed, RunNotFound
from tests.client.test_cli import Command, command_for
from tests.client.test_client_calls import FIGURE, FRAME, PICTURE
from tests.support.gate import Gate
from tests.support.notebooks import notebook, written
from tests.support.server import Server

pytestmark = [pytest.mark.e2e, pytest.mark.whole_run]

ROOT = Path(__file__).parents[2]
SECONDS = 300.0
SCRAP = "application/scrapbook.scrap.json+json"
GLUE = f"""
from IPython.display import display
def glue(name, value):
    display({{{SCRAP!r}: {{"name": name, "data": value, "encoder": "json", "version": 1}}}}, raw=True)
glue("total", 2**70)
glue("share", 0.25)
glue("total", 42)
glue("by region", {{"north": [1, None], "south": []}})
"""
READS = "import helpers.words as words\nprint(open('data.csv').read().strip(), words.GREETING)"


# A kernel that was ready has spent some time before.
BURN = "import time\nbegin = time.process_time()\nwhile time.process_time() - begin < 0.3: pass"


@pytest.fixture
def client(server: Server) -> Any:
    """A client of the shared server."""
    with Client(server.target) as connected:
        yield connected


@pytest.fixture
def command(server: Server) -> Command:
    """The command, for the shared server."""
    return command_for(server.target)


def printed_by(done: subprocess.CompletedProcess[str]) -> str:
    """The output of a command that succeeded."""
    assert done.returncode == 0, done.stderr
    return done.stdout


def beside(folder: Path) -> list[Path]:
    """A file and a package that a notebook reads."""
    (folder / "helpers").mkdir()
    (folder / "helpers" / "words.py").write_text("GREETING = 'hello'")
    (folder / "data.csv").write_text("a,b\n")
    return [folder / "data.csv", folder / "helpers"]


def test_a_run_is_found_by_a_part_of_its_id(client: Client, command: Command) -> None:
    """The random part alone is enough; what several runs have in common is ambiguous."""
    client.run(notebook("1"))
    run = client.run(notebook("2"), name="found")
    part = run.id.rpartition("-")[2][:6]
    assert client.get(part).id == client.get(run.id).id == client.get().id == run.id
    with pytest.raises(InvalidRequest) as caught:
        client.get(run.id[:4])
    assert caught.value.reason == "AMBIGUOUS_RUN_ID"
    # Ids begin with the second of the Start; which of one second's runs are named is open.
    named = caught.value.metadata["run_ids"].split(",")
    assert len(named) >= 2
    assert {run.id for run in client.runs()}.issuperset(named)
    shown = printed_by(command("show", part))
    assert run.id in shown
    assert "found" in shown
    refused = command("show", run.id[:4])
    assert refused.returncode == 2
    assert "AMBIGUOUS_RUN_ID" in refused.stderr
    assert named[0] in refused.stderr


def test_a_deleted_run_is_gone(client: Client, command: Command, gate: Gate) -> None:
    """An active run is not deleted; of an ended one nothing can be read, and a second delete says so."""
    active = client.start(notebook(gate.source))
    with pytest.raises(RpcFailed) as caught:
        active.delete()
    assert caught.value.reason == "RUN_ACTIVE"
    gate.open()
    run = active.wait()
    assert run.delete().id == run.id
    for call in (run.refresh, run.output, run.delete):
        with pytest.raises(RunNotFound):
            call()
    other = client.run(notebook("1"))
    printed_by(command("delete", "--yes", other.id))
    assert command("show", other.id).returncode != 0
    assert other.id not in {one.id for one in client.runs()}


def test_result_values(client: Client, command: Command, tmp_path: Path) -> None:
    """The last value of each name, exact, in the run, in its events, and from the command."""
    values = {"total": 42, "share": 0.25, "by region": {"north": [1, None], "south": []}}
    run = client.run(notebook(GLUE))
    assert run.values == values
    results = [one.result for one in run.progress() if isinstance(one, Displayed) and one.result]
    assert [(one.name, one.value) for one in results][:2] == [("total", 2**70), ("share", 0.25)]
    assert json.loads(printed_by(command("show", "--values", run.id))) == values
    path = tmp_path / "glue.ipynb"
    path.write_bytes(written(notebook(GLUE)))
    assert json.loads(printed_by(command("run", "--values", path))) == values


def test_files_beside_the_notebook(client: Client, command: Command, tmp_path: Path) -> None:
    """The first cell reads files and imports modules that came along."""
    files = beside(tmp_path)
    assert client.run(notebook(READS), files=files).text == "a,b hello\n"
    path = tmp_path / "reads.ipynb"
    path.write_bytes(written(notebook(READS)))
    options = [word for file in files for word in ("--files", str(file))]
    assert "a,b hello" in printed_by(command("run", path, *options))


def test_a_missing_file_comes_with_advice(client: Client, command: Command, tmp_path: Path) -> None:
    """The client's exception and the command say what to do about a file that was not sent."""
    path = tmp_path / "reads.ipynb"
    path.write_bytes(written(notebook("open('data.csv')")))
    advice = "send the file with `files`"
    with pytest.raises(RunFailed, match=advice):
        client.run(path)
    assert advice in command("run", path, "--quiet").stderr
    assert advice in command("show").stdout


def test_files_that_are_too_large(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """The refusal names the server's option."""
    files = beside(tmp_path)
    server = make_server("--max-input-files-bytes", "10")
    with Client(server.target) as client, pytest.raises(InvalidRequest, match="--max-input-files-bytes"):
        client.start(notebook("1"), files=files)


def test_the_asyncio_client_does_the_same(server: Server, tmp_path: Path) -> None:
    """Files, values, parts of ids and deletion."""
    files = beside(tmp_path)

    async def go() -> None:
        async with AsyncClient(server.target) as client:
            run = await client.run(notebook(READS, GLUE), files=files)
            assert await run.text() == "a,b hello\n"
            assert run.values["total"] == 42
            assert (await client.get(run.id.rpartition("-")[2])).id == run.id
            await run.delete()
            with pytest.raises(RunNotFound):
                await run.refresh()

    asyncio.run(go())


def test_names_and_hashes(client: Client, command: Command, notebook_root: Path, tmp_path: Path) -> None:
    """By default the name is that of the file, here or on the server; it need not be unique."""
    content = written(notebook("1"))
    for folder in (tmp_path, notebook_root):
        (folder / "weekly report.ipynb").write_bytes(content)
    runs = [
        client.run(tmp_path / "weekly report.ipynb"),
        client.run(server_path="weekly report.ipynb"),
        client.run(tmp_path / "weekly report.ipynb", name="again"),
    ]
    assert [run.name for run in runs] == ["weekly report", "weekly report", "again"]
    assert {run.notebook_sha256 for run in runs} == {hashlib.sha256(content).hexdigest()}
    listed = printed_by(command("list", "--limit", "3"))
    assert listed.count("weekly report") == 2
    assert "again" in listed


def test_pictures_come_with_the_events(client: Client) -> None:
    """Representations up to the size that was asked for; larger ones only by size."""
    run = client.run(notebook(FIGURE, FRAME, "from IPython.display import HTML; HTML('x' * 5000)"))
    picture, frame, large = (
        one for one in run.progress(display_data_max_bytes=1000) if isinstance(one, Displayed)
    )
    assert picture.data["image/png"] == PICTURE
    assert "<table" in str(frame.data["text/html"])
    assert "text/html" not in large.data
    assert large.sizes["text/html"] == 5000
    assert all(not one.data for one in run.progress() if isinstance(one, Displayed))


def test_what_a_run_used(client: Client, command: Command) -> None:
    """Memory and processor time of an ended run, also shown by the command."""
    run = client.run(notebook(BURN))
    assert run.peak_memory is not None
    assert run.peak_memory > 10_000_000
    assert run.cpu_time is not None
    assert run.cpu_time > timedelta(seconds=0.1)
    assert "memory" in printed_by(command("show", run.id)).lower()


def test_small_results_are_shown(command: Command, tmp_path: Path) -> None:
    """A dict and a table are text in `run` and `logs`."""
    path = tmp_path / "results.ipynb"
    path.write_bytes(written(notebook("{'total': 42}", FRAME)))
    for shown in (printed_by(command("run", path)), printed_by(command("logs"))):
        assert "{'total': 42}" in shown
        assert any(line.split()[-2:] == ["1", "x"] for line in shown.splitlines())


def test_the_sweep_of_the_readme(server: Server, tmp_path: Path) -> None:
    """It makes a table with a row for each run: parameters and result values."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    text = f"{block}\nprint(table)".replace("done.html", str(tmp_path / "done.html"))
    program = [sys.executable, "-c", text.replace("127.0.0.1:50051", server.target)]
    heading, *rows = printed_by(
        subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    ).splitlines()
    assert heading.split() == ["games", "exponent"]
    assert [row.split()[1] for row in rows] == ["5", "10", "20"]
