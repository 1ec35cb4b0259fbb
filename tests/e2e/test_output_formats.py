"""Formats of results over the wire: without code, as PDF, and what an export leaves behind: nothing."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, artefact, finish, inline, pages, perform, reach, started, struct
from tests.support.errors import refused
from tests.support.gate import Gate
from tests.support.notebooks import code, content, markdown
from tests.support.processes import marked
from tests.support.server import Server
from tests.support.tools import needs

CELLS = (markdown("some words"), "secret = 40 + 2\nsecret")


@pytest.mark.long
@pytest.mark.parametrize("to", ["html", "markdown", "slides"])
def test_without_code(server: Server, to: str) -> None:
    """Text and results are there, the code is not; the artefact with the code is another one."""
    run = perform(server.stub, inline(*CELLS)).run
    bare = artefact(server.stub, run.run_id, format=to, omit_input=True).decode()
    whole = artefact(server.stub, run.run_id, format=to).decode()
    assert "some words" in bare
    assert "42" in bare
    assert "secret" not in bare
    assert "secret" in whole
    assert artefact(server.stub, run.run_id, format=to, omit_input=True, max_bytes=1000).decode() == bare


@pytest.mark.parametrize("exporter", ["latex", "nbconvert.exporters.HTMLExporter"])
def test_a_notebook_chooses_no_exporter(server: Server, gate: Gate, exporter: str) -> None:
    """What its metadata names is neither run nor answered as the media type, before it has a kernel's own."""
    language = {"name": "cobol", "nbconvert_exporter": exporter, "mimetype": "text/html\r\nX-Evil: 1"}
    request = pb.StartRequest(notebook_content=content(gate.source, language_info=language))
    with started(server.stub, request) as run:
        reach(server.stub, run.run_id, "cell_started")
        answers = list(pages(server.stub, run_id=run.run_id, format="script"))
        gate.open()
    assert {answer.media_type for answer in answers} == {"text/plain"}
    assert b"".join(answer.content for answer in answers).decode().strip() == gate.source


def test_a_page_begins_with_its_run(server: Server) -> None:
    """State, parameters and times of the run are on top, with a link to the cell that failed."""
    cells = (code("n = 1", "parameters"), "n / 0")
    run = perform(server.stub, inline(*cells, parameters=struct({"n": 7}))).run
    page = artefact(server.stub, run.run_id, format="html").decode()
    banner = page[page.index('<div class="nbr-banner nbr-bad">') : page.index("Go to cell 3")]
    assert ">Failed<" in banner
    assert "ZeroDivisionError: division by zero" in banner
    assert f"<dd>{run.run_id}</dd>" in page
    assert "<dt>n</dt><dd>7" in page
    assert f"<dd>{run.end_time.ToDatetime():%Y-%m-%d %H:%M:%S} UTC</dd>" in page
    assert f'href="#cell-id={run.failure.cell_id}"' in page


def test_the_page_of_an_active_run_says_so(server: Server, gate: Gate) -> None:
    """While it executes, a page has the state as of its event, and all its pages are of one artefact."""
    with started(server.stub, inline("1", gate.source)) as run:
        reach(server.stub, run.run_id, "cell_finished")
        first = server.stub.Output(
            pb.OutputRequest(run_id=run.run_id, format="html", max_bytes=1000), timeout=SECONDS
        )
        gate.open()
        assert finish(server.stub, run.run_id).run.state == pb.RUN_STATE_SUCCEEDED
    rest = pages(
        server.stub,
        run_id=run.run_id,
        format="html",
        offset=first.next_offset,
        as_of_sequence=first.as_of_sequence,
    )
    page = first.content + b"".join(answer.content for answer in rest)
    assert len(page) == first.total_bytes
    assert b">Running<" in page
    assert f"event {first.as_of_sequence}, ".encode() in page
    assert b">Succeeded<" in artefact(server.stub, run.run_id, format="html")


def test_json_that_is_nested_deep_is_exported(server: Server) -> None:
    """A page shows what stands beside it."""
    shown = "display({'application/json': x, 'text/plain': 'beside'}, raw=True)"
    run = perform(server.stub, inline(f"x = 1\nfor _ in range(900): x = [x]\n{shown}")).run
    assert run.state == pb.RUN_STATE_SUCCEEDED
    assert "<pre>beside</pre>" in artefact(server.stub, run.run_id, format="html").decode()


@pytest.mark.long
@pytest.mark.parametrize("to", ["", "notebook", "files", "error"])
def test_what_is_always_whole(server: Server, to: str) -> None:
    """A format that has no version without code refuses, and names the field."""
    run = perform(server.stub, inline("1")).run
    request = pb.OutputRequest(run_id=run.run_id, format=to, omit_input=True)
    error = refused(lambda: server.stub.Output(request, timeout=SECONDS))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "INVALID_FIELD"


def children(server: Server) -> set[int]:
    """The processes right below the server, dead ones that nobody has waited for included."""
    tasks = Path(f"/proc/{server.process.pid}/task").iterdir()
    return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}


@needs("chromium")
def test_pdf(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """A PDF comes in pages like all else, and the browser that printed it leaves no process and no file."""
    server = make_server("--no-warm-kernels", environment={"TMPDIR": str(tmp_path)})
    run = perform(server.stub, inline(*CELLS)).run
    processes, files = children(server), sorted(tmp_path.iterdir())
    data = artefact(server.stub, run.run_id, format="pdf", max_bytes=2000)
    assert data.startswith(b"%PDF-")
    assert artefact(server.stub, run.run_id, format="pdf") == data
    assert children(server) <= processes
    assert sorted(tmp_path.iterdir()) == files


@pytest.mark.long
def test_a_browser_that_hangs(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """One that is ended leaves no file, and no process, not even one in a session of its own."""
    temporary, reached = tmp_path / "temporary", tmp_path / "reached"
    temporary.mkdir()
    browser = tmp_path / "chromium"
    browser.write_text(f"#!/bin/sh\ntouch $TMPDIR/left {reached}\nsetsid sleep 100000 &\nsleep 100000\n")
    browser.chmod(0o755)
    environment = {"TMPDIR": str(temporary), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    # Long enough for a busy machine to come to the browser.
    server = make_server("--no-warm-kernels", "--export-timeout", "30", environment=environment)
    run = perform(server.stub, inline("1")).run
    processes, files = children(server), sorted(temporary.iterdir())
    request = pb.OutputRequest(run_id=run.run_id, format="pdf")
    error = refused(lambda: server.stub.Output(request, timeout=2 * SECONDS))
    assert error.reason == "EXPORT_FAILED"
    assert "--export-timeout" in error.message
    assert reached.exists()
    assert children(server) <= processes
    assert [command for command in marked(server.mark).values() if "sleep" in command] == []
    assert sorted(temporary.iterdir()) == files


@pytest.mark.long
def test_pdf_where_nothing_can_print(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """The caller learns what the operator can install, at once."""
    (tmp_path / "python3").symlink_to(sys.executable)
    server = make_server(environment={"PATH": str(tmp_path)})
    run = perform(server.stub, inline("1")).run
    request = pb.OutputRequest(run_id=run.run_id, format="pdf")
    error = refused(lambda: server.stub.Output(request, timeout=SECONDS))
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.reason == "EXPORT_FAILED"
    assert "package chromium" in error.message
